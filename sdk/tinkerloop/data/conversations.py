"""Conversations from files or a Hugging Face dataset, each checked, each with its file and line.

conversations = load_conversations("chats.jsonl")                        # raises at the first bad row
conversations = load_conversations("chats/*.jsonl.gz", on_bad="skip")
print(conversations.report)                                              # 3 of 1,000 rows skipped: ...
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from tinkerloop.data.adapters import Adapter, get_adapter, suggest_adapter
from tinkerloop.data.files import FileSource, PathLike, RawRow, without_nulls
from tinkerloop.data.row_checks import check_conversation
from tinkerloop.errors import DataError
from tinkerloop.message_checks import MESSAGE_KEYS

OnBad = Literal["error", "skip"]


@dataclass(frozen=True, slots=True)
class Conversation:
    """A checked row: its messages, its tool declarations, its other keys, and its file and line."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    path: str | None = None
    line: int | None = None

    @property
    def key(self) -> str:
        """A hash of the messages and tools, equal for equal conversations."""
        content = json.dumps([self.messages, self.tools], sort_keys=True, default=repr)
        return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that was left out, and the reason."""

    problem: str
    path: str | None
    line: int | None


@dataclass
class Report:
    """The number of rows used, and the rows that were not. `str(report)` is a sentence for the user."""

    used: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    ignored_keys: Counter[str] = field(default_factory=Counter)
    """Message keys that no renderer reads, and the number of messages that had them."""

    def skip(self, error: DataError) -> None:
        """Count the row of this error as skipped."""
        self.skipped.append(Skipped(error.problem, error.path, error.line))  # type: ignore[arg-type]

    def __str__(self) -> str:
        ignored = ", ".join(f"{key} ({count:,})" for key, count in self.ignored_keys.items())
        return self._rows() + (f"; message keys ignored: {ignored}" if ignored else "")

    def _rows(self) -> str:
        total = self.used + len(self.skipped)
        if not self.skipped:
            return f"{total:,} rows, all used" if total else "there are no rows"
        kinds = Counter(row.problem for row in self.skipped).most_common(3)
        first = self.skipped[0]
        place = f" (first: {first.path}:{first.line})" if first.path else ""
        reasons = "; ".join(f"{count:,} {problem}" for problem, count in kinds)
        return f"{len(self.skipped):,} of {total:,} rows skipped{place}: {reasons}"


class Conversations(Sequence[Conversation]):
    """Conversations in memory, with a report on the rows that were skipped."""

    def __init__(self, items: Iterable[Conversation], report: Report | None = None):
        self.items = list(items)
        self.report = report or Report(used=len(self.items))

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return f"Conversations({len(self):,} conversations, {len(self.report.skipped):,} skipped)"

    def __getitem__(self, index: Any) -> Any:
        return Conversations(self.items[index], self.report) if isinstance(index, slice) else self.items[index]

    def __iter__(self) -> Iterator[Conversation]:
        return iter(self.items)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all conversations in order, by which a cursor of other rows is refused."""
        digest = hashlib.blake2b(digest_size=8)
        for item in self.items:
            digest.update(item.key.encode())
        return digest.hexdigest()


def load_conversations(
    path: PathLike | Sequence[PathLike],
    *,
    on_bad: OnBad = "error",
    adapter: str | Adapter = "messages",
    split: str = "train",
) -> Conversations:
    """Load and check all conversations of a source.

    Args:
        path: a file, a folder, a glob, a list of those, or the name of a Hugging Face dataset, "owner/name".
        on_bad: "error" raises at the first bad row; "skip" leaves out bad rows and counts them in `.report`.
        adapter: turns a row into `{"messages": ...}`: a name in `ADAPTERS`, or a function.
        split: the split of a dataset that is loaded by name.

    Returns:
        The conversations, with `.report`.

    Raises:
        DataError: a bad row, with file, line and remedy; a file that cannot be read; or no good row at all.
    """
    _check_choice("on_bad", on_bad, ("error", "skip"))
    adapt = get_adapter(adapter)
    report, items = Report(), []
    for raw in _raw_rows(path, split):
        try:
            items.append(parse_conversation(raw, adapt, report.ignored_keys))
        except DataError as error:
            if on_bad == "error":
                raise
            report.skip(error)
    report.used = len(items)
    if not items:
        shown = os.fspath(path) if isinstance(path, str | os.PathLike) else ", ".join(map(str, path))
        what = str(report) if report.skipped else "the file is empty"
        raise DataError(f"no conversation to train on: {what}", path=shown)
    return Conversations(items, report)


