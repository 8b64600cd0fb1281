"""Show the conversations of a file as tokens, and mark trained tokens, their weights and truncated tokens.

In a terminal, trained tokens are green, tokens that the chat format adds are dim, and truncated tokens are struck out.
Every second token is underlined. Line ends are shown as ⏎. Control characters, which could change the terminal, are
shown as symbols. The name of a control token, such as ⟨|im_end|⟩, is between ⟨ and ⟩, so that text that spells it looks
different. Without colours (in a pipe, a file, or with NO_COLOR), trained text is between ⟦ and ⟧, and ✂ precedes
truncated text. With --html, the tokens are written as an HTML page that needs no other files.

A row that cannot be used is shown as ✗ with the reason, and the rows after it are still shown. The exit status is then
2.
"""

from __future__ import annotations

import argparse
import html
import sys
from dataclasses import replace
from itertools import groupby

from tinkerloop.cli.number_options import at_least
from tinkerloop.cli.output_files import check_output
from tinkerloop.cli.text_options import non_empty, non_empty_path
from tinkerloop.data import FileSource
from tinkerloop.data.conversations import parse_conversation
from tinkerloop.errors import DataError, ImageError, RenderError, TinkerloopError
from tinkerloop.model_info import get_recommended_renderer_name
from tinkerloop.redaction import redacted
from tinkerloop.renderers import Part, TrainOnWhat, get_renderer
from tinkerloop.renderers.token_html import TOKEN_STYLE, Token, token_totals, tokens_html, visible
from tinkerloop.terminal import printable
from tinkerloop.tokenizers.encoders import Encoder, encoder_of
from tinkerloop.tokenizers.loading import tokenizer_to_render


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=non_empty_path, help="A file whose rows have `messages` and optionally `tools`.")
    parser.add_argument(
        "--renderer", type=non_empty, help="The chat format. The default is the one recommended for --model."
    )
    parser.add_argument(
        "--model",
        type=non_empty,
        default="tiny",
        help="The name or folder of the model whose tokenizer is used (default: tiny).",
    )
    parser.add_argument(
        "--train-on",
        default=TrainOnWhat.ALL_ASSISTANT_MESSAGES,
        choices=list(map(str, TrainOnWhat)),
        help=f"The messages whose tokens are trained (default: {TrainOnWhat.ALL_ASSISTANT_MESSAGES}).",
    )
    parser.add_argument(
        "--max-length",
        type=at_least(2),
        help="The largest number of tokens of a conversation; tokens that would be truncated are marked.",
    )
    parser.add_argument(
        "--limit", type=at_least(0), default=5, help="The number of rows to show (default: 5); 0 shows all."
    )
    parser.add_argument(
        "--html",
        type=non_empty_path,
        metavar="PAGE",
        help="Write an HTML page to this file, not to the terminal.",
    )


def tokenizer_line(model: str) -> str:
    """Return a text that names the tokenizer, and says how to choose another one if it is the built-in one.

    >>> tokenizer_line("tiny")
    'tokenizer: tiny (bytes); pass --model for another one'
    """
    is_built_in = model in ("tiny", "tiny-vl")
    return f"tokenizer: {model}" + (" (bytes); pass --model for another one" if is_built_in else "")


