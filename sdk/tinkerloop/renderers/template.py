"""`template`: any Hugging Face `chat_template`, with weights and safety proved on each conversation.

The template is run on a copy of the conversation in which every string is a placeholder. What it writes around the
placeholders is the format's own text; the placeholders become the strings themselves, encoded as ordinary text. The
result is compared with what the template writes for the real strings. Where they differ (the template looked into a
string, or changed it in a way that is not known here) the conversation is refused; nothing is guessed. A reply is
trained only where the template's own prompt for it is a beginning of what it writes.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from tinkerloop.errors import RenderError
from tinkerloop.messages import CheckedConversation, Image, ToolCall, read_conversation
from tinkerloop.renderers import base
from tinkerloop.renderers.assembly import Encode
from tinkerloop.renderers.families.qwen3 import JSON_CALL
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.pieces import SEAM, Part, Piece, Pieces, marked, scaffold, stop, text
from tinkerloop.renderers.rendered import Rendered
from tinkerloop.renderers.tool_calls import arguments_of, is_object, read_json_call
from tinkerloop.renderers.tool_declarations import openai_declaration
from tinkerloop.renderers.train_on_what import TokenWeights

_PLACEHOLDER = re.compile("\ue000(\\d+)\ue001")
_AS_WRITTEN: tuple[Callable[[str], str], ...] = (
    lambda s: s,
    str.strip,
    lambda s: s.lstrip("\n"),
    lambda s: s.strip("\n"),
    str.lstrip,
    str.rstrip,
    lambda s: json.dumps(s, ensure_ascii=False)[1:-1],
    lambda s: json.dumps(s)[1:-1],
)
"""What templates do with strings, the likeliest first."""


@dataclass(frozen=True)
class TemplateOptions(base.Options):
    chat_template: str | None = None
    """A template in place of the tokenizer's own."""
    variables: tuple[tuple[str, Any], ...] = ()
    """What the template reads besides messages and tools, e.g. `(("enable_thinking", False),)`."""
    today: date | None = None
    """The date for templates that ask for one; without it they must have a default."""


@dataclass(frozen=True)
class _Slot:
    """A string of the conversation, its message (-1 for a tool's declaration) and what it is."""

    value: str
    message: int
    part: Part


