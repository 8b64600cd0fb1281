"""`MarkedText`: a string that records where each of its characters comes from, for the renderer `template`.

A chat template gets marked strings instead of ordinary ones, and so do the literals in its source. It compares, cuts,
strips and joins them as usual. In the text that it writes, each run of characters is then

* `OWN`: a literal of the template, such as `<|im_start|>`. Only these runs can contain control tokens;
* a part of a `Slot`, i.e. of a string of the conversation, from character `start` to `stop`;
* of unknown origin, for example because a method of `str` without an override here created it.

The characters themselves always come from the methods of `str`. A mistake in this file can lose an origin, but an
unknown origin is never trusted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsIndex

from tinkerloop.renderers.pieces import Part
from tinkerloop.renderers.template_limits import check_size, count_steps


@dataclass(frozen=True, eq=False)
class Slot:
    """A string of the conversation, with the index of its message (-1 for a tool declaration) and its part."""

    value: str
    message: int
    part: Part
    required: bool = False
    """Whether the template must write this string."""
    named_in: Slot | None = None
    """A slot that may be written instead: the id of a Kimi call contains the name of its function."""


OWN = Slot("", -1, Part.SCAFFOLD)
"""The origin of the template's own literals."""


class MarkedRun(NamedTuple):
    """Characters with one origin: `OWN`, characters `start` to `stop - 1` of a slot, or None for an unknown origin."""

    text: str
    origin: Slot | None
    start: int = 0
    stop: int = 0


