"""Load conversations from files or from a Hugging Face dataset, and check them.

Each conversation keeps the file and the line that it was read from.

conversations = load_conversations("chats.jsonl")                        # raises at the first bad row
conversations = load_conversations("chats/*.jsonl.gz", on_bad="skip")
print(conversations.report)                                              # 3 of 1,000 rows skipped: ...
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from tinkerloop.data.adapters import Adapter, get_adapter, suggest_adapter
from tinkerloop.data.content import content_text
from tinkerloop.data.file_readers import without_nulls
from tinkerloop.data.file_search import PathLike
from tinkerloop.data.files import FileSource, RawRow
from tinkerloop.data.image_paths import resolve_images
from tinkerloop.data.row_checks import check_conversation
from tinkerloop.data.row_shapes import read_row
from tinkerloop.errors import DataError

SHOWN = 5
"""The number of conversations that a notebook shows."""

_ROWS = "rows in memory"
OnBad = Literal["error", "skip"]
"""What to do with a bad row: raise an error, or skip the row and count it."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation of a file or dataset: the checked messages and tool declarations.

    `extra` contains the other keys of the row. `path` and `line` are the file and the line of the row.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    path: str | None = None
    line: int | None = None

    @property
    def key(self) -> str:
        """A hash of the messages and the tools; equal conversations have equal hashes."""
        content = content_text([self.messages, self.tools])
        return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Skipped:
    """One skipped row: the problem with it, and the file and line that it was read from."""

    problem: str
    path: str | None
    line: int | None


@dataclass
class Report:
    """Report on loaded rows: the number of used rows, and a list of the skipped rows.

    `str(report)` summarises it for the user.
    """

    used: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    ignored_keys: Counter[str] = field(default_factory=Counter)
    """Mapping from message keys that were left out to the number of messages with the key."""
    split: int = 0
    """The number of conversations that became several datums, because the chat format rewrites history."""

    def skip(self, error: DataError) -> None:
        """Add the row at which `error` was raised to the skipped rows."""
        self.skipped.append(Skipped(error.problem, error.path, error.line))  # type: ignore[arg-type]

    def __str__(self) -> str:
        ignored = ", ".join(f"{key} ({count:,})" for key, count in self.ignored_keys.items())
        split = f"; {self.split:,} split into several datums" if self.split else ""
        return self._rows() + split + (f"; message keys ignored: {ignored}" if ignored else "")

    def _rows(self) -> str:
        total = self.used + len(self.skipped)
        if not self.skipped:
            return f"{total:,} rows, all used" if total else "there are no rows"
        kinds = Counter(row.problem for row in self.skipped).most_common(3)
        first = self.skipped[0]
        place = f" (first: {first.path}:{first.line})" if first.path else ""
        reasons = "; ".join(f"{problem} ({count:,} x)" for problem, count in kinds)
        return f"{len(self.skipped):,} of {total:,} rows skipped{place}: {reasons}"


