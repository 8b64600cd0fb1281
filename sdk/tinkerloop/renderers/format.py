"""`Format`: how a family describes its chat format. `core` derives everything else from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tinkerloop.errors import RenderError
from tinkerloop.messages import ChatMessage, CheckedConversation, Image, ToolCall
from tinkerloop.renderers.parsing.grammar import Grammar
from tinkerloop.renderers.pieces import Part, Piece, Pieces, markup, scaffold, text

if TYPE_CHECKING:
    from tinkerloop.tokenizers.loading import Tokenizer


@dataclass(frozen=True)
class Options:
    """The choices that a family offers. The class, its options and the tokenizer decide every token of a renderer."""

    def check(self, name: str, *known: object) -> None:
        """Refuse a value of field `name` that is not one of `known`; for a family's `__post_init__`.

        Raises:
            RenderError: the value is not one of `known`.
        """
        if (value := getattr(self, name)) not in known:
            raise RenderError(f"{type(self).__name__}: {name} is one of {', '.join(map(repr, known))}; got {value!r}")


class Format:
    """The way messages are written, as pieces, and the parts that replies consist of, as a grammar.

    Families define `family`, `roles`, `control` and `make_grammar`, write `message`, `reply` and `header`, and override
    the other methods where their format differs. A conversation is written as

        preamble  message(0)  opening(1) reply(1) after_reply(1)  message(2)  opening(3) ...

    where messages 1 and 3 are the assistant's. A prompt for reply 3 ends with `opening(3)`.
    """

    family: ClassVar[str]
    version: ClassVar[int] = 1
    """Part of the fingerprint; increased when the same messages get other tokens."""
    Options: ClassVar[type[Options]] = Options
    control: tuple[str, ...] = ()
    """Control tokens of the format, besides those of the grammar."""
    roles: ClassVar[frozenset[str]] = frozenset({"system", "user", "assistant", "tool"})
    supports_streaming: ClassVar[bool] = True
    reasoning_remedy: ClassVar[str] = "remove it from the message, or use a renderer that does not disable reasoning"
    """The end of the error for a reply that reasons although its prompt rules that out: what to do instead."""

    tokenizer: Tokenizer
    options: Any
    name: str
    grammar: Grammar
    image_processor: Any
    model_name: str | None

    @property
    def has_extension_property(self) -> bool:
        """True if a conversation's tokens begin with the tokens of the same conversation cut after any earlier reply.

        This assumes that a reply is followed by what it asks for: results after tool calls, otherwise a user's message.
        (A system message in this place suppresses the stop token of some formats; other formats move it to the front.)

        In formats whose header ends with a newline it also assumes that replies do not begin with a newline: official
        templates are encoded as one string, in which the two newlines of a turn in history may be one token.
        """
        return False

    @property
    def disables_reasoning(self) -> bool:
        """True if every prompt of this format rules reasoning out, e.g. by an empty `<think></think>` block."""
        return False

    def rules_out_reasoning(self, conversation: CheckedConversation, index: int) -> bool:
        """Return whether the prompt for reply `index` rules reasoning out."""
        return self.disables_reasoning

    def reasoning_refused(self, index: int) -> RenderError:
        """Return the error for reply `index`, which reasons although no reply to its prompt does."""
        return RenderError(
            f"messages[{index}]: the prompt of {self.name} for this reply rules reasoning out, so no reasoning can be "
            f"trained here; {self.reasoning_remedy}"
        )

    def make_grammar(self) -> Grammar:
        """Return the blocks that replies consist of, and the tokens or texts that end them."""
        raise NotImplementedError

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        """Return the pieces before the first message."""
        return ()

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        """Return the pieces of message `index`, which is not the assistant's: its header, its content, its end."""
        raise NotImplementedError

    def header(self, role: str) -> str:
        """Return the text that announces a turn of `role`."""
        raise NotImplementedError

    def primer(self, conversation: CheckedConversation, index: int) -> str:
        """Return the text between the header of assistant turn `index` and its first sampled token, e.g. `<think>`."""
        return ""

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        """Return the pieces that the model samples in turn `index`, the stop token included."""
        raise NotImplementedError

    def after_reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        """Return the pieces between the stop token of reply `index` and the next turn."""
        return ()

    def opening(self, conversation: CheckedConversation, index: int) -> Pieces:
        """Return the end of the prompt for reply `index`, after which sampling begins; examples hold it too."""
        return (scaffold(self.header("assistant") + self.primer(conversation, index)),)

    def normalize(self, message: ChatMessage) -> ChatMessage:
        """Return the message as the official template sees it, e.g. trimmed, or with inline reasoning extracted.

        Families whose template changes messages override this; see `normalization`.
        """
        return message

    def content(self, message: ChatMessage) -> Pieces:
        """Return a message's text and images.

        Raises:
            RenderError: there is an image, and the format has no images.
        """
        pieces: list[Piece] = []
        for part in message.content:
            pieces += (text(part),) if isinstance(part, str) else self.image(part)
        return pieces

    def plain(self, message: ChatMessage) -> str:
        """Return the content as one string, for formats that quote or search it."""
        return "".join(piece.text for piece in self.content(message))

    def image(self, image: Image) -> Pieces:
        """Return an image and the control tokens around it."""
        raise RenderError(
            f"{self.name} is a text format and has no images; remove the image or use a vision model's format"
        )

    def call(self, call: ToolCall) -> Pieces:
        """Return one tool call, without the tags around it."""
        raise RenderError(f"{self.name} has no tool calls")

    def calls(self, message: ChatMessage) -> Pieces:
        """Return a message's tool calls, each with the tags that the grammar has for them; unparsed calls as sampled.

        Raises:
            RenderError: there are calls, and the format has no tool calls.
        """
        calls = (*message.tool_calls, *message.unparsed)
        if not calls:
            return ()
        block = self.grammar.block(Part.TOOL_CALL)
        if block is None:
            raise RenderError(f"{self.name} has no tool calls")
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
                pieces.append(text(inside.removesuffix(block.close), Part.TOOL_CALL))
                if inside.endswith(block.close):
                    pieces.append(markup(block.close, Part.TOOL_CALL))
        return pieces
