"""Conversations -> datums, with every row that does not become one located and counted before training starts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from tinkerloop.data.conversations import Conversation, OnBad, Report
from tinkerloop.data.files import without_nulls
from tinkerloop.data.messages import check_messages, check_tools
from tinkerloop.errors import DataError, DatumError, ImageError, RenderError, ZeroWeightError

if TYPE_CHECKING:
    import tinker

    from tinkerloop.renderers import Renderer

OnLong = Literal["error", "skip", "truncate"]


class Datums(list["tinker.Datum"]):
    """Datums with a report on the conversations that did not become one."""

    report: Report
    truncated: int = 0
    """How many were shortened."""
    fingerprint: str = ""
    """A hash of all target tokens: a cursor is refused when the rows, the renderer or the tokenizer have changed."""


def conversation_to_datum(
    messages: Sequence[Mapping[str, Any]],
    renderer: Renderer,
    max_length: int | None = None,
    train_on_what: Any = "all_assistant_messages",
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> tinker.Datum:
    """One conversation -> one datum, shortened at its end to `max_length` tokens.

    A null in a message or a tool, however deep, counts as absent: a table, such as a Hugging Face dataset, holds every
    field in every row. (Tool arguments that really hold a null are written as a JSON string.)

    Raises DataError for messages that are no conversation, RenderError and DatumError for those that cannot be
    rendered or trained on.
    """
    conversation = Conversation(
        check_messages([without_nulls(message) for message in messages], train=False),
        check_tools(None if tools is None else without_nulls(list(tools))),
    )
    return _example(conversation, renderer, train_on_what).to_datum(max_length=max_length)


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
    """Render all conversations now, so that nothing is found out in the middle of a run.

    on_bad: a conversation that cannot be rendered or has nothing to train on is an error, or skipped and counted.
    on_long: one of more than `max_length` tokens is an error, skipped and counted, or shortened at its end.
    report: of what was skipped when the conversations were loaded, to be continued.
    Raises DataError with file, line and remedy; also when no datum is left.
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
    """(datum, whether it was shortened). Raises DataError with the conversation's place; `TooLong`
    unless `on_long` is "truncate"."""
    example = _located(conversation, lambda: _example(conversation, renderer, train_on_what))
    too_long = max_length is not None and len(example) > max_length
    if too_long and on_long != "truncate":
        raise TooLong(len(example), max_length, conversation)
    return _located(conversation, lambda: example.to_datum(max_length=max_length)), too_long


def check_choices(**choices: tuple[str, Sequence[str]]) -> None:
    """Refuse a value that is none of its choices."""
    for name, (value, known) in choices.items():
        if value not in known:
            raise DataError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


class TooLong(DataError):
    """A conversation of more tokens than `max_length`."""

    def __init__(self, length: int, max_length: int | None, conversation: Conversation):
        super().__init__(
            f"{length} tokens, more than max_length={max_length}",
            path=conversation.path,
            line=conversation.line,
            remedy='raise max_length, or choose on_long="truncate" or on_long="skip"',
        )


def _example(conversation: Conversation, renderer: Renderer, train_on_what: Any) -> Any:
    return renderer.build_supervised_example(
        conversation.messages, train_on_what=train_on_what, tools=conversation.tools
    )


def _located(conversation: Conversation, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (RenderError, DatumError, ImageError) as error:
        remedy = "the tokens that would be trained lie behind max_length: raise it" if _cut_away(error) else None
        raise DataError(str(error), path=conversation.path, line=conversation.line, remedy=remedy) from error


def _cut_away(error: Exception) -> bool:
    return isinstance(error, ZeroWeightError) and "max_length" in error.problem