class Conversations(Sequence[Conversation]):
    """A sequence of conversations held in memory, with a report on the skipped rows."""

    def __init__(self, items: Iterable[Conversation], report: Report | None = None):
        self.items = list(items)
        self.report = report or Report(used=len(self.items))

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return f"Conversations({len(self):,} conversations, {len(self.report.skipped):,} skipped)"

    def _repr_html_(self) -> str:
        """Return the report and the first conversations as HTML, which a notebook shows for this object."""
        from tinkerloop.data.conversation_html import conversation_html
        from tinkerloop.renderers.token_html import styled, text_html

        shown = [conversation_html(one.messages, one.tools, one.path, one.line) for one in self.items[:SHOWN]]
        more = f"<p>… and {len(self.items) - SHOWN:,} more</p>" if len(self.items) > SHOWN else ""
        return styled(f"<p>{text_html(self.report)}</p>", *shown, more)

    def __getitem__(self, index: Any) -> Any:
        return Conversations(self.items[index], self.report) if isinstance(index, slice) else self.items[index]

    def __iter__(self) -> Iterator[Conversation]:
        return iter(self.items)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all conversations in order. `seek` compares it to reject a cursor of other rows."""
        digest = hashlib.blake2b(digest_size=8)
        for item in self.items:
            digest.update(item.key.encode())
        return digest.hexdigest()


def load_conversations(
    path: PathLike | Sequence[PathLike] | Sequence[Mapping[str, Any]],
    *,
    on_bad: OnBad = "error",
    adapter: str | Adapter = "messages",
    split: str = "train",
    ignore_keys: Collection[str] = (),
    image_root: PathLike | None = None,
) -> Conversations:
    """Load all conversations of files or of a Hugging Face dataset into memory, and check them.

    Args:
        path: a file, a folder, a glob pattern, a list of these, or the name of a Hugging Face dataset, "owner/name"; or
            rows in memory: a `datasets.Dataset`, or a list of dicts.
        on_bad: "error" raises at the first bad row; "skip" leaves out bad rows and counts them in `.report`.
        adapter: a name in `ADAPTERS`, or a function that converts a row to `{"messages": ...}`.
        split: the split to load of a Hugging Face dataset that is given by name, such as "train".
        ignore_keys: keys of rows or of messages that nothing reads and whose content may be lost. Any other key that
            could change the meaning of a row makes the row bad; `data/README.md` has the list.
        image_root: the folder that contains the images whose paths are in the rows, by default the folder of the data
            file. A path that leads out of it makes the row bad; "anywhere" accepts every path.

    Returns:
        The conversations, with `.report`.

    Raises:
        DataError: a row is bad, a file cannot be read, or there is no good row. The message gives the file and, for a
            row, the line and a remedy.
    """
    _check_choice("on_bad", on_bad, ("error", "skip"))
    adapt, ignore_keys = get_adapter(adapter), check_ignore_keys(ignore_keys)
    report, items = Report(), []
    for raw in _raw_rows(path, split):
        try:
            items.append(
                parse_conversation(raw, adapt, report.ignored_keys, ignore_keys=ignore_keys, image_root=image_root)
            )
        except DataError as error:
            if on_bad == "error":
                raise
            report.skip(error)
    report.used = len(items)
    if not items:
        shown = os.fspath(path) if isinstance(path, str | os.PathLike) else ", ".join(map(str, path))
        shown = _ROWS if _are_rows(path) else shown
        what = str(report) if report.skipped else "the file is empty"
        raise DataError(f"no conversation to train on: {what}", path=shown)
    return Conversations(items, report)


def stream_conversations(
    path: PathLike | Sequence[PathLike],
    *,
    on_bad: OnBad = "error",
    adapter: str | Adapter = "messages",
    ignore_keys: Collection[str] = (),
    image_root: PathLike | None = None,
) -> ConversationSource:
    """Return a source for `stream` that reads and checks conversations one by one, without holding them in memory.

    Args:
        path: a file, a folder, a glob pattern, or a list of these.
        on_bad: "error" raises when a bad row is read; "skip" leaves it out and adds it to `.skipped`.
        adapter: a name in `ADAPTERS`, or a function that converts a row to `{"messages": ...}`.
        ignore_keys, image_root: as for `load_conversations`.

    Raises:
        DataError: the file does not exist. While the source is read, also if a row is bad.
    """
    return ConversationSource(path, on_bad=on_bad, adapter=adapter, ignore_keys=ignore_keys, image_root=image_root)


class ConversationSource(FileSource):
    """A source for `stream` that reads and checks conversations of files.

    `.skipped` lists the rows that were skipped so far; a row that is read in several epochs is listed once.
    `.ignored_keys` counts the message keys that were left out; a row that is read again is counted again.
    """

    def __init__(
        self,
        path: Any,
        *,
        on_bad: OnBad = "error",
        adapter: str | Adapter = "messages",
        ignore_keys: Collection[str] = (),
        image_root: PathLike | None = None,
    ):
        _check_choice("on_bad", on_bad, ("error", "skip"))
        self._adapt, self._on_bad = get_adapter(adapter), on_bad
        self._ignore_keys = check_ignore_keys(ignore_keys)
        self._image_root = image_root
        self._skipped: dict[tuple[str, int], Skipped] = {}
        self.ignored_keys: Counter[str] = Counter()
        super().__init__(path, self._conversation)

    def __repr__(self) -> str:
        return f"ConversationSource({len(self.files):,} files, {len(self._skipped):,} rows skipped so far)"

    @property
    def skipped(self) -> list[Skipped]:
        """The rows that were skipped so far, each listed once."""
        return list(self._skipped.values())

    def _conversation(self, raw: RawRow) -> Conversation | None:
        try:
            return parse_conversation(
                raw, self._adapt, self.ignored_keys, ignore_keys=self._ignore_keys, image_root=self._image_root
            )
        except DataError as error:
            if self._on_bad == "error":
                raise
            self._skipped[raw.path, raw.line] = Skipped(error.problem, raw.path, raw.line)
            return None


def parse_conversation(
    raw: RawRow,
    adapter: Adapter = lambda row: row,
    ignored_keys: Counter[str] | None = None,
    *,
    ignore_keys: Collection[str] = (),
    image_root: PathLike | None = None,
) -> Conversation:
    """Convert one row to a checked conversation.

    Args:
        raw: the row, with its file and line.
        adapter: a function that converts the row to `{"messages": ...}`.
        ignored_keys: a counter that is updated with the message keys that were left out.
        ignore_keys: keys of the row or of its messages to leave unread, which would otherwise be rejected.
        image_root: as for `load_conversations`.

    Raises:
        DataError: the row is not a conversation that can be trained on. The message gives its file and line.
    """
    try:
        row = raw.parse()
        adapted = adapter(row)
        if "messages" not in adapted:
            raise _no_messages(row)
        adapted = read_row(adapted, ignore_keys, ignored_keys)
        messages, tools = check_conversation(adapted["messages"], adapted.get("tools"))
        folder = os.path.dirname(raw.path) if raw.is_in_file else None
        messages = resolve_images(messages, folder, image_root)
    except DataError as error:
        if error.path is not None:
            raise
        raise DataError(error.problem, path=raw.path, line=raw.line, remedy=error.remedy) from error
    extra = {key: value for key, value in adapted.items() if key not in ("messages", "tools")}
    return Conversation(messages, tools, extra, raw.path, raw.line)


def _raw_rows(path: Any, split: str) -> Iterator[RawRow]:
    if is_hub_name(path):
        return _hub_rows(path, split)
    if _are_rows(path):
        rows = enumerate(path, start=1)
        return (RawRow(_ROWS, number, without_nulls(row), is_in_file=False) for number, row in rows)
    return (row for row in FileSource(path, lambda raw: raw))


def _are_rows(path: Any) -> bool:
    """Return True if `path` is a table of rows in memory: a dataset of the package `datasets`, or a list of dicts."""
    if isinstance(path, list | tuple):
        return bool(path) and isinstance(path[0], Mapping)
    return hasattr(path, "column_names") and hasattr(path, "__getitem__")


def is_hub_name(path: Any) -> bool:
    """Return True if `path` is the name of a Hugging Face dataset, "owner/name", and not a file.

    A path that exists, has a wildcard, or ends with the suffix of a data file is taken for a file.
    """
    if not isinstance(path, str):
        return False
    owner, slash, name = path.partition("/")
    is_name = bool(slash and owner and name) and "/" not in name and owner not in (".", "..", "~")
    return is_name and not os.path.exists(path) and not any(c in path for c in "*?[") and not _has_suffix(name)


def _has_suffix(name: str) -> bool:
    return name.rpartition(".")[2].lower() in ("jsonl", "json", "gz", "zst", "parquet", "csv", "txt")


def _hub_rows(name: str, split: str) -> Iterator[RawRow]:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "no such file; if this is the name of a Hugging Face dataset, loading it requires the package `datasets`",
            path=name,
            remedy="pip install 'tinkerloop-sdk[data]'",
        ) from error
    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:
        raise DataError(
            f"no such file, and loading it as a Hugging Face dataset failed: {error}",
            path=name,
            remedy=f"searched {os.getcwd()} and the Hugging Face hub; correct the path or the name",
        ) from error
    for number, row in enumerate(rows, start=1):  # type: ignore[arg-type]
        yield RawRow(f"{name}[{split}]", number, without_nulls(row), is_in_file=False)


def _no_messages(row: dict[str, Any]) -> DataError:
    adapter = suggest_adapter(row)
    shape = 'expected a row like {"messages": [{"role": ..., "content": ...}, ...]}'
    remedy = f"its keys fit adapter={adapter!r}: pass it" if adapter else shape
    return DataError(f'the row has no key "messages", only {sorted(row)}', remedy=remedy)


def check_ignore_keys(keys: Collection[str]) -> frozenset[str]:
    """Return the keys as a set; raise DataError if `keys` is one string, whose characters would be used as keys."""
    if isinstance(keys, str) or not all(isinstance(key, str) for key in keys):
        raise DataError(
            f"ignore_keys must be a collection of names, got {keys!r}", remedy='pass ignore_keys=("score",)'
        )
    return frozenset(keys)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise DataError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
