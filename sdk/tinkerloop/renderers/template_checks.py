"""Checks of the text that a chat template writes: its origins are known, and nothing of the conversation is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from tinkerloop.errors import RenderError
from tinkerloop.messages import CheckedConversation
from tinkerloop.renderers.marked_text import MarkedRun, Slot
from tinkerloop.renderers.pieces import Part
from tinkerloop.renderers.written_check import check_order_of_results


def check_same_ids(whole: Sequence[int], in_pieces: Sequence[int], spelled: Callable[[Sequence[int]], str]) -> None:
    """Raise if a text that is encoded whole, as transformers does, has other ids than its pieces have.

    Args:
        spelled: returns the text of ids, for the error message.
    """
    if list(whole) == list(in_pieces):
        return
    pairs = enumerate(zip(whole, in_pieces, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(whole), len(in_pieces)))
    expected, given = (spelled(ids[first : first + 8]) for ids in (whole, in_pieces))
    raise RenderError(
        "this tokenizer cannot be used with the renderer 'template', because it does not encode the text between two "
        f"control tokens by itself: a whole conversation continues with {expected!r} after {first} tokens, its pieces "
        f"with {given!r}; look at the flags 'single_word' and 'normalized' of its added tokens, which should be False, "
        "or use the renderer for this model family"
    )


class ReasoningLostError(RenderError):
    """Error for reasoning that the template does not write."""


def check_origins(runs: Sequence[MarkedRun], control: Iterable[str]) -> None:
    """Raise if text of unknown origin spells a control token, which may be the template's own or a message's."""
    for run in runs:
        if run.origin is not None:
            continue
        token = next((token for token in control if token in run.text), None)
        if token is not None:
            raise RenderError(
                f"the template computes a text that spells the control token {token!r}, so it is unknown whether "
                "the template or a message wrote it; use the renderer for this model family"
            )


def check_nothing_is_lost(
    conversation: CheckedConversation, slots: Sequence[Slot], runs: Sequence[MarkedRun], name: str
) -> None:
    """Raise if the template leaves out or changes a part of the conversation.

    White space at both ends may be left out, and reasoning in history as a whole.
    """
    written: dict[Slot, list[MarkedRun]] = {}
    for run in runs:
        if run.origin is not None:
            written.setdefault(run.origin, []).append(run)
    for slot in slots:
        if not slot.value.strip() or (slot not in written and not slot.required) or slot.named_in in written:
            continue
        missing = _missing_text(slot, written.get(slot, ()))
        if missing is None:
            continue
        if slot.message < 0:
            if slot.required:
                raise RenderError(
                    f"the template does not write tools completely: {slot.value[:60]!r} would be lost; describe "
                    "them in a system message and pass no tools, or use the renderer for this model family"
                )
            continue  # templates write parts of a JSON schema, in many forms
        lost = (
            f"messages[{slot.message}]: the template changes or leaves out {missing[:60]!r} of its "
            f"{slot.part.name.lower()}"
        )
        if slot.part is Part.REASONING:
            raise ReasoningLostError(f"{lost}; remove it")
        raise RenderError(f"{lost}; remove this part or use the renderer for this model family")
    if any(conversation.role(slot.message) == "tool" and slot.part is Part.SCAFFOLD for slot in written):
        return  # the results have ids or names
    check_order_of_results(conversation, name)


def _missing_text(slot: Slot, runs: Iterable[MarkedRun]) -> str | None:
    """Return the first part of a slot's string that is in none of its runs, or None if all of it was written."""
    end = len(slot.value) - len(slot.value.lstrip())
    for run in sorted(runs, key=lambda run: run.start):
        if run.start > end:
            return slot.value[end : run.start]
        end = max(end, run.stop)
    return slot.value[end:] if slot.value[end:].strip() else None
