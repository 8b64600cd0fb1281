"""The chat format of Kimi K2 Thinking, K2.5 and K2.6: `<|im_user|>user<|im_middle|>...<|im_end|>`.

There is no white space between turns. Reasoning is kept after the last finished reply without tool calls; earlier
reasoning blocks are written empty. Presets: `kimi_k2`, `kimi_k25`, `kimi_k25_disable_thinking`, `kimi_k26`,
`kimi_k26_disable_thinking`, `kimi_k26_preserve_thinking`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinkerloop.errors import RenderError
from tinkerloop.messages import ChatMessage, CheckedConversation, Image, ToolCall, ToolSpec
from tinkerloop.renderers import base
from tinkerloop.renderers.format import REASONING_OF_HISTORY
from tinkerloop.renderers.kimi_declarations import sorted_json_declarations, typescript_declarations
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.pieces import Part, Piece, Pieces, markup, scaffold, stop, text
from tinkerloop.renderers.tool_calls import name_in_id, read_numbered_call, write_named_call

_REASONING = Block(Part.REASONING, "<think>", "</think>")
_CALL = Block(Part.TOOL_CALL, "<|tool_call_begin|>", "<|tool_call_end|>", separators=("<|tool_call_argument_begin|>",))
_ROLE_TOKENS = {"user": "<|im_user|>", "assistant": "<|im_assistant|>"}


@dataclass(frozen=True)
class KimiOptions(base.Options):
    default_system: str | None = "You are Kimi, an AI assistant created by Moonshot AI."
    """The system message for conversations that have none. With None, no system message is added."""
    primed: bool = False
    """If True, prompts end with `<think>` or `<think></think>`, as since K2.5. If False, the model writes the tags."""
    thinking: bool = True
    """If True, primed prompts open a reasoning block. If False, they contain an empty one."""
    preserve_thinking: bool = False
    """If True, history keeps all reasoning."""


class Kimi(base.Renderer):
    """Kimi's chat format. Every reply has a reasoning block, and tool calls are written with their ids."""

    family = "kimi"
    Options = KimiOptions
    version = 2
    leaves_out = REASONING_OF_HISTORY
    control = ("<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>")

    @property
    def has_extension_property(self) -> bool:
        return self.options.preserve_thinking or self.disables_reasoning

    @property
    def disables_reasoning(self) -> bool:
        return self.options.primed and not self.options.thinking

    def make_grammar(self) -> Grammar:
        return Grammar(
            ("<|im_end|>",),
            (_REASONING, _CALL),
            wrappers=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
            announcing=("<|tool_calls_section_begin|>",),
            eos=("[EOS]",),
            read_call=read_numbered_call,
        )

    def declarations(self, tools: Sequence[ToolSpec]) -> str:
        """Return the text that declares the tools. Calls are `functions.NAME:NUMBER` and JSON arguments."""
        return sorted_json_declarations(tools)

    def header(self, role: str) -> str:
        return f"{_ROLE_TOKENS.get(role, '<|im_system|>')}{role}<|im_middle|>"

    def _named_header(self, message: ChatMessage) -> Pieces:
        """Return the pieces of a message's header. If the message has a `name`, it replaces the name of the role."""
        if message.name is None:
            yield scaffold(self.header(message.role))
        else:
            yield scaffold(_ROLE_TOKENS.get(message.role, "<|im_system|>"))
            yield text(message.name, Part.SCAFFOLD)
            yield scaffold("<|im_middle|>")

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        if conversation.tools:
            yield scaffold("<|im_system|>tool_declare<|im_middle|>")
            yield text(self.declarations(conversation.tools), Part.SCAFFOLD)
            yield scaffold("<|im_end|>")
        if self.options.default_system is not None and conversation.role(0) != "system":
            yield scaffold(f"{self.header('system')}{self.options.default_system}<|im_end|>")

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        yield from self._named_header(message)
        if message.role == "tool":
            yield scaffold("## Return of ")
            yield text(_answered_call_id(message, index), Part.SCAFFOLD)
            yield scaffold("\n")
        yield from self.content(message)
        yield stop("<|im_end|>")

    def image(self, image: Image) -> Pieces:
        if not self.options.primed:
            raise RenderError(f"the chat format {self.name} does not support images; use kimi_k25 or later")
        from tinkerloop.images.chunks import image_chunk
        from tinkerloop.images.processors import KIMI_K25

        processor = self.image_processor or (None if self.model_name else KIMI_K25)
        chunk = image_chunk(image.source, model=self.model_name, processor=processor)
        yield scaffold("<|media_begin|>image<|media_content|>")
        yield Piece("", Part.IMAGE, image=chunk)
        yield scaffold("<|media_end|>\n")

    def opening(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index] if index < len(conversation) else ChatMessage("assistant", ())
        yield from self._named_header(message)
        yield scaffold(self.primer(conversation, index))

    def primer(self, conversation: CheckedConversation, index: int) -> str:
        if not self.options.primed:
            return ""
        return "<think>" if self.options.thinking else "<think></think>"

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        primer = self.primer(conversation, index)
        keeps_reasoning = conversation.is_final(index) or index > self._last_answer(conversation)
        if not primer.endswith("</think>"):
            yield markup("" if primer else "<think>", Part.REASONING)
            yield text((message.reasoning or "") if keeps_reasoning else "", Part.REASONING)
            yield markup("</think>", Part.REASONING)
        yield from self.content(message)
        if message.tool_calls or message.unparsed:
            yield markup("<|tool_calls_section_begin|>", Part.TOOL_CALL)
            yield from self.calls(message)
            yield markup("<|tool_calls_section_end|>", Part.TOOL_CALL)
        yield stop("<|im_end|>")

    def _last_answer(self, conversation: CheckedConversation) -> int:
        """Return the index of the last finished reply without tool calls, up to which reasoning blocks are emptied.

        Return -1 if all reasoning is kept.
        """
        if self.options.preserve_thinking:
            return -1
        answers = (
            i
            for i, m in enumerate(conversation.messages)
            if m.role == "assistant" and not m.tool_calls and not conversation.is_final(i)
        )
        return max(answers, default=-1)

    def call(self, call: ToolCall) -> Pieces:
        if call.id is None or name_in_id(call.id) != call.function.name:
            raise RenderError(
                f"the call of {call.function.name!r} has the id {call.id!r}. Kimi's chat format writes only the id, so "
                f"it must name the function; set an id like 'functions.{call.function.name}:0', and the same id as the "
                "'tool_call_id' of the result"
            )
        return write_named_call(call.id, "<|tool_call_argument_begin|>", call)


def _answered_call_id(message: ChatMessage, index: int) -> str:
    if message.tool_call_id is None:
        raise RenderError(f"messages[{index}]: a tool result needs a 'tool_call_id', the id of the call it belongs to")
    return message.tool_call_id


class KimiVision(Kimi):
    """The chat format of Kimi K2.5 and later, which also has images."""

    family = "kimi_k25"
    control = (*Kimi.control, "<|media_begin|>", "<|media_content|>", "<|media_end|>")

    def declarations(self, tools: Sequence[ToolSpec]) -> str:
        return typescript_declarations(tools)


_K25 = KimiOptions(default_system=None, primed=True)
_K25_OFF = KimiOptions(default_system=None, primed=True, thinking=False)
PRESETS: tuple[tuple[str, type[base.Renderer], base.Options], ...] = (
    ("kimi_k2", Kimi, KimiOptions()),
    ("kimi_k25", KimiVision, _K25),
    ("kimi_k25_disable_thinking", KimiVision, _K25_OFF),
    ("kimi_k26", KimiVision, _K25),
    ("kimi_k26_disable_thinking", KimiVision, _K25_OFF),
    ("kimi_k26_preserve_thinking", KimiVision, KimiOptions(None, primed=True, preserve_thinking=True)),
)
