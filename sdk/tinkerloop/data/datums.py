"""Convert conversations to datums.

`conversation_datums` converts all of them before training starts. It reports each conversation that cannot be
converted, with its file and line.

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
"""What to do with a conversation of more than `max_length` tokens: raise, skip and count it, or cut its end."""


class Datums(list["tinker.Datum"]):
    """A list of datums, with a report on the skipped conversations."""

    report: Report
    truncated: int = 0
    """The number of conversations that were cut to `max_length` tokens."""
    fingerprint: str = ""
    """A hash of all target tokens. It changes with the rows, the renderer or the tokenizer; `seek` then rejects an old
    cursor."""

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
    """Convert one conversation to one datum.

    A key whose value is null, at any depth of a message or a tool, is treated as absent. The reason is that in a table,
    such as a Hugging Face dataset, every row has every field. Tool arguments that contain a null must therefore be
    given as JSON text.

    Args:
        messages: the conversation; `data/README.md` lists which messages are accepted.
        renderer: the renderer of the model's chat format.
        max_length: the largest number of tokens of the conversation; later tokens are cut. None cuts nothing.
        train_on_what: the messages to train on; `TrainOnWhat` describes the modes and the defaults.
        tools: declarations of the tools that the conversation may use.

    Raises:
        DataError: the messages are not a valid conversation.
        RenderError: the chat format cannot express the conversation.
        DatumError: the datum cannot be trained on, for example because all its weights are zero.
    """
    checked = check_conversation(without_nulls(_listed(messages)), without_nulls(_listed(tools)), train=False)
    return _render(Conversation(*checked), renderer, train_on_what).to_datum(max_length=max_length)


def _listed(rows: Any) -> Any:
    """Return `rows` as a list. Anything but an iterable of rows is returned unchanged; the checks reject it."""
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
    """Convert all conversations to datums before training, so that a bad one cannot stop a run in the middle.

    Args:
        conversations: checked conversations, such as the result of `load_conversations`.
        renderer: the renderer of the model's chat format.
        max_length: the largest number of tokens of a conversation; None sets no limit.
        train_on_what: the messages to train on; `TrainOnWhat` describes the modes and the defaults.
        on_bad: what to do with a conversation that cannot be rendered or trained on. "error" raises; "skip" leaves it
            out and counts it in the report.
        on_long: what to do with a conversation of more than `max_length` tokens. "error" raises; "skip" leaves it out
            and counts it in the report; "truncate" cuts its end.
        report: the report of `load_conversations`; the report of the result includes its skipped rows.

    Returns:
        The datums, with `.report` and `.truncated`.

    Raises:
        DataError: a conversation could not be converted, or none could. The message gives the file, the line and a
            remedy.
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
        raise DataError(f"no conversation could be converted to a datum: {report}")
    return datums


def _copied(report: Report | None) -> Report:
    return Report() if report is None else Report(0, list(report.skipped), report.ignored_keys.copy())


def render_conversation(
    conversation: Conversation, renderer: Renderer, max_length: int | None, train_on_what: Any, on_long: OnLong
) -> tuple[tinker.Datum, bool]:
    """Convert one conversation to a datum.

    Returns:
        The datum, and True if its end was cut.

    Raises:
        DataError: the conversation cannot be rendered or trained on. The message gives its file and line.
        TooLong: the conversation has more than `max_length` tokens and `on_long` is not "truncate".
    """
    rendered = _with_place(conversation, lambda: _render(conversation, renderer, train_on_what))
    too_long = max_length is not None and len(rendered) > max_length
    if too_long and on_long != "truncate":
        raise TooLong(len(rendered), max_length, conversation)
    return _with_place(conversation, lambda: rendered.to_datum(max_length=max_length)), too_long


def check_choices(**choices: tuple[str, Sequence[str]]) -> None:
    """Raise DataError if an argument has an unknown value. Each argument is passed as `name=(value, known values)`."""
    for name, (value, known) in choices.items():
        if value not in known:
            raise DataError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


class TooLong(DataError):
    """Error for a conversation of more than `max_length` tokens."""

    def __init__(self, length: int, max_length: int | None, conversation: Conversation):
        super().__init__(
            f"the conversation has {length} tokens, more than max_length={max_length}",
            path=conversation.path,
            line=conversation.line,
            remedy='raise max_length, or pass on_long="truncate" or on_long="skip"',
        )


def _render(conversation: Conversation, renderer: Renderer, train_on_what: Any) -> Any:
    return renderer.build_supervised_example(
        conversation.messages, train_on_what=train_on_what, tools=conversation.tools
    )


def _with_place(conversation: Conversation, make: Callable[[], Any]) -> Any:
    """Call `make` and return its result. Convert its error to a DataError with the conversation's file and line."""
    try:
        return make()
    except (RenderError, DatumError, ImageError) as error:
        remedy = "all tokens with a weight come after max_length: raise max_length" if _is_cut_away(error) else None
        raise DataError(str(error), path=conversation.path, line=conversation.line, remedy=remedy) from error


def _is_cut_away(error: Exception) -> bool:
    return isinstance(error, ZeroWeightError) and "max_length" in error.problem
