"""`AppendingRenderer`: appends messages to a sampled reply, and checks that nothing before them is written differently.

This class appends in formats that write each message by itself. The renderer `template` overrides its method, because a
chat template writes a conversation only as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, repeat

from tinkerloop.errors import EpisodeError, RenderError
from tinkerloop.messages import CheckedConversation
from tinkerloop.renderers.core import RendererCore
from tinkerloop.renderers.parsing.parsed import Parsed, ParseTermination
from tinkerloop.renderers.pieces import Part, Piece, scaffold


class RewrittenError(EpisodeError):
    """Error for a message that the format writes in another way once new messages follow it."""


class AppendingRenderer(RendererCore):
    """A renderer that appends messages to a sampled reply. `Episode` uses it."""

    def following(
        self, conversation: CheckedConversation, index: int, parsed: Parsed, first: int
    ) -> list[tuple[int, Piece]]:
        """Return the pieces to append after the sampled ids of reply `index`.

        These are the missing end of the reply, the new messages and the opening of the next reply.

        Args:
            conversation: the conversation with the new messages, which follow reply `index`.
            parsed: the sampled reply.
            first: the index of the first message that may have been sampled since the last user message.

        Raises:
            RewrittenError: the format now writes a sampled reply in another way, or a new message in another place.
            RenderError: the format cannot express a new message.
        """
        roles = {message.role for message in conversation.messages[index + 1 :]}
        if "system" in roles or not self.has_extension_property:
            replies = range(first if "user" in roles else index, index + 1)
            self._check_unchanged(conversation, [i for i in replies if conversation.role(i) == "assistant"])
        pieces: list[tuple[int, Piece]] = []
        new = [piece for piece in self.message(conversation, index + 1) if piece.text or piece.image]
        header = scaffold(self.header(conversation[index + 1].role))
        if header.text in self.grammar.stops:  # the reply may end with it; without it, the message must begin with it
            written = new[1:] if new[:1] == [header] else new
            new = written if self.decode(parsed.ids[-1:]) == header.text else [header, *written]
        elif not self._is_stopped(parsed):
            reply = self.reply(_without_reasoning(finished(conversation, index)), index)
            stops = [piece for piece in reply if piece.part is Part.STOP]
            pieces += [(index, piece._replace(part=Part.SCAFFOLD)) for piece in stops]
        pieces += zip(repeat(index), self.after_reply(conversation, index))
        pieces += zip(repeat(index + 1), new)
        end = len(conversation)
        for i in range(index + 2, end):
            pieces += zip(repeat(i), self.message(conversation, i))
        self.check_written(conversation, pieces, index + 1)
        pieces += zip(repeat(end), self.opening(conversation, end))
        return pieces

    def _check_unchanged(self, conversation: CheckedConversation, replies: Sequence[int]) -> None:
        """Raise if appending is not enough, because a sampled reply is now written in another way.

        Appending is not enough either if the format writes a new message in another place, e.g. if it moves a system
        message to the front.

        Args:
            conversation: the conversation with the new messages, which follow the last of `replies`.
        """
        sampled = ((i, self._written(finished(conversation, i), i)) for i in replies)
        changed = (i for i, text in sampled if self._written(conversation, i) != text)
        new = range(replies[-1] + 1, len(conversation))
        moved = (i for i in new if not any(True for _ in self.message(conversation, i)))
        rewritten = next(chain(changed, moved), None)
        if rewritten is not None:
            raise RewrittenError(
                f"with the new messages, the chat format {self.name} would write messages[{rewritten}] in another way "
                "than it was sampled"
            )

    def _written(self, conversation: CheckedConversation, index: int) -> str | None:
        """Return the text of reply `index` in this conversation, or None if the format cannot express the reply."""
        try:
            pieces = (*self.opening(conversation, index), *self.sampled_reply(conversation, index))
        except RenderError:  # e.g. the model sampled reasoning although its prompt rules reasoning out
            return None
        return "".join(piece.text for piece in pieces)

    def _is_stopped(self, parsed: Parsed) -> bool:
        """Return whether a reply ends with a stop token or a stop text, even if it is otherwise malformed."""
        is_clean_stop = parsed.termination is ParseTermination.STOP_SEQUENCE
        return is_clean_stop or (bool(parsed.ids) and parsed.ids[-1] in self.get_stop_sequences())


def finished(conversation: CheckedConversation, index: int) -> CheckedConversation:
    """Return the finished conversation that ends with message `index`."""
    return CheckedConversation(conversation.messages[: index + 1], conversation.tools)


def _without_reasoning(conversation: CheckedConversation) -> CheckedConversation:
    """Return the conversation without the reasoning of its last message, so that every format can express it."""
    *before, last = conversation.messages
    return replace(conversation, messages=(*before, last._replace(reasoning=None)))
