"""`template`: renders with any Hugging Face `chat_template`.

For each conversation it checks which tokens can be trained, and that no text of a message becomes a control token.

The template is run on a copy of the conversation in which every string is a placeholder. The text around the
placeholders is the format's own text. Then the placeholders are replaced by the strings, which are encoded as ordinary
text. The result must equal the template's output for the real strings. If the two differ, because the template
inspected a string or changed it in an unknown way, a `RenderError` is raised; nothing is guessed. A reply can be
trained only if two things hold: the template's own prompt for this reply is a prefix of the rendered conversation, and
the text from the end of this prompt to the reply's stop token belongs to this reply alone.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from tinkerloop.errors import RenderError
from tinkerloop.message_checks import read_conversation
from tinkerloop.messages import CheckedConversation, Image, ToolCall
from tinkerloop.renderers import base
from tinkerloop.renderers.assembly import Encode
from tinkerloop.renderers.families.qwen3 import JSON_CALL
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.pieces import SEAM, Part, Piece, Pieces, markup, scaffold, stop, text
from tinkerloop.renderers.rendered import Rendered
from tinkerloop.renderers.template_compiler import compile_template
from tinkerloop.renderers.tool_calls import arguments_of, is_object, read_json_call
from tinkerloop.renderers.tool_declarations import openai_declaration
from tinkerloop.renderers.train_on_what import TokenWeights

_PLACEHOLDER = re.compile("\ue000(\\d+)\ue001")
_KNOWN_CHANGES: tuple[Callable[[str], str], ...] = (
    lambda s: s,
    str.strip,
    lambda s: s.lstrip("\n"),
    lambda s: s.strip("\n"),
    str.lstrip,
    str.rstrip,
    lambda s: json.dumps(s, ensure_ascii=False)[1:-1],
    lambda s: json.dumps(s)[1:-1],
)
"""The changes to strings that templates are known to make, most frequent first."""

_DEPENDS_ON_STRINGS = (
    "the template writes different text depending on the content of a string, so this conversation cannot be rendered "
    "safely; use the renderer for this model family"
)


@dataclass(frozen=True)
class TemplateOptions(base.Options):
    """Options of the renderer `template`: the chat template and its variables."""

    chat_template: str | None = None
    """A chat template to use instead of the tokenizer's."""
    variables: tuple[tuple[str, Any], ...] = ()
    """Variables passed to the template in addition to messages and tools, e.g. `(("enable_thinking", False),)`."""
    today: date | None = None
    """The date that the template gets as the current date. With None, the template uses its default."""


@dataclass(frozen=True)
class _Slot:
    """A string of the conversation, with the index of its message (-1 for a tool declaration) and its part."""

    value: str
    message: int
    part: Part


