"""gpt-oss's chat format, Harmony: `<|start|>role<|channel|>channel<|message|>...<|end|>`.

A reply consists of one or more such messages. Presets: `gpt_oss_no_sysprompt`, and, with the official system message,
`gpt_oss_low_reasoning`, `gpt_oss_medium_reasoning` and `gpt_oss_high_reasoning`. The official system message contains
the current date. Here it contains a date only with `GptOssOptions(date=...)`, so that equal conversations give equal
tokens on every day.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from tinkerloop.errors import RenderError
from tinkerloop.messages import CheckedConversation, ToolCall
from tinkerloop.renderers import base
from tinkerloop.renderers.families.harmony import HARMONY_GRAMMAR, HarmonyParser
from tinkerloop.renderers.format import LEFT_OUT_BY_TEMPLATES
from tinkerloop.renderers.parsing.grammar import Grammar
from tinkerloop.renderers.parsing.reply_parser import ReplyParser
from tinkerloop.renderers.pieces import Part, Pieces, markup, scaffold, stop, text
from tinkerloop.renderers.tool_calls import harmony_recipient
from tinkerloop.renderers.tool_declarations import declare_for_harmony_calls


@dataclass(frozen=True)
class GptOssOptions(base.Options):
    effort: Literal["low", "medium", "high"] | None = None
    """The reasoning effort in the system message. With None, there is no system message."""
    date: str | None = None
    """The current date in the system message, such as `2025-08-05`. With None, the message has no date."""

    def __post_init__(self) -> None:
        self.check("effort", None, "low", "medium", "high")


class GptOss(base.Renderer):
    """gpt-oss's chat format. Reasoning is left out once a final answer follows. A reply has at most one tool call."""

    family = "gpt_oss"
    Options = GptOssOptions
    leaves_out = LEFT_OUT_BY_TEMPLATES | {
        "text": "the official template drops text beside a call once an answer follows"
    }
    roles = frozenset({"system", "developer", "user", "assistant", "tool"})

    def make_grammar(self) -> Grammar:
        return HARMONY_GRAMMAR

    def make_parser(self, conversation: CheckedConversation) -> ReplyParser:
        return HarmonyParser(self.grammar, self._token_texts, tools=conversation.tools)

    def header(self, role: str) -> str:
        return f"<|start|>{role}"

    def opening(self, conversation: CheckedConversation, index: int) -> Pieces:
        yield scaffold("<|start|>assistant")

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        if self.options.effort is not None:
            date = f"Current date: {self.options.date}\n" if self.options.date else ""
            channels = "# Valid channels: analysis, commentary, final. Channel must be included for every message."
            if conversation.tools:
                channels += "\nCalls to these tools must go to the commentary channel: 'functions'."
            yield scaffold(
                "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
                f"Knowledge cutoff: 2024-06\n{date}\nReasoning: {self.options.effort}\n\n{channels}<|end|>"
            )
        if conversation.role(0) not in ("system", "developer"):
            yield from self._developer(conversation, None)

    def _developer(self, conversation: CheckedConversation, index: int | None) -> Pieces:
        """Return the pieces of the developer message: the text of message `index`, if given, and tool declarations."""
        has_instructions = index is not None and bool(conversation[index].content)
        if not has_instructions and not conversation.tools:
            return
        yield scaffold("<|start|>developer<|message|>")
        if index is not None and has_instructions:
            yield scaffold("# Instructions\n\n")
            yield from self.content(conversation[index])
            yield scaffold("\n\n")
        if conversation.tools:
            yield from declare_for_harmony_calls(conversation.tools)
        yield stop("<|end|>")

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        if message.role in ("system", "developer"):
            if index:
                raise RenderError(
                    f"messages[{index}]: gpt_oss allows a system message only at the start of a conversation; move or "
                    "remove it"
                )
            yield from self._developer(conversation, index)
        elif message.role == "user":
            yield scaffold("<|start|>user<|message|>")
            yield from self.content(message)
            yield stop("<|end|>")
        else:
            yield scaffold("<|start|>")
            yield text(f"{self._called(conversation, index)} to=assistant", Part.SCAFFOLD)
            yield scaffold("<|channel|>commentary<|message|>")
            yield text(json.dumps(self.plain(message), ensure_ascii=False))  # quoted as in the official template
            yield stop("<|end|>")

    def _called(self, conversation: CheckedConversation, index: int) -> str:
        """Return the recipient of the call whose result is message `index`."""
        for message in reversed(conversation.messages[:index]):
            if message.tool_calls:
                return harmony_recipient(message.tool_calls[0], conversation.tools)
            if message.role == "assistant":
                break
        raise RenderError(f"messages[{index}]: a tool result needs an assistant message with a tool call before it")

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        if message.unparsed or len(message.tool_calls) > 1:
            raise RenderError(
                f"messages[{index}]: a gpt_oss reply must have at most one tool call and no unparsed tool call; remove "
                "the other calls"
            )
        calls = bool(message.tool_calls)
        later = (i for i in range(index + 1, len(conversation)) if not conversation.is_final(i))
        has_answer = any(conversation.role(i) == "assistant" and not conversation[i].tool_calls for i in later)
        text_with_call = self.plain(message) if calls else None
        has_begun = False
        for part, channel, content in (
            (Part.REASONING, "analysis", message.reasoning if conversation.is_final(index) or calls else None),
            (Part.TEXT, "commentary" if message.reasoning else "analysis", text_with_call),
        ):
            if (content or (content is not None and not calls)) and not (calls and has_answer):
                yield markup(f"{'<|start|>assistant' if has_begun else ''}<|channel|>{channel}<|message|>", part)
                yield text(content, part)
                yield markup("<|end|>", part)
                has_begun = True
        if calls:
            call = next(iter(message.tool_calls))
            yield markup("<|start|>assistant" if has_begun else "", Part.TOOL_CALL)
            yield text(f" to={harmony_recipient(call, conversation.tools)}", Part.TOOL_CALL)
            yield markup("<|channel|>commentary json<|message|>", Part.TOOL_CALL)
            yield text(call.function.arguments, Part.TOOL_CALL)
            yield stop("<|call|>")
            return
        yield markup(f"{'<|start|>assistant' if has_begun else ''}<|channel|>final<|message|>", Part.TEXT)
        yield from self.content(message)
        yield stop("<|return|>" if conversation.is_final(index) else "<|end|>")

    def call(self, call: ToolCall) -> Pieces:
        raise NotImplementedError(
            "call() is not available for gpt-oss, because its tool calls are separate messages: use reply()"
        )


PRESETS: tuple[tuple[str, type[base.Renderer], base.Options], ...] = (
    ("gpt_oss_no_sysprompt", GptOss, GptOssOptions()),
    ("gpt_oss_low_reasoning", GptOss, GptOssOptions("low")),
    ("gpt_oss_medium_reasoning", GptOss, GptOssOptions("medium")),
    ("gpt_oss_high_reasoning", GptOss, GptOssOptions("high")),
)