def run(arguments: argparse.Namespace) -> int:
    check_output("--html", arguments.html)
    tokenizer = tokenizer_to_render(arguments.model)
    name = arguments.renderer or get_recommended_renderer_name(arguments.model)
    renderer = get_renderer(name, tokenizer, model_name=arguments.model)
    encoder = encoder_of(tokenizer)
    shown: list[tuple[str, list[Token]]] = []
    bad: list[str] = []
    for row in FileSource(arguments.file, lambda raw: raw):
        if arguments.limit and len(shown) >= arguments.limit:
            break
        place = f"{row.path}:{row.line}"
        try:
            conversation = parse_conversation(row)
            example = renderer.build_supervised_example(
                conversation.messages, arguments.train_on, tools=conversation.tools, allow_zero_weight=True
            )
            tokens = with_marked_control_tokens(example.shown_tokens(arguments.max_length), encoder)
        except (DataError, RenderError, ImageError) as error:
            problem = str(error)
            bad.append(problem if problem.startswith(place) else f"{place}: {problem}")
            shown.append((f"✗ {bad[-1]}", []))
        else:
            shown.append((f"{place}  {token_totals(tokens)}", tokens))
    if not shown:
        raise DataError("there is nothing to show: the file has no rows", path=arguments.file)
    totals = token_totals([t for _, tokens in shown for t in tokens])
    total = f"all {len(shown) - len(bad):,} that are shown: {totals}; {printable(tokenizer_line(arguments.model))}"
    if arguments.html:
        written = page(f"{arguments.file.name} as {name}", shown, total)
        try:
            arguments.html.write_text(written, encoding="utf-8")
        except OSError as error:
            raise TinkerloopError(
                f"cannot write the page {arguments.html}: {error.strerror}; pass another file to --html"
            ) from error
        print(f"{len(shown)} conversations written to {printable(arguments.html)}")
    else:
        _print(shown, total)
    if bad:
        first = printable(redacted(bad[0]))
        print(f"tinkerloop inspect: {len(bad)} of {len(shown)} rows cannot be used; {first}", file=sys.stderr)
    return 2 if bad else 0


def with_marked_control_tokens(tokens: list[Token], encoder: Encoder) -> list[Token]:
    """Return the tokens with the names of control tokens between ⟨ and ⟩, such as ⟨|im_end|⟩."""

    def is_control(token: Token) -> bool:
        known = token.image is None and token.text and encoder.id_of(token.text) == token.id
        return bool(known) and encoder.encode(token.text) != [token.id]

    def marked(name: str) -> str:
        return f"⟨{name.removeprefix('<').removesuffix('>')}⟩"

    return [replace(token, text=marked(token.text)) if is_control(token) else token for token in tokens]


def _print(shown: list[tuple[str, list[Token]]], total: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for title, tokens in shown:
        console.print(Text(visible(title), style="bold" if tokens else "bold red"), soft_wrap=True)
        if console.color_system is None or console.no_color:
            console.print(Text(uncoloured(tokens)), soft_wrap=True)
            console.print()
            continue
        text = Text()
        for i, token in enumerate(tokens):
            style = "green" if token.weight else ("dim" if token.part is Part.SCAFFOLD else "")
            style += " underline" if i % 2 else ""
            style += " strike red" if token.is_cut else ""
            text.append(visible(token.text), style=style.strip())
        console.print(text)
        console.print()
    console.print(Text(total, style="bold"), soft_wrap=True)


def uncoloured(tokens: list[Token]) -> str:
    """Return the text of the tokens, with ⟦ and ⟧ around trained text and ✂ before truncated text."""
    written = []
    for is_cut, side in groupby(tokens, lambda token: token.is_cut):
        written.append("✂" if is_cut else "")
        for is_trained, run in groupby(side, lambda token: bool(token.weight)):
            text = visible("".join(token.text for token in run))
            written.append(f"⟦{text}⟧" if is_trained else text)
    return "".join(written)


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #eee; } }
"""


def page(title: str, shown: list[tuple[str, list[Token]]], total: str) -> str:
    """Return an HTML page that shows the tokens. Pointing at a token shows its id, weight and message."""
    body = []
    for heading, tokens in shown:
        body.append(f"<h3>{html.escape(heading)}</h3>\n{tokens_html(tokens) if tokens else ''}")
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}{TOKEN_STYLE}</style>\n<h1>{html.escape(title)}</h1>\n"
        '<p class="tinkerloop"><span class="trained">trained</span>, '
        '<span class="scaffold">added by the chat format</span>, '
        '<span class="cut">cut off</span>; shading alternates from token to token; the names of '
        f"control tokens are between ⟨ and ⟩.</p>\n<p>{html.escape(total)}</p>\n" + "\n".join(body) + "\n</html>\n"
    )