class Template(base.Renderer):
    """Renders with the tokenizer's `chat_template`, or with the template that is given in the options."""

    family = "template"
    Options = TemplateOptions

    def _prepare(self) -> None:
        source = self.options.chat_template
        source = getattr(self.tokenizer, "chat_template", None) if source is None else source
        if not isinstance(source, str):
            raise RenderError("the tokenizer has no chat_template; pass one as TemplateOptions(chat_template=...)")
        self._template = compile_template(source)
        added = [str(token) for token in getattr(self.tokenizer, "added_tokens_decoder", {}).values()]
        self.control = tuple(token for token in added if token.strip())
        self._source = source
        super()._prepare()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_template")
        return state

    def make_grammar(self) -> Grammar:
        used = {token for token in self.control if token in self._source}
        blocks = []
        if {"<think>", "</think>"} <= used:
            blocks.append(Block(Part.REASONING, "<think>", "</think>", trim="\n"))
        if {JSON_CALL.open, JSON_CALL.close} <= used:
            blocks.append(JSON_CALL)
        probe = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        written, _, _ = self._write_both(read_conversation(probe))
        if "\ue001" not in written:
            raise RenderError(
                "the template does not write the text of messages whose content is a string; use the renderer for this "
                "model family"
            )
        end = self._end_of(written[written.rindex("\ue001") + 1 :])
        if end is None:
            raise RenderError(
                "the template ends a reply without a control token, so a model could not learn to stop; use a template "
                "that ends a reply with one of the tokenizer's added tokens"
            )
        return Grammar((end,), tuple(blocks), read_call=read_json_call)

    @property
    def reply_tags(self) -> Sequence[str]:
        """All control tokens that the template names, because most templates have blocks that the grammar does not."""
        return [token for token in self.control if token in self._source and token not in self.grammar.stops]

    def _end_of(self, tail: str) -> str | None:
        """Return the first control token in the text after a reply, or None if the text has none.

        If several tokens begin at the same place, return the longest.
        """
        ends = [(tail.index(token), -len(token), token) for token in self.control if token in tail]
        return min(ends)[2] if ends else None

    # ---- running the template

    def _write_both(self, conversation: CheckedConversation) -> tuple[str, str, list[_Slot]]:
        """Render a conversation twice, once with placeholders for its strings.

        The placeholder of a string is the number of its slot between two private-use characters: `"\\ue0000\\ue001"`.

        Returns:
            The text with placeholders, the text with the real strings, and the slots in the order of their numbers.
        """
        slots: dict[_Slot, int] = {}  # equal strings share a placeholder, because templates compare strings

        def hide(value: Any, message: int, part: Part) -> Any:
            if isinstance(value, str):
                if "\ue000" in value:
                    raise RenderError(
                        "a text contains the character U+E000, which the renderer 'template' needs for placeholders; "
                        "remove this character"
                    )
                number = slots.setdefault(_Slot(value, message, part), len(slots))
                return f"\ue000{number}\ue001" if value else ""
            if isinstance(value, Mapping):
                return {hide(k, message, part): hide(v, message, part) for k, v in value.items()}
            if isinstance(value, (list, tuple)):
                return [hide(v, message, part) for v in value]
            return value

        def keep(value: Any, message: int, part: Part) -> Any:
            return value

        return self._write(conversation, hide), self._write(conversation, keep), list(slots)

    def _write(self, conversation: CheckedConversation, show: Callable[[Any, int, Part], Any]) -> str:
        """Return the template's text for a conversation in which `show(string, message, part)` replaces each string."""
        messages = []
        for i, m in enumerate(conversation.messages):
            if any(isinstance(part, Image) for part in m.content):
                raise RenderError(
                    f"messages[{i}]: the renderer 'template' has no images; use the renderer for this model family"
                )
            message: dict[str, Any] = {"role": m.role, "content": show(m.text, i, Part.TEXT)}
            if m.reasoning is not None:
                message["reasoning_content"] = show(m.reasoning, i, Part.REASONING)
            if m.unparsed:
                raise RenderError(
                    f"messages[{i}]: the renderer 'template' cannot write an unparsed tool call; remove the call"
                )
            if m.tool_calls:
                message["tool_calls"] = [
                    {
                        "type": "function",
                        "id": show(call.id, i, Part.TOOL_CALL),
                        "function": {
                            "name": show(call.function.name, i, Part.TOOL_CALL),
                            "arguments": show(_arguments(call), i, Part.TOOL_CALL),
                        },
                    }
                    for call in m.tool_calls
                ]
            for key in ("tool_call_id", "name"):
                if getattr(m, key) is not None:
                    message[key] = show(getattr(m, key), i, Part.SCAFFOLD)
            messages.append(message)
        tools = [
            _shown_declaration(openai_declaration(t), lambda value: show(value, -1, Part.SCAFFOLD))
            for t in conversation.tools
        ]
        special = {
            k: str(v) for k, v in getattr(self.tokenizer, "special_tokens_map", {}).items() if isinstance(v, str)
        }
        variables = special | dict(self.options.variables)
        if self.options.today is not None:
            variables["strftime_now"] = self.options.today.strftime
        try:
            return self._template.render(
                messages=messages, tools=tools or None, add_generation_prompt=conversation.prompting, **variables
            )
        except RenderError:
            raise
        except Exception as error:  # a template can raise any exception, on purpose or by mistake
            raise RenderError(f"the chat template raises an error for this conversation: {error}") from error

    def _aligned(self, conversation: CheckedConversation) -> list[tuple[int, Piece]]:
        """Return the rendered conversation as pieces: the template's own text is trusted, the strings are not."""
        hidden, real, slots = self._write_both(conversation)
        self._check_nothing_is_lost(conversation, {slots[int(i)] for i in _PLACEHOLDER.findall(hidden)})
        pieces: list[tuple[int, Piece]] = []
        position = 0
        texts = _PLACEHOLDER.split(hidden)  # text, slot, text, slot, ..., text
        for i, own in enumerate(texts):
            if i % 2 == 0:
                if not real.startswith(own, position):
                    raise RenderError(_DEPENDS_ON_STRINGS)
                pieces.append((-1, scaffold(own)))
                position += len(own)
                continue
            slot = slots[int(own)]
            following = texts[i + 1] + ("\ue000" if i + 2 < len(texts) else "")
            spelled = self._spelling(slot.value, real, position, following)
            if spelled is None:
                raise RenderError(
                    f"messages[{slot.message}]: the template changes the text {slot.value[:60]!r} in an unknown way; "
                    "use the renderer for this model family"
                )
            pieces.append((slot.message, text(spelled, slot.part)))
            position += len(spelled)
        if position != len(real):
            raise RenderError(_DEPENDS_ON_STRINGS)
        return pieces

    def _check_nothing_is_lost(self, conversation: CheckedConversation, written: set[_Slot]) -> None:
        """Raise if the template leaves out a part of the conversation other than reasoning in history."""
        if conversation.tools and not any(slot.message < 0 for slot in written):
            raise RenderError(
                "the template does not write tools, so the declared tools would be lost; remove the tools or use the "
                "renderer for this model family"
            )
        written_parts = {(slot.message, slot.part) for slot in written}
        for i, message in enumerate(conversation.messages):
            reasoning = message.reasoning if conversation.is_final(i) else None
            parts = ((Part.TEXT, message.text), (Part.REASONING, reasoning), (Part.TOOL_CALL, message.tool_calls))
            for part, content in parts:
                if content and (i, part) not in written_parts:
                    raise RenderError(
                        f"messages[{i}]: the template leaves out its {part.name.lower()}; remove this part or use the "
                        "renderer for this model family"
                    )

    @staticmethod
    def _spelling(value: str, real: str, position: int, following: str) -> str | None:
        """Return the form in which `real` has `value` at `position`, or None if it was changed in an unknown way.

        `following` is the format's text after the value. It ends with U+E000 if another string comes next.
        """
        for change in _KNOWN_CHANGES:
            spelled = change(value)
            rest = following.removesuffix("\ue000")
            ends = following.endswith("\ue000") or position + len(spelled) + len(rest) == len(real)
            if ends and real.startswith(spelled + rest, position):
                return spelled
        return None

    # ---- what `RendererCore` calls

    def check_written(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing, because `_check_nothing_is_lost` compares the conversation with the template's placeholders."""

    def pieces(self, conversation: CheckedConversation) -> list[tuple[int, Piece]]:
        pieces = self._aligned(conversation)
        if conversation.prompting:
            return pieces
        replies = [i for i, m in enumerate(conversation.messages) if m.role == "assistant"]
        starts = {self._start(conversation, pieces, i): i for i in replies}
        known = {start: i for start, i in starts.items() if start is not None}
        alone = {start: i for start, i in known.items() if self._is_alone(pieces, start, i, known)}
        return list(self._divided(conversation, pieces, alone))

    def _is_alone(self, pieces: list[tuple[int, Piece]], start: int, reply: int, starts: Iterable[int]) -> bool:
        """Return whether no other message begins between the first character of a reply and its stop token.

        If a template ends earlier replies in another way than the last one, the next stop token belongs to a later
        message. The text up to this token was not sampled.
        """
        position = 0
        for message, piece in pieces:
            end = position + len(piece.text)
            if end > start and piece.trusted:
                stop_at = piece.text.find(self.grammar.stops[0], max(0, start - position))
                if stop_at >= 0:
                    return not any(start < other <= position + stop_at for other in starts)
            elif end > start and message != reply:
                return False
            position = end
        return not any(start < other for other in starts)

    def _start(self, conversation: CheckedConversation, pieces: list[tuple[int, Piece]], index: int) -> int | None:
        """Return the position of the first character of reply `index` in the text of `pieces`.

        Return None if the prompt for the reply is not a prefix of this text.
        """
        prompting = CheckedConversation(conversation.messages[:index], conversation.tools, prompting=True)
        prompt = "".join(piece.text for _, piece in self._aligned(prompting))
        whole = "".join(piece.text for _, piece in pieces)
        return len(prompt) if whole.startswith(prompt) else None

    def _divided(
        self, conversation: CheckedConversation, pieces: list[tuple[int, Piece]], starts: Mapping[int, int]
    ) -> Iterator[tuple[int, Piece]]:
        """Yield the pieces, split where replies begin and end. The format's text inside a reply is marked as sampled.

        Args:
            starts: mapping from the position of a reply's first character to the index of the reply.
        """
        position, reply = 0, None
        for index, piece in pieces:
            rest = piece.text
            while rest or not piece.text:
                cut = min((s - position for s in starts if position < s < position + len(rest)), default=len(rest))
                if position in starts and reply is None:
                    reply = starts[position]
                    if conversation.is_final(reply):
                        yield reply, SEAM
                part, rest = rest[:cut], rest[cut:]
                position += len(part)
                if reply is None or not piece.trusted:
                    # Strings of a reply whose start is unknown carry no weight; `example` raises if it is trained.
                    owner = index if reply is None else reply
                    has_known_start = conversation.role(index) != "assistant" or reply is not None
                    yield owner, piece._replace(text=part, part=piece.part if has_known_start else Part.SCAFFOLD)
                else:
                    before, stop_token, after = part.partition(self.grammar.stops[0])
                    yield reply, markup(before, Part.TEXT)
                    if stop_token:
                        yield reply, stop(stop_token)
                        yield reply, scaffold(after)
                        reply = None
                if not piece.text:
                    break

    def example(
        self, conversation: CheckedConversation, weights: TokenWeights, encode: Encode | None = None
    ) -> Rendered:
        """Like `RendererCore.example`, but also checks the prompt of each trained reply.

        Raises:
            RenderError: a reply carries weight, but the template's prompt for this reply is not a prefix of the
                rendered conversation, or another message begins before the reply's stop token.
        """
        example = super().example(conversation, weights, encode)
        stops = {message for message, part in example.span_table.labels if part is Part.STOP}
        for i, weight in enumerate(weights.of_message):
            if conversation.role(i) != "assistant":
                continue  # the end of other turns is unknown, so only their text can carry weight
            if weight and i not in stops:
                raise RenderError(
                    f"messages[{i}]: this reply cannot be trained here, because the template does not write it between "
                    "its prompt and its stop token, as it would be sampled; train only the last message, or use "
                    "build_supervised_examples"
                )
        return example

    def opening(self, conversation: CheckedConversation, index: int) -> Pieces:
        return ()  # `pieces` already contains the opening

    @functools.cached_property
    def _primer(self) -> str:
        prompting = read_conversation([{"role": "user", "content": "q"}], prompting=True)
        prompt = "".join(piece.text for _, piece in self._aligned(prompting))
        start = prompt.rfind("<think>")
        return prompt[start:] if start >= 0 and self.grammar.block(Part.REASONING) else ""

    def primer(self, conversation: CheckedConversation, index: int) -> str:
        return self._primer

    def episode(self, *args: Any, **kwargs: Any) -> Any:
        raise RenderError(
            "the renderer 'template' cannot append to a conversation, so it has no episodes; use the renderer for this "
            "model family"
        )


def _arguments(call: ToolCall) -> Any:
    """Return the arguments of a call as a dictionary, which most templates expect.

    Arguments that are not a JSON object are returned unchanged.
    """
    return arguments_of(call) if is_object(call.function.arguments) else call.function.arguments


_SCHEMA_WORDS = frozenset(
    """
    type function name description strict parameters properties required title default examples enum const format
    nullable items prefixItems additionalProperties anyOf oneOf allOf not pattern minimum maximum minLength maxLength
    minItems maxItems uniqueItems return returns response $ref $defs definitions
    string number integer boolean array object null
    """.split()  # noqa: SIM905
)
"""Words of tool declarations that get no placeholder, because templates look them up or compare strings with them."""


def _shown_declaration(value: Any, show: Callable[[Any], Any]) -> Any:
    """Return a tool declaration in which `show` has replaced all strings except the words in `_SCHEMA_WORDS`.

    Names of properties are replaced too.
    """
    if isinstance(value, Mapping):
        return {_shown_declaration(k, show): _shown_declaration(v, show) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown_declaration(v, show) for v in value]
    return value if isinstance(value, str) and value in _SCHEMA_WORDS else show(value)


PRESETS: Sequence[tuple[str, type[base.Renderer], base.Options]] = (("template", Template, TemplateOptions()),)
