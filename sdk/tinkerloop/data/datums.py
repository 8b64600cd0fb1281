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

import copyreg
import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tinkerloop.data.conversations import Conversation, OnBad, Report
from tinkerloop.data.file_readers import without_nulls
from tinkerloop.data.row_checks import check_conversation
from tinkerloop.errors import DataError, DatumError, ImageError, RenderError, ZeroWeightError
from tinkerloop.number_checks import is_whole

if TYPE_CHECKING:
    import tinker

    from tinkerloop.renderers import Rendered, Renderer

T = TypeVar("T")

OnLong = Literal["error", "skip", "truncate"]
"""What to do with a conversation of more than `max_length` tokens: raise, skip and count it, or cut its end."""

Split = Literal["auto", "never"]
"""Whether a conversation may become several datums, if the chat format rewrites history."""


class Datums(list["tinker.Datum"]):
    """A list of datums, with a report on the skipped conversations."""

    report: Report
    truncated: int = 0
    """The number of conversations that were cut to `max_length` tokens."""
    conversation_numbers: list[int]
    """The number of the conversation of each datum, counted from 0. Split conversations have several datums."""
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

    If the chat format rewrites history, one datum cannot train several replies as they are sampled: the replies before
    the last follow tokens with which no prompt ends. A warning tells this, and no error, because one datum is what the
    function is for; `conversation_to_datums` makes several datums of such a conversation.

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
    check_rendering(renderer, max_length)
    conversation = _checked(messages, tools)
    (rendered,) = _render(conversation, renderer, train_on_what, "never")
    if not renderer.has_extension_property and len(_render(conversation, renderer, train_on_what, "auto")) > 1:
        warnings.warn(
            f"the chat format {renderer.name} rewrites history, so replies before the last are trained after other "
            "tokens than they are sampled after; use conversation_to_datums (in a data set, as its flatmap_fn), which "
            'makes several datums of the conversation, or train_on_what="last_assistant_message"',
            stacklevel=2,
        )
    return rendered.to_datum(max_length=max_length)


def conversation_to_datums(
    messages: Sequence[Mapping[str, Any]],
    renderer: Renderer,
    max_length: int | None = None,
    train_on_what: Any = "all_assistant_messages",
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[tinker.Datum]:
    """Convert one conversation to datums in which each trained reply follows the prompt after which it is sampled.

    It is one datum, unless the chat format rewrites history. Use this function as the `flatmap_fn` of a data set.

    Args:
        messages, renderer, max_length, train_on_what, tools: as for `conversation_to_datum`.

    Raises:
        DataError: the messages are not a valid conversation, or cannot be rendered or trained on.
    """
    check_rendering(renderer, max_length)
    conversation = _checked(messages, tools)
    return render_conversation(conversation, renderer, max_length, train_on_what, "truncate", "auto", to_datum)[0]


def _checked(messages: Any, tools: Any) -> Conversation:
    return Conversation(
        *check_conversation(without_nulls(_listed(messages)), without_nulls(_listed(tools)), train=False)
    )


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
    split: Split = "auto",
    report: Report | None = None,
) -> Datums:
    """Convert all conversations to datums before training, so that a bad one cannot stop a run in the middle.

    A conversation becomes one datum. If the chat format rewrites history, for example because it leaves out earlier
    reasoning, a conversation becomes one datum for each trained reply that cannot share a datum with the next.

    Args:
        conversations: checked conversations, such as the result of `load_conversations`.
        renderer: the renderer of the model's chat format.
        max_length: the largest number of tokens of a conversation; None sets no limit.
        train_on_what: the messages to train on; `TrainOnWhat` describes the modes and the defaults.
        on_bad: what to do with a conversation that cannot be rendered or trained on. "error" raises; "skip" leaves it
            out and counts it in the report.
        on_long: what to do with a conversation of more than `max_length` tokens. "error" raises; "skip" leaves it out
            and counts it in the report; "truncate" cuts its end.
        split: "auto" splits as described above; "never" always gives one datum for a conversation, in which replies
            before the last may follow other tokens than those after which they are sampled.
        report: the report of `load_conversations`; the report of the result includes its skipped rows.

    Returns:
        The datums, with `.report` and `.truncated`.

    Raises:
        DataError: an argument is invalid, or a conversation could not be converted, or none could. The message gives
            the file, the line and a remedy.
    """
    check_choices(on_bad=(on_bad, ("error", "skip")), on_long=(on_long, ("error", "skip", "truncate")))
    check_choices(split=(split, ("auto", "never")))
    check_rendering(renderer, max_length)
    if isinstance(conversations, str | bytes | os.PathLike):
        raise DataError(
            f"expected conversations, got the path {conversations!r}",
            remedy="read it: conversation_datums(load_conversations(path), renderer)",
        )
    datums, report, digest = Datums(), _copied(report), hashlib.blake2b(digest_size=8)
    datums.conversation_numbers, report.used = [], 0
    for conversation in conversations:
        if not isinstance(conversation, Conversation):
            raise DataError(
                f"expected conversations, got a {type(conversation).__name__} among them",
                remedy="check the rows first: conversation_datums(load_conversations(rows), renderer)",
            )
        try:
            made, truncated = render_conversation(
                conversation, renderer, max_length, train_on_what, on_long, split, to_datum
            )
            datums.extend(made)
            datums.conversation_numbers += [report.used] * len(made)
            datums.truncated += truncated
            report.used += 1
            report.split += len(made) > 1
            for datum in made:
                digest.update(datum.loss_fn_inputs["target_tokens"].to_numpy().tobytes())
        except DataError as error:
            if (on_long if isinstance(error, TooLong) else on_bad) == "error":
                raise
            report.skip(error)
    datums.report, datums.fingerprint = report, digest.hexdigest()
    if not datums:
        raise DataError(f"no conversation could be converted to a datum: {report}")
    return datums