class Template(base.Renderer):
    """Renders with the tokenizer's `chat_template`, or with another one given in the options."""

    family = "template"
    Options = TemplateOptions

    def _prepare(self) -> None:
        source = self.options.chat_template
        source = getattr(self.tokenizer, "chat_template", None) if source is None else source
        if not isinstance(source, str):
            raise RenderError("the tokenizer has no chat_template; give one with TemplateOptions(chat_template=...)")
        self._template = compiled(source)
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
        written, _, _ = self._run(read_conversation(probe))
        if "\ue001" not in written:
            raise RenderError("the template does not write the text of messages whose content is a string")
        end = self._end_of(written[written.rindex("\ue001") + 1 :])
        if end is None:
            raise RenderError("the template ends a reply without a control token, so the end could not be learned")
        return Grammar((end,), tuple(blocks), read_call=read_json_call)

    def _end_of(self, tail: str) -> str | None:
        """The first control token in the text after a reply."""
        found = [(tail.index(token), -len(token), token) for token in self.control if token in tail]
        return min(found)[2] if found else None

    # ---- running the template

    def _run(self, conversation: CheckedConversation) -> tuple[str, str, list[_Slot]]:
        """(with placeholders, with the real strings, what the placeholders stand for)."""
        slots: dict[_Slot, int] = {}  # equal strings are one, since templates compare them

        def hide(value: Any, message: int, part: Part) -> Any:
            if isinstance(value, str):
                if "\ue000" in value:
                    raise RenderError("the text holds U+E000, which this renderer marks strings with")
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

    def _write(self, conversation: CheckedConversation, see: Callable[[Any, int, Part], Any]) -> str:
        """What the template writes for the conversation as `see` shows it."""
        messages = []
        for i, m in enumerate(conversation.messages):
            if any(isinstance(part, Image) for part in m.content):
                raise RenderError(f"messages[{i}]: 'template' renders text alone")
            message: dict[str, Any] = {"role": m.role, "content": see(m.text, i, Part.TEXT)}
            if m.reasoning is not None:
                message["reasoning_content"] = see(m.reasoning, i, Part.REASONING)
            if m.unparsed:
                raise RenderError(f"messages[{i}]: a template cannot write an unparsed tool call")
            if m.tool_calls:
                message["tool_calls"] = [
                    {
                        "type": "function",
                        "id": see(call.id, i, Part.TOOL_CALL),
                        "function": {
                            "name": see(call.function.name, i, Part.TOOL_CALL),
                            "arguments": see(_arguments(call), i, Part.TOOL_CALL),
                        },
                    }
                    for call in m.tool_calls
                ]
            for key in ("tool_call_id", "name"):
                if getattr(m, key) is not None:
                    message[key] = see(getattr(m, key), i, Part.SCAFFOLD)
            messages.append(message)
        tools = [
            _declared(openai_declaration(t), lambda value: see(value, -1, Part.SCAFFOLD)) for t in conversation.tools
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
        except Exception as error:  # whatever a template raises, of its own or by mistake
            raise RenderError(f"the chat template refuses this conversation: {error}") from error

    def _aligned(self, conversation: CheckedConversation) -> list[tuple[int, Piece]]:
        """The template's text as pieces: its own trusted, the conversation's strings not."""
        hidden, real, slots = self._run(conversation)
        self._check_nothing_is_lost(conversation, {slots[int(i)] for i in _PLACEHOLDER.findall(hidden)})
        pieces: list[tuple[int, Piece]] = []
        at = 0
        texts = _PLACEHOLDER.split(hidden)  # text, slot, text, slot, ..., text
        for i, own in enumerate(texts):
            if i % 2 == 0:
                if not real.startswith(own, at):
                    raise RenderError("the template writes something else depending on what a string says")
                pieces.append((-1, scaffold(own)))
                at += len(own)
                continue
            slot = slots[int(own)]
            following = texts[i + 1] + ("\ue000" if i + 2 < len(texts) else "")
            spelled = self._spelling(slot.value, real, at, following)
            if spelled is None:
                raise RenderError(
                    f"messages[{slot.message}]: the template changes {slot.value[:60]!r} in an unknown way"
                )
            pieces.append((slot.message, text(spelled, slot.part)))
            at += len(spelled)
        if at != len(real):
            raise RenderError("the template writes something else depending on what a string says")
        return pieces

    def _check_nothing_is_lost(self, conversation: CheckedConversation, written: set[_Slot]) -> None:
        """Refuses a template that leaves out what a conversation says, but for reasoning in history."""
        if conversation.tools and not any(slot.message < 0 for slot in written):
            raise RenderError("the template has no words for tools, so the declared ones would be lost")
        kinds = {(slot.message, slot.part) for slot in written}
        for i, message in enumerate(conversation.messages):
            learned = message.reasoning if conversation.is_final(i) else None
            told = ((Part.TEXT, message.text), (Part.REASONING, learned), (Part.TOOL_CALL, message.tool_calls))
            for part, said in told:
                if said and (i, part) not in kinds:
                    raise RenderError(
                        f"messages[{i}]: the template leaves out its {part.name.lower()}, which would be lost"
                    )

    @staticmethod
    def _spelling(value: str, real: str, at: int, following: str) -> str | None:
        """How `value` is written at `at`, given the format's text after it (up to U+E000, where another string is)."""
        for change in _AS_WRITTEN:
            spelled = change(value)
            rest = following.removesuffix("\ue000")
            ends = following.endswith("\ue000") or at + len(spelled) + len(rest) == len(real)
            if ends and real.startswith(spelled + rest, at):
                return spelled
        return None

    # ---- what the base asks for

    def pieces(self, conversation: CheckedConversation) -> list[tuple[int, Piece]]:
        pieces = self._aligned(conversation)
        if conversation.prompting:
            return pieces
        replies = [i for i, m in enumerate(conversation.messages) if m.role == "assistant"]
        starts = {self._start(conversation, pieces, i): i for i in replies}
        return list(self._divided(conversation, pieces, {at: i for at, i in starts.items() if at is not None}))

    def _start(self, conversation: CheckedConversation, pieces: list[tuple[int, Piece]], index: int) -> int | None:
        """The character at which reply `index` begins, if the template's prompt for it begins this very text."""
        asked = CheckedConversation(conversation.messages[:index], conversation.tools, prompting=True)
        prompt = "".join(piece.text for _, piece in self._aligned(asked))
        whole = "".join(piece.text for _, piece in pieces)
        return len(prompt) if whole.startswith(prompt) else None

    def _divided(
        self, conversation: CheckedConversation, pieces: list[tuple[int, Piece]], starts: Mapping[int, int]
    ) -> Iterator[tuple[int, Piece]]:
        """The pieces, cut where replies begin and end, and what lies between marked as theirs."""
        at, reply = 0, None
        for index, piece in pieces:
            rest = piece.text
            while rest or not piece.text:
                cut = min((s - at for s in starts if at < s < at + len(rest)), default=len(rest))
                if at in starts and reply is None:
                    reply = starts[at]
                    if conversation.is_final(reply):
                        yield reply, SEAM
                part, rest = rest[:cut], rest[cut:]
                at += len(part)
                if reply is None or not piece.trusted:
                    # A string of a reply whose start is unknown is not trained: see `example`.
                    owner = index if reply is None else reply
                    known = conversation.role(index) != "assistant" or reply is not None
                    yield owner, piece._replace(text=part, part=piece.part if known else Part.SCAFFOLD)
                else:
                    before, found, after = part.partition(self.grammar.stops[0])
                    yield reply, marked(before, Part.TEXT)
                    if found:
                        yield reply, stop(found)
                        yield reply, scaffold(after)
                        reply = None
                if not piece.text:
                    break

    def example(
        self, conversation: CheckedConversation, weights: TokenWeights, encode: Encode | None = None
    ) -> Rendered:
        """Refuses to train what has not been proved to be sampled."""
        example = super().example(conversation, weights, encode)
        stops = {message for message, part in example.marks.kinds if part is Part.STOP}
        for i, weight in enumerate(weights.of_message):
            if conversation.role(i) != "assistant":
                continue  # of other turns the template does not tell the end: their text alone can be trained
            if weight and i not in stops:
                raise RenderError(
                    f"messages[{i}]: the template writes this reply otherwise than its own prompt begins it, so it "
                    "cannot be trained here; train the last message alone, or use build_supervised_examples"
                )
        return example

    def opening(self, conversation: CheckedConversation, index: int) -> Pieces:
        yield from ()  # `pieces` already ends with it

    @functools.cached_property
    def _primer(self) -> str:
        asked = read_conversation([{"role": "user", "content": "q"}], prompting=True)
        opened = "".join(piece.text for _, piece in self._aligned(asked))
        at = opened.rfind("<think>")
        return opened[at:] if at >= 0 and self.grammar.block(Part.REASONING) else ""

    def primer(self, conversation: CheckedConversation, index: int) -> str:
        return self._primer

    def episode(self, *args: Any, **kwargs: Any) -> Any:
        raise RenderError(
            "'template' cannot append to a conversation; episodes need a renderer of the model's own family"
        )


def _arguments(call: ToolCall) -> Any:
    """Arguments as an object, which is what most templates expect; as they are, if they are none."""
    return arguments_of(call) if is_object(call.function.arguments) else call.function.arguments


_SCHEMA_WORDS = frozenset(
    """
    type function name description strict parameters properties required title default examples enum const format
    nullable items prefixItems additionalProperties anyOf oneOf allOf not pattern minimum maximum minLength maxLength
    minItems maxItems uniqueItems return returns response $ref $defs definitions
    string number integer boolean array object null
    """.split()  # noqa: SIM905
)
"""What templates look up in a declaration, and the types that they compare with."""


def _declared(value: Any, see: Callable[[Any], Any]) -> Any:
    """A declaration whose strings, the names of properties too, are seen through `see`; words of JSON schema stay."""
    if isinstance(value, Mapping):
        return {_declared(k, see): _declared(v, see) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_declared(v, see) for v in value]
    return value if isinstance(value, str) and value in _SCHEMA_WORDS else see(value)


@functools.lru_cache(maxsize=16)
def compiled(source: str) -> Any:
    """A chat template as transformers runs it: sandboxed, with the few functions templates may use."""
    from jinja2 import TemplateSyntaxError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    class Generation(Extension):
        """`{% generation %}`, with which some templates mark replies; what is trained is found otherwise here."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise RenderError(f"the chat template refuses this conversation: {message}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise RenderError(f"the chat template is not valid: {error.message} in line {error.lineno}") from error


PRESETS: Sequence[tuple[str, type[base.Renderer], base.Options]] = (("template", Template, TemplateOptions()),)
