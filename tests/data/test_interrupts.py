"""Batches that are interrupted, as in a notebook, go on with the batch that was not returned."""

import itertools
import json

import pytest

from tinkerloop.data import FileSource, batches, mix, prefetch, stream
from tinkerloop.data.prefetch import _Worker
from tinkerloop.loop.positioned_batches import as_batches

ROWS = list(range(12))


class Interrupted:
    """A function that returns its argument, except for the first call with `row`."""

    def __init__(self, row):
        self.row = row

    def __call__(self, row):
        if row == self.row:
            self.row = None
            raise KeyboardInterrupt
        return row


class Resumable:
    """A source that can be opened at any row."""

    fingerprint = None

    def __init__(self, check):
        self.check = check

    def open(self, position):
        return OpenResumable(self.check, position or 0)


class OpenResumable:
    def __init__(self, check, position):
        self.check, self.position = check, position

    def __next__(self):
        if self.position >= len(ROWS):
            raise StopIteration
        row = self.check(ROWS[self.position])
        self.position += 1
        return row


class Lazy(list):
    """A list of batches in which reading one can be interrupted."""

    check = staticmethod(lambda batch: batch)

    def __getitem__(self, index):
        return self.check(super().__getitem__(index))


def lazy_list(check):
    lazy = Lazy([[row] for row in ROWS])
    lazy.check = lambda batch: [check(row) for row in batch] if isinstance(batch[0], int) else batch
    return as_batches(lazy, seekable=True)


KINDS = {
    "batches": lambda check: batches(ROWS, 4, map_fn=check),
    "stream of a source": lambda check: stream(Resumable(check), 4),
    "stream of a function": lambda check: stream(lambda: map(check, ROWS), 4, shuffle=0, buffer_size=5),
    "mapped stream": lambda check: stream(lambda: ROWS, 4, map_fn=check),
    "mixture": lambda check: mix(
        {"a": stream(Resumable(check), 1), "b": batches([20, 21, 22], 1, epochs=None)}, {"a": 3, "b": 1}, 4
    ),
    "list": lazy_list,
}


def rest(data):
    return list(iter(lambda: next(data, None), None))


def until_interrupt(data):
    read = []
    try:
        while True:
            read.append(next(data))
    except KeyboardInterrupt:
        return read


@pytest.mark.parametrize("row", range(1, 12, 2))
@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_skips_no_row(kind, row):
    whole = rest(KINDS[kind](lambda value: value))
    interrupted = KINDS[kind](Interrupted(row))
    read = until_interrupt(interrupted)
    resumed = KINDS[kind](lambda value: value)
    resumed.seek(json.loads(json.dumps(interrupted.cursor)))
    assert read + rest(interrupted) == read + rest(resumed) == whole


def test_a_batch_that_an_interrupt_took_from_the_queue_is_prepared_again(monkeypatch):
    take = _Worker.get

    def interrupted(worker):
        monkeypatch.setattr(_Worker, "get", take)
        take(worker)
        raise KeyboardInterrupt

    fetched = prefetch(batches(ROWS, 4), 2)
    assert next(fetched) == [0, 1, 2, 3]
    monkeypatch.setattr(_Worker, "get", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(fetched)
    assert fetched.cursor["row"] == 4
    assert list(fetched) == [[4, 5, 6, 7], [8, 9, 10, 11]]


def test_an_interrupt_while_a_file_is_read_does_not_end_the_file(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"x": {row}}}\n' for row in ROWS))
    check = Interrupted(5)

    def lines(file, path, row=0):
        for line in file:
            check(json.loads(line)["x"])
            yield line

    monkeypatch.setattr("tinkerloop.data.file_readers.bounded_lines", lines)
    rows = iter(FileSource(path))
    read = list(itertools.islice(rows, 5))
    with pytest.raises(KeyboardInterrupt):
        next(rows)
    assert [row["x"] for row in (*read, *rows)] == ROWS
