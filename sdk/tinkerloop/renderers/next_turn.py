"""Find what a chat format writes before the text of the next turn, from how it writes a message with a known text.

A format may write what comes before the next message in another way for each role: a reply of GLM ends with the token
of the next role, and DeepSeek-V4.1 writes two newlines, not a header, between two user messages. `with_next_turn` adds
a message with a mark as its text, and `before_text` returns the pieces of this conversation up to the mark. They are
therefore a prefix of the conversation with any other text in the place of the mark. A prefill is the beginning of this
text: what a format writes before it, such as the channel of a final answer, is then in the prompt, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinkerloop.errors import RenderError
from tinkerloop.messages import ChatMessage, CheckedConversation
from tinkerloop.renderers.pieces import Part, Piece

_MARK = "\ue000"
"""A private character, which no format writes or trims."""


def with_next_turn(conversation: CheckedConversation, role: str) -> CheckedConversation:
    """Return the finished conversation with one more message of `role`, whose text is the mark."""
    awaited = _awaited_call(conversation.messages) if role == "tool" else None
    message = ChatMessage(role, (_MARK,), tool_call_id=awaited)
    return CheckedConversation((*conversation.messages, message), conversation.tools)


def _awaited_call(messages: Sequence[ChatMessage]) -> str | None:
    """Return the id of the first call without a result, or None if there is no such call.

    A result answers the call with its id, in any order. A result without such a call answers the first one.
    """
    calling = next((i for i in range(len(messages) - 1, -1, -1) if messages[i].role != "tool"), -1)
    ids = [call.id for call in messages[calling].tool_calls] if calling >= 0 else []
    for result in messages[calling + 1 :]:
        if ids:
            ids.remove(result.tool_call_id if result.tool_call_id in ids else ids[0])
    return ids[0] if ids else None


def before_text(
    pieces: Sequence[tuple[int, Piece]], index: int, format_name: str, prefill: str | None
) -> list[tuple[int, Piece]]:
    """Return the pieces before the mark, which is the text of message `index`, and `prefill` in the place of the mark.

    Without a prefill, spaces at the end of the pieces are removed.

    Args:
        pieces: (message index, piece) pairs of the conversation that `with_next_turn` returned.
        format_name: the name of the format, for the error message.
        prefill: the beginning of the text.

    Raises:
        RenderError: the format writes the last message before the text of an earlier one, as DeepSeek-V3.1 does with
            system messages. Then the message cannot follow a prompt.
    """
    at, piece = next((i, piece) for i, (owner, piece) in enumerate(pieces) if owner == index and _MARK in piece.text)
    if any(0 <= owner < index for owner, _ in pieces[at + 1 :]):
        raise RenderError(
            f"the chat format {format_name} would write messages[{index}], whose turn is prompted, before earlier "
            "messages, so it cannot be sampled after them; prompt for another role, or move the earlier messages"
        )
    head = piece._replace(text=piece.text.partition(_MARK)[0] + (prefill or ""), part=Part.SCAFFOLD)
    before = [*pieces[:at], (index, head)]
    return before if prefill else _without_last_spaces(before)


def _without_last_spaces(pieces: list[tuple[int, Piece]]) -> list[tuple[int, Piece]]:
    """Remove spaces from the end of the pieces, because tokenizers join a space to the word sampled after it."""
    while pieces and pieces[-1][1].image is None:
        owner, piece = pieces.pop()
        if kept := piece.text.rstrip(" "):
            return [*pieces, (owner, piece._replace(text=kept))]
    return pieces
