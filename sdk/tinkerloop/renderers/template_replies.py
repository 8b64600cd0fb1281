"""Find replies in what a chat template writes for a conversation.

A template writes a conversation only as a whole, so a reply is found by comparing texts. It begins where the template's
prompt for it ends, if this prompt is a prefix of the text. It ends after the first stop token (such as `<|im_end|>`)
that the template itself writes from there on. `Written` pieces come from `template`: trusted pieces are the template's
own text, and the index of other pieces is that of their message.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from tinkerloop.messages import CheckedConversation
from tinkerloop.renderers.pieces import SEAM, Part, Piece, markup, scaffold, stop

Written = Sequence[tuple[int, Piece]]
"""(message index, piece) pairs; the index is -1 for the template's own text."""


def text_of(pieces: Written) -> str:
    """Return the whole text of pieces."""
    return "".join([piece.text for _, piece in pieces])


def end_of_reply(pieces: Written, start: int, stops: re.Pattern[str]) -> int | None:
    """Return the position after the first of the template's own stop tokens at or after `start`, or None."""
    position = 0
    for _, piece in pieces:
        if piece.trusted and position + len(piece.text) > start:
            found = stops.search(piece.text, max(0, start - position))
            if found:
                return position + found.end()
        position += len(piece.text)
    return None


def has_other_text(pieces: Written, start: int, end: int, reply: int) -> bool:
    """Return whether text of a message other than `reply` is between two positions."""
    position = 0
    for message, piece in pieces:
        inside = position < end and position + len(piece.text) > start
        if inside and not piece.trusted and message not in (reply, -1):
            return True
        position += len(piece.text)
    return False


def has_own_token_at(pieces: Written, start: int, tokens: tuple[str, ...]) -> bool:
    """Return whether the template itself writes one of `tokens` at a position."""
    return any(piece.trusted and piece.text.startswith(tokens) for _, piece in islice(pieces_from(pieces, start), 1))


def pieces_from(pieces: Written, start: int) -> Iterator[tuple[int, Piece]]:
    """Yield the pieces from a position on. If the position is inside a piece, its rest is yielded first."""
    position = 0
    for message, piece in pieces:
        cut = max(0, start - position)
        if cut < len(piece.text):
            yield message, piece._replace(text=piece.text[cut:])
        position += len(piece.text)


def difference(one: str, other: str, shown: int = 40) -> tuple[str, str]:
    """Return the texts with which two texts go on after their longest common prefix, as far as they are shown."""
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[same : same + shown], other[same : same + shown]


def divided(
    conversation: CheckedConversation,
    pieces: Iterable[tuple[int, Piece]],
    starts: Mapping[int, int],
    stops: re.Pattern[str],
    closing: str,
) -> Iterator[tuple[int, Piece]]:
    """Yield the pieces, split where replies begin and end. The format's text inside a reply is marked as sampled.

    Args:
        starts: mapping from the position of a reply's first character to the index of the reply, for replies whose end
            is written.
        stops: pattern of the stop tokens.
        closing: the token that closes reasoning; `""` if there is none.
    """
    position, reply, latest = 0, None, -1
    sampled: list[tuple[Part | None, Piece]] = []
    for index, piece in pieces:
        rest, latest = piece.text, max(latest, index)
        while rest or not piece.text:
            cut = min((s - position for s in starts if position < s < position + len(rest)), default=len(rest))
            if position in starts and reply is None:
                reply = starts[position]
                if conversation.is_final(reply):
                    yield reply, SEAM
            part, rest = rest[:cut], rest[cut:]
            position += len(part)
            if reply is None:
                # Strings of a reply whose start is unknown carry no weight; `example` raises if it is trained.
                has_known_start = conversation.role(index) != "assistant"
                # The second owner is for an earlier reply's text that is written again, as the name in a tool's result.
                owner = index if has_known_start or index >= latest else -1
                yield owner, piece._replace(text=part, part=piece.part if has_known_start else Part.SCAFFOLD)
            elif not piece.trusted:  # without an index, e.g. a number in a call
                sampled.append((piece.part if index >= 0 else None, piece._replace(text=part)))
            else:
                end = stops.search(part)
                sampled.append((None, scaffold(part[: end.start()] if end else part)))
                if end:
                    for inside in _with_parts(sampled, closing):
                        yield reply, inside
                    yield reply, stop(end[0])
                    yield reply, scaffold(part[end.end() :])
                    reply, sampled = None, []
            if not piece.text:
                break


def _with_parts(sampled: Sequence[tuple[Part | None, Piece]], closing: str) -> Iterator[Piece]:
    """Yield the pieces of a reply with the part of each. Those of the format's own text, given as None, are derived.

    The format's text belongs to the reasoning up to the token `closing`, to a call or reasoning that follows it, and
    otherwise to the part before it.
    """
    following: list[Part | None] = [None]
    for part, _ in reversed(sampled):
        following.append(following[-1] if part is None else part)
    before: Part | None = None
    for (part, piece), after in zip(sampled, reversed(following[:-1]), strict=True):
        if part is not None:
            before = part
            yield piece
            continue
        rest = piece.text
        if closing and closing in rest and piece.trusted:
            cut = rest.rindex(closing) + len(closing)
            yield markup(rest[:cut], before or Part.REASONING)
            rest, before = rest[cut:], Part.TEXT
        is_ahead = before in (None, Part.TEXT) and after is not None
        yield piece._replace(text=rest, part=after if is_ahead else before or Part.TEXT)