def _copied(report: Report | None) -> Report:
    return Report() if report is None else replace(report, skipped=list(report.skipped), split=0)


def to_datum(example: Rendered, max_length: int | None) -> tinker.Datum:
    """Return the datum of an example, of at most `max_length` tokens."""
    return example.to_datum(max_length=max_length)


def render_conversation(
    conversation: Conversation,
    renderer: Renderer,
    max_length: int | None,
    train_on_what: Any,
    on_long: OnLong,
    split: Split,
    convert: Callable[[Rendered, int | None], T],
) -> tuple[list[T], bool]:
    """Render one conversation, and convert each of its examples with `convert(example, max_length)`.

    Returns:
        The results, and True if the end of an example was cut. An example whose trained tokens are all cut away is left
        out, unless it is the only one.

    Raises:
        DataError: the conversation cannot be rendered or trained on. The message gives its file and line.
        TooLong: the conversation has more than `max_length` tokens and `on_long` is not "truncate".
    """
    rendered = _with_place(conversation, lambda: _render(conversation, renderer, train_on_what, split))
    longest = max(len(example) for example in rendered)
    too_long = max_length is not None and longest > max_length
    if too_long and on_long != "truncate":
        raise TooLong(longest, max_length, conversation)

    def cut() -> list[T]:
        converted: list[T] = []
        for number, example in enumerate(rendered):
            try:
                converted.append(convert(example, max_length))
            except ZeroWeightError as error:
                if not _is_cut_away(error) or (number == len(rendered) - 1 and not converted):
                    raise
        return converted

    return _with_place(conversation, cut), too_long


def check_choices(**choices: tuple[str, Sequence[str]]) -> None:
    """Raise DataError if an argument has an unknown value. Each argument is passed as `name=(value, known values)`."""
    for name, (value, known) in choices.items():
        if value not in known:
            raise DataError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def check_rendering(renderer: Any, max_length: Any) -> None:
    """Raise DataError if `renderer` is no renderer, such as the name of one, or `max_length` is no positive number."""
    if not hasattr(renderer, "build_supervised_example"):
        name = repr(renderer) if isinstance(renderer, str) else "name"
        raise DataError(
            f"renderer must be a renderer, got {renderer!r:.80}", remedy=f"pass get_renderer({name}, tokenizer)"
        )
    if max_length is not None and (not is_whole(max_length) or max_length < 1):
        raise DataError(f"max_length must be a whole number of tokens of at least 1, or None, got {max_length!r}")


class TooLong(DataError):
    """Error for a conversation of more than `max_length` tokens."""

    def __init__(self, length: int, max_length: int | None, conversation: Conversation):
        super().__init__(
            f"the conversation has {length} tokens, more than max_length={max_length}",
            path=conversation.path,
            line=conversation.line,
            remedy='raise max_length, or pass on_long="truncate" or on_long="skip"',
        )

    def __reduce__(self) -> Any:  # pickle would call __init__ with the text of the error
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


def _render(conversation: Conversation, renderer: Renderer, train_on_what: Any, split: Split) -> list[Rendered]:
    options = {"train_on_what": train_on_what, "tools": conversation.tools}
    if split == "auto" and not renderer.has_extension_property:
        return renderer.build_supervised_examples(conversation.messages, **options)
    return [renderer.build_supervised_example(conversation.messages, **options)]


def _with_place(conversation: Conversation, make: Callable[[], Any]) -> Any:
    """Call `make` and return its result. Convert its error to a DataError with the conversation's file and line."""
    try:
        return make()
    except (RenderError, DatumError, ImageError) as error:
        remedy = "all tokens with a weight come after max_length: raise max_length" if _is_cut_away(error) else None
        raise DataError(str(error), path=conversation.path, line=conversation.line, remedy=remedy) from error


def _is_cut_away(error: Exception) -> bool:
    return isinstance(error, ZeroWeightError) and "max_length" in error.problem
