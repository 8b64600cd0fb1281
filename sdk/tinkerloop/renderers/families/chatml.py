"""ChatML, the chat format shared by the Qwen and Nemotron models: `<|im_start|>role\\n...<|im_end|>\\n`."""

from __future__ import annotations

from typing import ClassVar

from tinkerloop.messages import ChatMessage, CheckedConversation, Image
from tinkerloop.renderers import base
from tinkerloop.renderers.format import LEFT_OUT_BY_TEMPLATES
from tinkerloop.renderers.pieces import Part, Piece, Pieces, scaffold, stop


class ChatML(base.Renderer):
    """ChatML. The system message declares the tools, and consecutive tool results share one user turn."""

    leaves_out = LEFT_OUT_BY_TEMPLATES
    control = ("<|im_start|>", "<tool_response>", "</tool_response>")
    end: ClassVar[tuple[Piece, ...]] = (stop("<|im_end|>"), scaffold("\n"))
    """The pieces that end a turn: the stop token and the separator before the next turn."""
    result_head: ClassVar[str] = "\n<tool_response>\n"
    result_foot: ClassVar[str] = "\n</tool_response>"

    def header(self, role: str) -> str:
        return f"<|im_start|>{role}\n"

    def declarations(self, conversation: CheckedConversation) -> Pieces:
        """Return the pieces that declare the conversation's tools, with the instructions on how to call them."""
        raise NotImplementedError

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        if conversation.tools and conversation.role(0) != "system":
            yield from self.system(conversation, None)

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        if message.role == "tool":
            return self.tool_result(conversation, index)
        if message.role == "system" and index == 0:
            return self.system(conversation, message)
        return (scaffold(self.header(message.role)), *self.content(message), *self.end)

    def after_reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        return self.end[1:]

    def system(self, conversation: CheckedConversation, message: ChatMessage | None) -> Pieces:
        """Return the pieces of the system message: the text of `message`, if given, and then the tool declarations."""
        yield scaffold(self.header("system"))
        if message is not None:
            yield from self.content(message)
        if conversation.tools:
            yield scaffold("\n\n" if message is not None else "")
            yield from self.declarations(conversation)
        yield from self.end

    def tool_result(self, conversation: CheckedConversation, index: int) -> Pieces:
        is_first, is_last = conversation.role(index - 1) != "tool", conversation.role(index + 1) != "tool"
        head = scaffold("<|im_start|>user" + self.result_head if is_first else self.result_head)
        content, foot = self.content(conversation[index]), scaffold(self.result_foot)
        return (head, *content, foot, *self.end) if is_last else (head, *content, foot)


class VisionChatML(ChatML):
    """ChatML with images, each between `<|vision_start|>` and `<|vision_end|>`."""

    control = (*ChatML.control, "<|vision_start|>", "<|vision_end|>")

    def image(self, image: Image) -> Pieces:
        from tinkerloop.images.chunks import image_chunk
        from tinkerloop.images.processors import QWEN3_VL

        processor = self.image_processor or (None if self.model_name else QWEN3_VL)
        chunk = image_chunk(image.source, model=self.model_name, processor=processor)
        yield scaffold("<|vision_start|>")
        yield Piece("", Part.IMAGE, image=chunk)
        yield scaffold("<|vision_end|>")
