"""`Format`: the methods that describe one chat format. `core.RendererCore` derives everything else from them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tinkerloop.errors import RenderError
from tinkerloop.messages import ChatMessage, CheckedConversation, Image, ToolCall
from tinkerloop.renderers.parsing.grammar import Grammar
from tinkerloop.renderers.pieces import Part, Piece, Pieces, markup, scaffold, text

if TYPE_CHECKING:
    from tinkerloop.tokenizers.loading import Tokenizer


REASONING_OF_HISTORY = {"reasoning": "the official template leaves out the reasoning of earlier replies"}
LEFT_OUT_BY_TEMPLATES = REASONING_OF_HISTORY | {
    "name": "the official template does not write names",
    "tool_call_id": "results follow in the order of the calls",
}
"""The value of `Format.leaves_out` for most official templates."""


@dataclass(frozen=True)
class Options:
    """Base class for the options of a chat format.

    The class of a renderer, its options and its tokenizer determine all of its tokens.
    """

    def check(self, name: str, *known: object) -> None:
        """Check that the value of field `name` is one of `known`. Subclasses call this in `__post_init__`.

        Raises:
            RenderError: the value is not one of `known`.
        """
        if (value := getattr(self, name)) not in known:
            raise RenderError(
                f"{type(self).__name__}: {name} must be one of {', '.join(map(repr, known))}, got {value!r}"
            )


class Format:
    """Base class that describes a chat format: how messages are written as pieces, and the grammar of its replies.

    A subclass defines `family`, `roles`, `control`, `make_grammar`, `message`, `reply` and `header`. It overrides other
    methods if its format differs from their defaults. A conversation is written as

        preamble  message(0)  opening(1) reply(1) after_reply(1)  message(2)  opening(3) ...

    where messages 1 and 3 are assistant messages. A prompt for reply 3 ends with `opening(3)`.
    """

    family: ClassVar[str]
    version: ClassVar[int] = 1
    """Version of the format, part of the fingerprint. Increase it when a change gives messages different tokens."""
    Options: ClassVar[type[Options]] = Options
    control: tuple[str, ...] = ()
    """Control tokens of the format (such as `<|im_end|>`) that are not in its grammar."""
    roles: ClassVar[frozenset[str]] = frozenset({"system", "user", "assistant", "tool"})
    supports_streaming: ClassVar[bool] = True
    leaves_out: ClassVar[Mapping[str, str]] = {}
    """The parts of messages that the format leaves out on purpose, each with the reason.

    The keys are `name`, `tool_call_id`, and `reasoning` and `text` of replies before the last message. If any other
    part is not in the pieces, rendering raises an error. Leave out `tool_call_id` only if results are identified by
    their order; results in another order then raise an error.
    """
    reasoning_remedy: ClassVar[str] = "remove it from the message, or use a renderer that does not disable reasoning"
    """Advice at the end of the error message for a reply with reasoning whose prompt rules reasoning out."""

    tokenizer: Tokenizer
    options: Any
    name: str
    grammar: Grammar
    image_processor: Any
    model_name: str | None

    @property
    def has_extension_property(self) -> bool:
        """True if the conversation up to any earlier reply is rendered to a prefix of the whole conversation's tokens.

        It is assumed that tool results follow a reply with tool calls, and that a user message follows any other reply.
        (If a system message follows instead, some formats omit the stop token; others move the message to the front.)

        For formats whose header ends with a newline, it is also assumed that no reply begins with a newline. The whole
        output of an official template is encoded as one string, in which the header's newline and the reply's first
        newline may become one token.
        """
        return False

    @property
    def disables_reasoning(self) -> bool:
        """True if every prompt of this format rules reasoning out, e.g. with an empty `<think></think>` block."""
        return False

    @property
    def reply_tags(self) -> Sequence[str]:
        """The control tokens that can be inside a reply, such as `<tool_call>`. `tags_in_replies` concerns them."""
        return self.grammar.tags

    def rules_out_reasoning(self, conversation: CheckedConversation, index: int) -> bool:
        """Return whether the prompt for reply `index` rules reasoning out."""
        return self.disables_reasoning

    def reasoning_refused(self, index: int) -> RenderError:
        """Return the error for reply `index`, which has reasoning although its prompt rules reasoning out."""
        return RenderError(
            f"messages[{index}]: this reply has reasoning, but its prompt rules reasoning out in the chat format "
            f"{self.name}, so the reasoning cannot be trained; {self.reasoning_remedy}"
        )

    def make_grammar(self) -> Grammar:
        """Return the grammar of replies: their blocks, and the tokens or texts that end a reply."""
        raise NotImplementedError

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        """Return the pieces before the first message."""
        return ()

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        """Return the pieces of message `index`, which is not an assistant message: header, content and end."""
        raise NotImplementedError

    def header(self, role: str) -> str:
        """Return the text that begins a turn of `role`, e.g. `<|im_start|>user` and a newline."""
        raise NotImplementedError

    def primer(self, conversation: CheckedConversation, index: int) -> str:
        """Return the text between the header of assistant turn `index` and its first sampled token, e.g. `<think>`."""
        return ""

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        """Return the pieces of turn `index` that the model samples, including the stop token."""
        raise NotImplementedError

    def after_reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        """Return the pieces between the stop token of reply `index` and the next turn."""
        return ()

    def opening(self, conversation: CheckedConversation, index: int) -> Pieces:
        """Return the pieces at the end of the prompt for reply `index`: by default, the header and the primer.

        Sampling begins after these pieces. Examples contain them too.
        """
        return (scaffold(self.header("assistant") + self.primer(conversation, index)),)

    def normalize(self, message: ChatMessage) -> ChatMessage:
        """Return the message with the changes that the official template makes before it writes a message.

        Examples are trimming and the extraction of inline reasoning; `normalization` has functions for both.
        """
        return message

    def content(self, message: ChatMessage) -> Pieces:
        """Return the pieces of a message's text and images.

        Raises:
            RenderError: the message has an image, but the format does not support images.
        """
        pieces: list[Piece] = []
        for part in message.content:
            pieces += (text(part),) if isinstance(part, str) else self.image(part)
        return pieces

    def plain(self, message: ChatMessage) -> str:
        """Return the content of a message as one string, for formats that quote the content or search in it."""
        return "".join(piece.text for piece in self.content(message))

    def image(self, image: Image) -> Pieces:
        """Return the pieces of an image and of the control tokens around it."""
        raise RenderError(
            f"the chat format {self.name} has no images; remove the image or use the format of a vision model"
        )

    def call(self, call: ToolCall) -> Pieces:
        """Return the pieces of one tool call, without the tags around it."""
        raise RenderError(f"the chat format {self.name} has no tool calls; remove the call or use another format")

    def calls(self, message: ChatMessage) -> Pieces:
        """Return the pieces of a message's tool calls with the tags around them. Unparsed calls stay as sampled.

        Raises:
            RenderError: the message has tool calls, but the format has none.
        """
        calls = (*message.tool_calls, *message.unparsed)
        if not calls:
            return ()
        block = self.grammar.block(Part.TOOL_CALL)
        if block is None:
            raise RenderError(f"the chat format {self.name} has no tool calls; remove the call or use another format")
        pieces: list[Piece] = []
        lead = block.lead if message.content else ""
        for call in calls:
            pieces.append(markup(lead + block.open, Part.TOOL_CALL))
            lead = block.between
            if isinstance(call, ToolCall):
                pieces.append(markup(block.head, Part.TOOL_CALL))
                pieces += self.call(call)
                pieces.append(markup(block.foot + block.close, Part.TOOL_CALL))
            else:
                inside = call.raw_text.removeprefix(block.open)
                body = inside.removesuffix(block.close)
                tags = "|".join(map(re.escape, block.separators))
                fields = re.split(f"({tags})", body) if tags else [body]
                for i, field in enumerate(fields):  # texts and separators in turn
                    pieces.append(markup(field, Part.TOOL_CALL) if i % 2 else text(field, Part.TOOL_CALL))
                if inside.endswith(block.close):
                    pieces.append(markup(block.close, Part.TOOL_CALL))
        return pieces


class NoReasoning(Format):
    """Base class, beside `Renderer`, for the formats of models that do not reason. Most keep history as it is."""

    reasoning_remedy = "remove it from the message, or use the format of a model that reasons"

    @property
    def has_extension_property(self) -> bool:
        return True

    @property
    def disables_reasoning(self) -> bool:
        return True
