"""Write the table of what the renderer `template` can do with each chat template in some folders.

    python -m tests.renderers.template_table FOLDER... > sdk/tinkerloop/renderers/templates.md

The tokenizer of each template is built from the control tokens in its source (such as `<|im_end|>`). A cell is "yes" if
the text equals that of transformers, and every trained reply begins where the template's prompt ends and ends with a
stop token; "split" if this needs one example for each reply. Otherwise the cell has the number of a reason.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.renderers.chats import decode, tokenizer_with
from tinkerloop.errors import TinkerloopError
from tinkerloop.renderers import Renderer, get_renderer
from tinkerloop.renderers.template import TemplateOptions

COLUMNS = ("text", "two turns", "reasoning", "calls", "results", "calls read", "images")
TODAY = datetime.date.today()  # transformers gives templates the current date
CONTROL = re.compile(
    r"<\|[^|<>\s'\"{}]*\|?>|<[A-Za-z_]+\|>|<\|\"\|>|<｜[^｜<>]+｜>|｜DSML｜|\[/?[A-Z_]{3,}\]|</?seed:[a-z_:]+>|\[gMASK\]|<sop>"
    r"|</?(?:think|tool_call|tool_response|arg_key|arg_value|TOOLCALL|TOOL_RESPONSE)>|<SPECIAL_\d+>"
    r"|<(?:bos|eos|start_of_turn|end_of_turn|start_of_image|BOS_TOKEN|s)>|</s>"
)
USER, AGAIN = {"role": "user", "content": "q"}, {"role": "user", "content": "r"}
TOOL = {
    "name": "get_weather",
    "description": "Looks up weather.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Where"},
            "days": {"type": "integer", "description": "How many"},
        },
        "required": ["city"],
    },
}
ARGUMENTS = {"days": 3, "city": "Bern"}


def reply(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def call(call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}


def conversations(call_id: str) -> dict[str, tuple[list[Any], list[Any] | None]]:
    """Return the conversation and the tools of each column."""
    calling, result = (
        reply("", tool_calls=[call(call_id)]),
        {"role": "tool", "tool_call_id": call_id, "content": "sunny"},
    )
    return {
        "text": ([USER, reply("a")], None),
        "two turns": ([USER, reply("a"), AGAIN, reply("b")], None),
        "reasoning": ([USER, reply("a", reasoning="because")], None),
        "calls": ([USER, calling], [TOOL]),
        "results": ([USER, calling, result, reply("It is sunny.")], [TOOL]),
    }


class Failed(Exception):
    """Error for a cell of the table: the reason is its text."""


def texts_of(ours: Renderer, messages: list[Any], tools: Any, official: Callable[..., str]) -> tuple[list[str], str]:
    """Return the trained texts, and "yes" or "split". Raises if the text is not the official one."""
    try:
        examples, how = [ours.build_supervised_example(messages, "all_assistant_messages", tools=tools)], "yes"
    except TinkerloopError as error:
        examples, how = ours.build_supervised_examples(messages, "all_assistant_messages", tools=tools), "split"
        if len(examples) < 2:
            raise error
    replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    ends = [messages[: i + 1] for i in replies] if how == "split" else [messages]
    texts: list[str] = []
    for example, until in zip(examples, ends[-len(examples) :], strict=True):
        written, whole = decode(example.tokens, ours.tokenizer), official(until, tools)
        stops = [decode([token], ours.tokenizer) for token in ours.get_stop_sequences()]
        if not whole.startswith(written) and not any(written == whole.rstrip() + stop for stop in stops):
            raise Failed(f"the text differs: {written[-60:]!r} for {whole[-60:]!r}")
        for match in re.finditer("1+", "".join("1" if weight else "0" for weight in example.weights)):
            texts.append(decode(example.tokens[match.start() : match.end()], ours.tokenizer))
            if not any(texts[-1].endswith(stop) for stop in stops):
                raise Failed("a trained reply has no stop token")
    prompt = official(messages[: replies[-1]], tools, prompting=True)
    if not decode(examples[-1].tokens, ours.tokenizer).startswith(prompt + texts[-1]):
        raise Failed("the last trained reply does not begin where the prompt ends")
    return texts, how


def tokenizer_for(source: str) -> Any:
    """Return a tokenizer with the control tokens in the source of a chat template, and with this template."""
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    for mark, eos, bos in (
        ("｜", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"), ("<|im_end|>", "<|im_end|>", "<|endoftext|>"),
        ("<|eot_id|>", "<|eot_id|>", "<|begin_of_text|>"), ("<|eot|>", "<|eot|>", "<|begin_of_text|>"),
        ("START_OF_TURN_TOKEN", "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>"), ("<|turn>", "<eos>", "<bos>"),
        ("start_of_turn", "<eos>", "<bos>"), ("<|return|>", "<|return|>", "<|startoftext|>"),
        ("<|end|>", "<|endoftext|>", "<s>"), ("gMASK", "<|endoftext|>", "<s>"),
        ("<|end_of_role|>", "<|end_of_text|>", "<s>"),
    ):  # fmt: skip
        if mark in source:
            special = {"bos_token": bos, "eos_token": eos}
            break
    roles = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"] if "'<|' + " in source else []
    further = ["<|constrain|>", "<|call|>", "<|python_tag|>", *roles]
    return tokenizer_with(sorted({*CONTROL.findall(source), *special.values(), *further}), source, **special)


def cells(source: str) -> Iterator[tuple[str, str]]:
    """Yield the name of each column, with "yes", "split" or the reason why not."""
    call_id = "functions.get_weather:0" if "tool_calls_section" in source else "abc123DEF"
    tokenizer = tokenizer_for(source)

    def official(messages: Any, tools: Any = None, prompting: bool = False) -> str:
        wrapped = [{"type": "function", "function": tool} for tool in tools or []] or None
        return tokenizer.apply_chat_template(messages, tools=wrapped, add_generation_prompt=prompting, tokenize=False)

    texts: dict[str, list[str]] = {}
    for column, (messages, tools) in conversations(call_id).items():
        try:
            ours = get_renderer("template", tokenizer, options=TemplateOptions(today=TODAY))
            texts[column], how = texts_of(ours, messages, tools, official)
            yield column, how
        except (TinkerloopError, Failed) as error:
            yield column, reason(str(error))
        except Exception as error:
            yield column, f"transformers raises: {error}"
    if "calls" not in texts:
        yield "calls read", "calls are not written"
    else:
        ids = tokenizer.encode(texts["calls"][-1], add_special_tokens=False)
        message = ours.parse_response(ids, tools=[TOOL], messages=[USER]).message  # pyright: ignore
        read = [(c.function.name, json.loads(c.function.arguments)) for c in message.get("tool_calls", [])]
        flag = "the syntax is not known, and the call is flagged as unparsed"
        silent = flag if message.get("unparsed_tool_calls") else "the call is read as text"
        yield "calls read", "yes" if read == [("get_weather", ARGUMENTS)] else silent
    yield "images", "`template` has no images"


def reason(error: str) -> str:
    """Return an error without the parts that differ between templates."""
    error = re.sub(r"messages\[\d+\]: | \(the prompt continues .*\)", "", error)
    return re.split(r"; (?:use|remove|train) ", error)[0][:150]


def main(folders: list[str]) -> None:
    files = [file for folder in folders for file in sorted(Path(folder).rglob("*.jinja"))]
    rows = {}
    for file in files:
        name = file.stem if file.stem != "chat_template" else file.parent.name
        with contextlib.redirect_stderr(None):
            rows[name if name not in rows else f"{file.parent.name}/{name}"] = dict(cells(file.read_text()))
    reasons: dict[str, int] = {}
    for row in rows.values():
        for cell in row.values():
            if cell not in ("yes", "split"):
                reasons.setdefault(cell, len(reasons) + 1)
    print("# What `template` can do with public chat templates\n")
    print("Written by `python -m tests.renderers.template_table FOLDER...`; the module says what is compared.\n")
    print(f"| {len(rows)} templates | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    for name in ("yes", "split"):
        counts = Counter(column for row in rows.values() for column, cell in row.items() if cell == name)
        print(f"| {name} | " + " | ".join(str(counts[column]) for column in COLUMNS) + " |")
    print("\n| template | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    for name, row in rows.items():
        shown = [row[c] if row[c] in ("yes", "split") else f"{reasons[row[c]]}" for c in COLUMNS]
        print(f"| {name} | " + " | ".join(shown) + " |")
    print("\n| number | reason | templates |\n|---|---|---|")
    for text, number in reasons.items():
        count = sum(text in row.values() for row in rows.values())
        print(f"| {number} | {text.replace('|', chr(92) + '|').replace(chr(10), ' ')} | {count} |")


if __name__ == "__main__":
    main(sys.argv[1:])