class MarkedText(str):
    """A string with the origins of its characters. Strings that are not marked have an unknown origin."""

    _runs: tuple[MarkedRun, ...]

    def __new__(cls, text: str = "", runs: Sequence[MarkedRun] | None = None) -> MarkedText:
        self = super().__new__(cls, text)
        self._runs = (MarkedRun(str.__str__(text), None),) if runs is None else tuple(runs)
        return self

    def __str__(self) -> str:
        return self  # `str(x)` in compiled templates keeps the origins

    def _cut(self, start: int, stop: int) -> MarkedText:
        """Return the characters `start` to `stop - 1`."""
        runs: list[MarkedRun] = []
        position = 0
        for run in self._runs:
            first, last = max(start - position, 0), min(stop - position, len(run.text))
            if first < last:
                runs.append(_part_of(run, first, last))
            position += len(run.text)
        return _joined(runs)

    def _places(self, pieces: Iterable[str], separator: str | None) -> list[MarkedText]:
        """Return consecutive `pieces` of this text as marked texts.

        Args:
            separator: the text between two pieces; None if white space divides them.
        """
        found: list[MarkedText] = []
        position = 0
        for piece in pieces:
            position = self.index(piece, position) if separator is None else position
            found.append(self._cut(position, position + len(piece)))
            position += len(piece) + len(separator or "")
        return found

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            return self._cut(start, stop) if step == 1 else MarkedText(super().__getitem__(key))
        super().__getitem__(key)  # raises for an index out of range
        index = key + len(self) if key < 0 else key
        return self._cut(index, index + 1)

    def __iter__(self) -> Iterator[Any]:
        return (self._cut(i, i + 1) for i in range(len(self)))

    def __add__(self, other: Any) -> Any:
        return join_marked((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: Any) -> Any:
        return join_marked((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> Any:
        times = max(int(times), 0)
        check_size(len(self) * times)
        return _joined(self._runs * times)

    def __rmul__(self, times: SupportsIndex) -> Any:
        return self * times

    def __mod__(self, values: Any) -> Any:
        texts = self.split("%s")
        inserted = values if isinstance(values, tuple) else (values,)
        if len(texts) != len(inserted) + 1 or any("%" in text for text in texts):
            return super().__mod__(values)
        pairs = zip(texts, inserted, strict=False)
        return join_marked([*(part for text, value in pairs for part in (text, str(value))), texts[-1]])

    def join(self, texts: Iterable[Any], /) -> Any:
        parts: list[Any] = []
        for text in texts:
            parts += (self, text) if parts else (text,)
        return join_marked(parts)

    def strip(self, chars: str | None = None, /) -> Any:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> Any:
        return self._cut(len(self) - len(super().lstrip(chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> Any:
        return self._cut(0, len(super().rstrip(chars)))

    def removeprefix(self, prefix: str, /) -> Any:
        return self._cut(len(self) - len(super().removeprefix(prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> Any:
        return self._cut(0, len(super().removesuffix(suffix)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> Any:
        return self._places(super().split(sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> Any:
        return self._places(super().rsplit(sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> Any:
        lines = self._places(super().splitlines(keepends=True), "")
        return lines if keepends else [line._cut(0, len(str.splitlines(line)[0])) for line in lines]

    def partition(self, sep: str, /) -> Any:
        return tuple(self._places(super().partition(sep), ""))

    def rpartition(self, sep: str, /) -> Any:
        return tuple(self._places(super().rpartition(sep), ""))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> Any:
        if not old:
            return super().replace(old, new, count)
        return _mark(new).join(self.split(old, count))

    def lower(self) -> Any:
        return self._changed(str.lower)

    def upper(self) -> Any:
        return self._changed(str.upper)

    def capitalize(self) -> Any:
        return self._changed(str.capitalize)

    def title(self) -> Any:
        return self._changed(str.title)

    def _changed(self, change: Callable[[str], str]) -> str:
        """Return the changed text. It keeps its origin only if all of it is the template's own."""
        changed = change(str.__str__(self))
        return own(changed) if all(run.origin is OWN for run in self._runs) else changed


def _part_of(run: MarkedRun, first: int, last: int) -> MarkedRun:
    """Return the characters `first` to `last - 1` of a run."""
    if first == 0 and last == len(run.text):
        return run
    text = run.text[first:last]
    if run.origin is OWN:
        return MarkedRun(text, OWN)
    if run.stop - run.start != len(run.text):  # escaped text: its characters are not those of the slot
        return MarkedRun(text, None)
    return MarkedRun(text, run.origin, run.start + first, run.start + last)


def _joined(runs: Sequence[MarkedRun]) -> MarkedText:
    text = "".join([run.text for run in runs])
    check_size(len(text))
    return MarkedText(text, runs)


def _mark(text: str) -> MarkedText:
    return text if isinstance(text, MarkedText) else MarkedText(text)


def runs_of(text: str) -> tuple[MarkedRun, ...]:
    """Return the runs of a text. A string that is not marked is one run of unknown origin."""
    return _mark(text)._runs


def join_marked(texts: Iterable[Any]) -> MarkedText:
    """Return the concatenation of texts. Other values are converted to strings."""
    runs: list[MarkedRun] = []
    for text in texts:
        shown = str(text)
        if shown:
            runs += runs_of(shown)
    return _joined(runs)


def own(text: str) -> MarkedText:
    """Return a literal of the template."""
    return MarkedText(text, (MarkedRun(text, OWN),))


def from_slot(slot: Slot) -> MarkedText:
    """Return the string of a slot."""
    return MarkedText(slot.value, (MarkedRun(slot.value, slot, 0, len(slot.value)),) if slot.value else ())


def own_strings(value: Any) -> Any:
    """Return a value in which every string that is not marked is the template's own."""
    if isinstance(value, str):
        return value if isinstance(value, MarkedText) else own(value)
    if isinstance(value, Mapping):
        return {own_strings(key): own_strings(inside) for key, inside in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([own_strings(inside) for inside in value])
    return value


# ---- JSON


def marked_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> MarkedText:
    """Return a value as JSON, like `json.dumps`. Brackets, quotes and separators are the template's own.

    The caller compares the text with that of `json.dumps`.
    """
    between, colon = separators or (", " if indent is None else ",", ": ")
    step = indent if indent is None or isinstance(indent, str) else " " * indent

    def write(value: Any, level: str) -> Iterator[Any]:
        count_steps()
        if isinstance(value, str):
            yield from (own('"'), _escaped(value, ensure_ascii), own('"'))
        elif isinstance(value, Mapping):
            items = sorted(value.items()) if sort_keys else value.items()
            yield from group(items, level, "{}", lambda item: ((*write(_key(item[0]), ""), own(colon)), item[1]))
        elif isinstance(value, (list, tuple)):
            yield from group(value, level, "[]", lambda item: ((), item))
        else:
            yield own(json.dumps(value, ensure_ascii=ensure_ascii))

    def group(
        items: Any, level: str, brackets: str, parts: Callable[[Any], tuple[Sequence[Any], Any]]
    ) -> Iterator[Any]:
        inside = level + (step or "")
        start, end = ("\n" + inside, "\n" + level) if step is not None and items else ("", "")
        for i, item in enumerate(items):
            yield own((brackets[0] if i == 0 else between) + start)
            head, rest = parts(item)
            yield from head
            yield from write(rest, inside)
        yield own(end + brackets[1] if items else brackets)

    return join_marked(write(value, ""))


def _key(key: Any) -> Any:
    return key if isinstance(key, str) else json.dumps(key)


def _escaped(text: str, ensure_ascii: bool) -> MarkedText:
    """Return a text as inside a JSON string."""
    return _joined([run._replace(text=json.dumps(run.text, ensure_ascii=ensure_ascii)[1:-1]) for run in runs_of(text)])
