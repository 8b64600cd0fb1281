"""`Format`: what a family states about its chat format. Everything else follows from it, in `base`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tinkerloop.errors import RenderError
from tinkerloop.messages import ChatMessage, CheckedConversation, Image, ToolCall
from tinkerloop.renderers.parsing.grammar import Grammar
from tinkerloop.renderers.pieces import Part, Piece, Pieces, marked, scaffold, text

if TYPE_CHECKING:
    from tinkerloop.tokenizers.loading import Tokenizer


@dataclass(frozen=True)
class Options:
    """What can be chosen about a family. The options and the tokenizer are the whole identity of a renderer."""

    def check(self, name: str, *known: object) -> None:
        """Refuses a value that a choice does not have; for a family's `__post_init__`."""
        if (value := getattr(self, name)) not in known:
            raise RenderError(f"{type(self).__name__}: {name} is one of {', '.join(map(repr, known))}; got {value!r}")


class Format:
    """How messages are written, as pieces, and what replies consist of, as a grammar.

    Families define `family`, `roles`, `control` and `make_grammar`, and write `message`, `reply`, `header` and, where
    they differ, `preamble`, `primer`, `after_reply`, `call` and `image`.
    """

    family: ClassVar[str]
    version: ClassVar[int] = 1
    """Part of the fingerprint; raised when the same messages get other tokens."""
    Options: ClassVar[type[Options]] = Options
    control: tuple[str, ...] = ()
    """Control tokens of the format, besides those of the grammar."""
    roles: ClassVar[frozenset[str]] = frozenset({"system", "user", "assistant", "tool"})
    supports_streaming: ClassVar[bool] = True
    reasoning_remedy: ClassVar[str] = "remove it from the message, or use a renderer that does not disable thinking"
    """The end of the error for a reply that reasons although its prompt rules that out: what to do instead."""

    tokenizer: Tokenizer
    options: Any
    name: str
    grammar: Grammar
    image_processor: Any
    model_name: str | None

    @property
    def has_extension_property(self) -> bool:
        """Whether a conversation's tokens begin with those of the same conversation cut after any earlier reply.

        Every reply is followed by what it asks for: results after tool calls, else a user's message. (A system message
        there takes the place of the stop token of some formats, and others move it to the front.)

        In formats whose header ends with a newline this is so unless the reply begins with one: official templates
        are encoded as one string, in which the two newlines of a turn in history may be one token.
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
        """What a reply consists of."""
        raise NotImplementedError

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        """What precedes the first message."""
        return ()

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        """Message `index`, unless an assistant's: its header, its content, its end."""
        raise NotImplementedError

    def header(self, role: str) -> str:
        """What announces a turn of `role`."""
        raise NotImplementedError

    def primer(self, conversation: CheckedConversation, index: int) -> str:
        """What the format itself writes of an assistant's turn `index`, between the header and what is sampled."""
        return ""

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        """What an assistant samples in turn `index`, up to and with the stop token."""
        raise NotImplementedError

    def after_reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        """What follows an assistant's stop token."""
        return ()

    def opening(self, conversation: CheckedConversation, index: int) -> Pieces:
        """What a prompt ends with and a supervised turn begins with; what is sampled starts on a token after it."""
        return (scaffold(self.header("assistant") + self.primer(conversation, index)),)

    def lifted(self, message: ChatMessage) -> ChatMessage:
        """The message with reasoning that its author wrote inline, as some data sets do, made a part of its own.

        Families whose official template does this override it; elsewhere the text stays text.
        """
        return message

    def content(self, message: ChatMessage) -> Pieces:
        """A message's text, and its images where the format has them."""
        pieces: list[Piece] = []
        for part in message.content:
            pieces += (text(part),) if isinstance(part, str) else self.image(part)
        return pieces

    def plain(self, message: ChatMessage) -> str:
        """The text of `content`, for what is written around it as one string; a text format refuses images."""
        return "".join(piece.text for piece in self.content(message))

    def image(self, image: Image) -> Pieces:
        """An image with the tokens around it."""
        raise RenderError(f"{self.name} is a text format and has no images")

    def call(self, call: ToolCall) -> Pieces:
        """One tool call, inside its block."""
        raise RenderError(f"{self.name} has no tool calls")

    def calls(self, message: ChatMessage) -> Pieces:
        """A message's tool calls, each in the block that the grammar has for them; unparsed ones as sampled."""
        calls = (*message.tool_calls, *message.unparsed)
        if not calls:
            return ()
        block = self.grammar.block(Part.TOOL_CALL)
        if block is None:
            raise RenderError(f"{self.name} has no tool calls")
        pieces: list[Piece] = []
        lead = block.lead if message.content else ""
        for call in calls:
            pieces.append(marked(lead + block.open, Part.TOOL_CALL))
            lead = block.between
            if isinstance(call, ToolCall):
                pieces.append(marked(block.head, Part.TOOL_CALL))
                pieces += self.call(call)
                pieces.append(marked(block.foot + block.close, Part.TOOL_CALL))
            else:
                inside = call.raw_text.removeprefix(block.open)
                pieces.append(text(inside.removesuffix(block.close), Part.TOOL_CALL))
                if inside.endswith(block.close):
                    pieces.append(marked(block.close, Part.TOOL_CALL))
        return pieces