def stream_conversations(
    path: PathLike | Sequence[PathLike],
    *,
    on_bad: OnBad = "error",
    adapter: str | Adapter = "messages",
) -> ConversationSource:
    """Read conversations that are too many to hold in memory, as a source for `stream`.

    Args:
        path: a file, a folder, a glob, or a list of those.
        on_bad: "error" raises when a bad row is reached; "skip" leaves it out and adds it to `.skipped`.
        adapter: turns a row into `{"messages": ...}`: a name in `ADAPTERS`, or a function.

    Raises:
        DataError: there is no such file. While reading, also for a bad row.
    """
    return ConversationSource(path, on_bad=on_bad, adapter=adapter)


class ConversationSource(FileSource):
    """A source of conversations in files.

    `.skipped` lists the rows left out so far, each once. `.ignored_keys` counts message keys that no renderer reads,
    each time they are read.
    """

    def __init__(self, path: Any, *, on_bad: OnBad = "error", adapter: str | Adapter = "messages"):
        _check_choice("on_bad", on_bad, ("error", "skip"))
        self._adapt, self._on_bad = get_adapter(adapter), on_bad
        self._skipped: dict[tuple[str, int], Skipped] = {}
        self.ignored_keys: Counter[str] = Counter()
        super().__init__(path, self._conversation)

    def __repr__(self) -> str:
        return f"ConversationSource({len(self.files):,} files, {len(self._skipped):,} rows skipped so far)"

    @property
    def skipped(self) -> list[Skipped]:
        """The rows left out so far."""
        return list(self._skipped.values())

    def _conversation(self, raw: RawRow) -> Conversation | None:
        try:
            return parse_conversation(raw, self._adapt, self.ignored_keys)
        except DataError as error:
            if self._on_bad == "error":
                raise
            self._skipped[raw.path, raw.line] = Skipped(error.problem, raw.path, raw.line)
            return None


def parse_conversation(
    raw: RawRow, adapter: Adapter = lambda row: row, ignored_keys: Counter[str] | None = None
) -> Conversation:
    """Turn one row into a checked conversation.

    Args:
        raw: the row with its place.
        adapter: makes `{"messages": ...}` of the row.
        ignored_keys: counts the message keys that are left out, because no renderer reads them.

    Raises:
        DataError: the row is not a conversation that can be trained on; the error names its file and line.
    """
    try:
        row = raw.parse()
        adapted = adapter(row)
        if "messages" not in adapted:
            raise _no_messages(row)
        known, unknown = _known_keys(adapted["messages"])
        messages, tools = check_conversation(known, adapted.get("tools"))
    except DataError as error:
        if error.path is not None:
            raise
        raise DataError(error.problem, path=raw.path, line=raw.line, remedy=error.remedy) from error
    if ignored_keys is not None:
        ignored_keys.update(unknown)
    extra = {key: value for key, value in adapted.items() if key not in ("messages", "tools")}
    return Conversation(messages, tools, extra, raw.path, raw.line)


def _known_keys(messages: Any) -> tuple[Any, list[str]]:
    """Return (the messages without the keys that no renderer reads, those keys that are not null)."""
    if not isinstance(messages, list):
        return messages, []
    ignored: list[str] = []
    kept = []
    for message in messages:
        # Without a role, the other keys are needed to say what the row looks like.
        has_role = isinstance(message, dict) and message.get("role") is not None
        if has_role and not MESSAGE_KEYS.issuperset(message):
            ignored += [key for key in message if key not in MESSAGE_KEYS and message[key] is not None]
            message = {key: value for key, value in message.items() if key in MESSAGE_KEYS}
        kept.append(message)
    return kept, ignored


def _raw_rows(path: Any, split: str) -> Iterator[RawRow]:
    if is_hub_name(path):
        return _hub_rows(path, split)
    return (row for row in FileSource(path, lambda raw: raw))


def is_hub_name(path: Any) -> bool:
    """True for `owner/name` that is not a file here; a name with a file suffix or a wildcard means a file."""
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
            "no such file; loading a dataset by name needs the package `datasets`",
            path=name,
            remedy="pip install 'tinkerloop-sdk[data]'",
        ) from error
    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:
        raise DataError(
            f"neither a file nor a dataset that can be loaded: {error}",
            path=name,
            remedy=f"searched {os.getcwd()} and the Hugging Face hub; correct the path or the name",
        ) from error
    for number, row in enumerate(rows, start=1):  # type: ignore[arg-type]
        yield RawRow(f"{name}[{split}]", number, without_nulls(row))


def _no_messages(row: dict[str, Any]) -> DataError:
    adapter = suggest_adapter(row)
    shape = 'a row is {"messages": [{"role": ..., "content": ...}, ...]}'
    remedy = f"this looks like adapter={adapter!r}" if adapter else shape
    return DataError(f"the row has no messages, only {sorted(row)}", remedy=remedy)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise DataError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
