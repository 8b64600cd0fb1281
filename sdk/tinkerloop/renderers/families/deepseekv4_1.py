"""DeepSeek-V4.1's chat format: `<｜System｜>...<｜User｜>...<｜Assistant｜><think>...</think>...<｜end▁of▁sentence｜>`.

Presets: `deepseekv4_1` (high reasoning effort), `deepseekv4_1_low_reasoning`, `deepseekv4_1_max_reasoning`,
`deepseekv4_1_preserve_thinking` (history keeps reasoning) and `deepseekv4_1_disable_thinking`.

All messages between two replies form one turn: tool results are `<tool_result>` blocks of a user turn. A tool call is
written in XML tags, each of which contains the control token `｜DSML｜`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinkerloop.messages import ChatMessage, CheckedConversation, UnparsedToolCall
from tinkerloop.renderers import base
from tinkerloop.renderers.format import LEFT_OUT_BY_TEMPLATES
from tinkerloop.renderers.normalization import extract_inline_reasoning
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.parsing.reply_parser import ReplyParser
from tinkerloop.renderers.pieces import Part, Pieces, markup, scaffold, stop, text
from tinkerloop.renderers.tool_calls import DSML, read_dsml_calls, write_dsml_calls
from tinkerloop.renderers.tool_declarations import declare_for_dsml_calls

_STOP = "<｜end▁of▁sentence｜>"
_REASONING = Block(Part.REASONING, "<think>", "</think>")
_CALLS = Block(Part.TOOL_CALL, DSML, _STOP, lead="\n\n<", separators=(DSML,))  # all calls, up to the end of the reply


@dataclass(frozen=True)
class DeepSeekV4Options(base.Options):
    effort: int | None = 75
    """The reasoning effort, from 1 to 100, at the start of every conversation. With None, replies do not reason."""
    preserve_thinking: bool = False
    """If True, history keeps all reasoning. If False, it does so only in conversations that declare tools."""

    def __post_init__(self) -> None:
        self.check("effort", None, *range(1, 101))


class DeepSeekV4(base.Renderer):
    """DeepSeek-V4.1's chat format. Without tools, only replies after the last user turn keep their reasoning."""

    family = "deepseekv4_1"
    Options = DeepSeekV4Options
    leaves_out = LEFT_OUT_BY_TEMPLATES
    reasoning_remedy = "use 'deepseekv4_1', or remove the reasoning"
    control = ("<｜begin▁of▁sentence｜>", "<｜System｜>", "<｜User｜>", "<｜Assistant｜>")

    @property
    def has_extension_property(self) -> bool:
        return self.disables_reasoning or self.options.preserve_thinking

    @property
    def disables_reasoning(self) -> bool:
        return self.options.effort is None

    def make_grammar(self) -> Grammar:
        return Grammar((_STOP,), (_REASONING, _CALLS))

    def make_parser(self, conversation: CheckedConversation) -> ReplyParser:
        return DsmlParser(self.grammar, self._token_texts, tools=conversation.tools)

    def normalize(self, message: ChatMessage) -> ChatMessage:
        return extract_inline_reasoning(message, trim="")

    def header(self, role: str) -> str:
        return {"system": "<｜System｜>", "assistant": "<｜Assistant｜>"}.get(role, "<｜User｜>")

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        yield scaffold("<｜begin▁of▁sentence｜>")
        if conversation.role(0) == "system" or conversation.tools or not self.disables_reasoning:
            yield scaffold(self.header("system"))
        if not self.disables_reasoning:
            yield scaffold(
                f"Reasoning Effort: {self.options.effort} (range 1-100, the higher the value, the more thorough the "
                "reasoning)\n\n"
            )
        if conversation.role(0) != "system":
            yield from self._declarations(conversation)

    def _declarations(self, conversation: CheckedConversation) -> Pieces:
        if conversation.tools:
            yield scaffold("\n\n")
            yield from declare_for_dsml_calls(conversation.tools)

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        if message.role == "system":
            yield scaffold(self.header("system") if index else "")
            yield from self.content(message)
            yield from self._declarations(conversation) if index == 0 else ()
            return
        continues = conversation.role(index - 1) in ("user", "tool")
        yield scaffold("\n\n" if continues else self.header("user"))
        yield scaffold("<tool_result>" if message.role == "tool" else "")
        yield from self.content(message)
        yield scaffold("</tool_result>" if message.role == "tool" else "")

    def primer(self, conversation: CheckedConversation, index: int) -> str:
        reasons = not self.disables_reasoning and self._keeps_reasoning(conversation, index)
        return "<think>" if reasons else "</think>"

    def _keeps_reasoning(self, conversation: CheckedConversation, index: int) -> bool:
        """Return whether no message but replies follows reply `index`, or history keeps its reasoning anyway."""
        later = (conversation.role(i) for i in range(index + 1, len(conversation)))
        return self.options.preserve_thinking or bool(conversation.tools) or all(role == "assistant" for role in later)

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        if self.primer(conversation, index) == "<think>":
            yield text(message.reasoning or "", Part.REASONING)
            yield markup("</think>", Part.REASONING)
        yield from self.content(message)
        if message.tool_calls:
            yield from write_dsml_calls(message.tool_calls)
        for call in message.unparsed:
            yield markup(_CALLS.lead, Part.TOOL_CALL)
            for i, field in enumerate(call.raw_text.split(DSML)):
                yield markup(DSML if i else "", Part.TOOL_CALL)
                yield text(field, Part.TOOL_CALL)
        yield stop(_STOP)


class DsmlParser(ReplyParser):
    """Parses replies whose tool calls are one block of DSML tags that ends with the reply."""

    def _close_all(self) -> bool:
        if self._block is not _CALLS:
            return super()._close_all()
        calls = read_dsml_calls(["".join(field) for field in self._fields])
        if isinstance(calls, str):
            self._calls.append(UnparsedToolCall(self._sampled_call(self._position), calls))
        else:
            self._calls += calls
        is_open = isinstance(calls, str) and "".join(self._fields[-1]).strip() != "calls>"
        self._broke_off_in = Part.TOOL_CALL if is_open else None
        self._block = None
        return is_open


PRESETS: tuple[tuple[str, type[base.Renderer], base.Options], ...] = (
    ("deepseekv4_1", DeepSeekV4, DeepSeekV4Options()),
    ("deepseekv4_1_low_reasoning", DeepSeekV4, DeepSeekV4Options(50)),
    ("deepseekv4_1_max_reasoning", DeepSeekV4, DeepSeekV4Options(100)),
    ("deepseekv4_1_disable_thinking", DeepSeekV4, DeepSeekV4Options(None)),
    ("deepseekv4_1_preserve_thinking", DeepSeekV4, DeepSeekV4Options(preserve_thinking=True)),
)
