"""Conversations read from files or a Hugging Face data set, each checked, each with its place.

conversations = load_conversations("chats.jsonl")              # the first bad row ends it, with file and line
conversations = load_conversations("chats/*.jsonl.gz", on_bad="skip")
print(conversations.report)                                     # 3 of 1,000 rows skipped: ...
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
from tinkerloop.messages import MESSAGE_KEYS

OnBad = Literal["error", "skip"]


@dataclass(frozen=True, slots=True)
class Conversation:
    """One checked row: its messages, the tools it declares, the keys nobody asked for, and where it stands."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    path: str | None = None
    line: int | None = None

    @property
    def key(self) -> str:
        """A hash of what is said, the same for the same conversation wherever it stands."""
        said = json.dumps([self.messages, self.tools], sort_keys=True, default=repr)
        return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Skipped:
    """One row that was left out."""

    problem: str
    path: str | None
    line: int | None


@dataclass
class Report:
    """How many rows were used and which were not. `str(report)` is the sentence for the user."""

    used: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    ignored_keys: Counter[str] = field(default_factory=Counter)
    """Keys of messages that no renderer reads, and in how many messages they stood."""

    def skip(self, error: DataError) -> None:
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
    """Conversations in memory, with a report on the rows that are not among them."""

    def __init__(self, items: Iterable[Conversation], report: Report | None = None):
        self.items = list(items)
        self.report = report or Report(used=len(self.items))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return Conversations(self.items[index], self.report) if isinstance(index, slice) else self.items[index]

    def __iter__(self) -> Iterator[Conversation]:
        return iter(self.items)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all of them in order: a cursor taken on other rows is refused."""
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
    """All conversations of a file, a folder, a glob, a list of those, or a Hugging Face data set "owner/name".

    on_bad: "error" raises DataError at the first bad row, with file, line and remedy; "skip" leaves bad rows out and
    counts them in `.report`. A file that cannot be read at all, and a source without any good row, are always errors.
    adapter: how a row becomes `{"messages": ...}`: a name of `ADAPTERS` or a function.
    split: which split of a data set that is loaded by name.
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
    """The conversations of files too large to hold, for `stream(...)`. Bad rows are met, and reported, as they come."""
    return ConversationSource(path, on_bad=on_bad, adapter=adapter)


class ConversationSource(FileSource):
    """Files as a source of conversations; `.skipped` holds the rows left out so far, once each, and
    `.ignored_keys` counts what was ignored each time it was read."""

    def __init__(self, path: Any, *, on_bad: OnBad = "error", adapter: str | Adapter = "messages"):
        _check_choice("on_bad", on_bad, ("error", "skip"))
        self._adapt, self._on_bad = get_adapter(adapter), on_bad
        self._skipped: dict[tuple[str, int], Skipped] = {}
        self.ignored_keys: Counter[str] = Counter()
        super().__init__(path, self._conversation)

    @property
    def skipped(self) -> list[Skipped]:
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
    """`owner/name` that is no file here; a name with a suffix or a wildcard is meant as a file."""
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
            "no such file, and loading a data set by name needs the datasets package",
            path=name,
            remedy="pip install 'tinkerloop-sdk[data]'",
        ) from error
    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:
        raise DataError(
            f"neither a file here nor a data set that can be loaded: {error}",
            path=name,
            remedy=f"looked in {os.getcwd()} and on the hub",
        ) from error
    for number, row in enumerate(rows, start=1):  # type: ignore[arg-type]
        yield RawRow(f"{name}[{split}]", number, without_nulls(row))


def _no_messages(row: dict[str, Any]) -> DataError:
    adapter = suggest_adapter(row)
    remedy = f"this looks like adapter={adapter!r}" if adapter else 'a row is {"messages": [{"role", "content"}, ...]}'
    return DataError(f"the row has no messages, only {sorted(row)}", remedy=remedy)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise DataError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
