"""Conversations -> datums. Every conversation that does not become a datum is located and counted before training.

    >>> from tinkerloop.renderers import get_renderer
    >>> from tinkerloop.tokenizers import get_tokenizer
    >>> messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    >>> datum = conversation_to_datum(messages, get_renderer("qwen3_instruct", get_tokenizer("tiny")))
    >>> datum.model_input.length, datum.loss_fn_inputs["weights"].tolist()[-4:]
    (24, [0.0, 0.0, 1.0, 1.0])

The README of this folder shows the same example token by token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from tinkerloop.data.conversations import Conversation, OnBad, Report
from tinkerloop.data.files import without_nulls
from tinkerloop.data.row_checks import check_conversation
from tinkerloop.errors import DataError, DatumError, ImageError, RenderError, ZeroWeightError

if TYPE_CHECKING:
    import tinker

    from tinkerloop.renderers import Renderer

OnLong = Literal["error", "skip", "truncate"]


class Datums(list["tinker.Datum"]):
    """A list of datums with a report on the conversations that did not become one."""

    report: Report
    truncated: int = 0
    """The number of conversations that were shortened."""
    fingerprint: str = ""
    """A hash of all target tokens: a cursor is refused when the rows, the renderer or the tokenizer have changed."""

    def __repr__(self) -> str:
        skipped = len(self.report.skipped) if hasattr(self, "report") else 0
        return f"Datums({len(self):,} datums, {self.truncated:,} truncated, {skipped:,} skipped)"


def conversation_to_datum(
    messages: Sequence[Mapping[str, Any]],
    renderer: Renderer,
    max_length: int | None = None,
    train_on_what: Any = "all_assistant_messages",
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> tinker.Datum:
    """Turn one conversation into one datum.

    A null in a message or a tool, at any depth, counts as absent: a table, such as a Hugging Face dataset, holds every
    field in every row. (Write tool arguments that really hold a null as JSON text.)

    Args:
        messages: the conversation; see `data/README.md` for what a message may look like.
        renderer: the chat format.
        max_length: the datum is cut at its end to this many tokens; None cuts nothing.
        train_on_what: the messages that are trained; see `TrainOnWhat` for the modes and the defaults.
        tools: declarations of the tools that the conversation may use.

    Raises:
        DataError: the messages are not a conversation.
        RenderError: the chat format cannot express the conversation.
        DatumError: the datum cannot be trained on, for example because nothing in it has weight.
    """
    checked = check_conversation(without_nulls(_listed(messages)), without_nulls(_listed(tools)), train=False)
    return _render(Conversation(*checked), renderer, train_on_what).to_datum(max_length=max_length)


def _listed(rows: Any) -> Any:
    """Return any iterable of dictionaries as a list; everything else is refused by the checks."""
    return list(rows) if isinstance(rows, Iterable) and not isinstance(rows, str | bytes | Mapping) else rows


def conversation_datums(
    conversations: Iterable[Conversation],
    renderer: Renderer,
    max_length: int | None = None,
    *,
    train_on_what: Any = "all_assistant_messages",
    on_bad: OnBad = "error",
    on_long: OnLong = "error",
    report: Report | None = None,
) -> Datums:
    """Render all conversations now, so that no bad one is met in the middle of a run.

    Args:
        conversations: checked conversations, such as those of `load_conversations`.
        renderer: the chat format.
        max_length: the largest number of tokens of a datum; None allows any.
        train_on_what: the messages that are trained; see `TrainOnWhat` for the modes and the defaults.
        on_bad: "error" raises at a conversation that cannot be rendered or trained on; "skip" leaves it out and
            counts it in the report.
        on_long: a conversation of more than `max_length` tokens is an "error", a counted "skip", or is cut at its end
            with "truncate".
        report: the report from loading the conversations; the result's report continues it.

    Returns:
        The datums, with `.report` and `.truncated`.

    Raises:
        DataError: a conversation did not become a datum, with its file, line and a remedy; or none did.
    """
    check_choices(on_bad=(on_bad, ("error", "skip")), on_long=(on_long, ("error", "skip", "truncate")))
    datums, report, digest = Datums(), _copied(report), hashlib.blake2b(digest_size=8)
    for conversation in conversations:
        try:
            datum, truncated = render_conversation(conversation, renderer, max_length, train_on_what, on_long)
            datums.append(datum)
            datums.truncated += truncated
            digest.update(datum.loss_fn_inputs["target_tokens"].to_numpy().tobytes())
        except DataError as error:
            if (on_long if isinstance(error, TooLong) else on_bad) == "error":
                raise
            report.skip(error)
    report.used = len(datums)
    datums.report, datums.fingerprint = report, digest.hexdigest()
    if not datums:
        raise DataError(f"no conversation became a datum: {report}")
    return datums


def _copied(report: Report | None) -> Report:
    return Report() if report is None else Report(0, list(report.skipped), report.ignored_keys.copy())


def render_conversation(
    conversation: Conversation, renderer: Renderer, max_length: int | None, train_on_what: Any, on_long: OnLong
) -> tuple[tinker.Datum, bool]:
    """Render one conversation.

    Returns:
        The datum, and True if it was shortened.

    Raises:
        DataError: the conversation cannot be rendered or trained on; the error names its file and line.
        TooLong: it has more than `max_length` tokens and `on_long` is not "truncate".
    """
    rendered = _with_place(conversation, lambda: _render(conversation, renderer, train_on_what))
    too_long = max_length is not None and len(rendered) > max_length
    if too_long and on_long != "truncate":
        raise TooLong(len(rendered), max_length, conversation)
    return _with_place(conversation, lambda: rendered.to_datum(max_length=max_length)), too_long


def check_choices(**choices: tuple[str, Sequence[str]]) -> None:
    """Raise DataError for an argument that is none of its choices: `name=(value, choices)`."""
    for name, (value, known) in choices.items():
        if value not in known:
            raise DataError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


class TooLong(DataError):
    """A conversation has more than `max_length` tokens."""

    def __init__(self, length: int, max_length: int | None, conversation: Conversation):
        super().__init__(
            f"{length} tokens, more than max_length={max_length}",
            path=conversation.path,
            line=conversation.line,
            remedy='raise max_length, or choose on_long="truncate" or on_long="skip"',
        )


def _render(conversation: Conversation, renderer: Renderer, train_on_what: Any) -> Any:
    return renderer.build_supervised_example(
        conversation.messages, train_on_what=train_on_what, tools=conversation.tools
    )


def _with_place(conversation: Conversation, make: Callable[[], Any]) -> Any:
    """Call `make`; add the conversation's file and line to its error."""
    try:
        return make()
    except (RenderError, DatumError, ImageError) as error:
        remedy = "all tokens with weight come after max_length: raise it" if _is_cut_away(error) else None
        raise DataError(str(error), path=conversation.path, line=conversation.line, remedy=remedy) from error


def _is_cut_away(error: Exception) -> bool:
    return isinstance(error, ZeroWeightError) and "max_length" in error.problem
