import gzip
import itertools
import json

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkerloop.data import FileSource, batches, files, mix, prefetch, stream
from tinkerloop.errors import DataError


def jsonl(path, rows):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        file.writelines(json.dumps({"x": row}) + "\n" for row in rows)
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The numbers 0..49 behind each kind of source that can be resumed."""
    folder = tmp_path_factory.mktemp("stream")
    files = [jsonl(folder / f"{i}.jsonl", range(i * 20, min(i * 20 + 20, 50))) for i in range(3)]
    packed = jsonl(folder / "packed.jsonl.gz", range(50))
    table = datasets.Dataset.from_list([{"x": i} for i in range(50)])
    table.to_parquet(folder / "rows.parquet", batch_size=15)
    return {
        "function": lambda: ({"x": i} for i in range(50)),
        "list": [{"x": i} for i in range(50)],
        "files": FileSource([str(f) for f in files]),
        "gzip": FileSource(packed),
        "parquet": FileSource(folder / "rows.parquet"),
        "hf": table.to_iterable_dataset(num_shards=3),
        "hf taken": table.to_iterable_dataset(num_shards=2).take(50),
    }


KINDS = ("function", "list", "files", "gzip", "parquet", "hf", "hf taken")


@pytest.mark.parametrize("kind", KINDS)
@given(
    size=st.integers(1, 12),
    shuffle=st.none() | st.integers(0, 2),
    buffer_size=st.integers(1, 60),
    length=st.none() | st.integers(12, 60),
    drop_last=st.booleans(),
    data=st.data(),
)
@settings(max_examples=25)
def test_a_stream_resumes_exactly_in_any_epoch(sources, kind, size, shuffle, buffer_size, length, drop_last, data):
    def make():
        return stream(
            sources[kind],
            size,
            epochs=3,
            shuffle=shuffle,
            buffer_size=buffer_size,
            length=length,
            drop_last=drop_last,
            map_fn=lambda row: row["x"],
        )

    whole = list(make())
    rows = min(length or 50, 50)
    per_epoch = rows // size if drop_last else -(-rows // size)
    assert len(whole) == 3 * per_epoch
    if not drop_last:
        for epoch in range(3):
            handed_out = itertools.chain(*whole[epoch * per_epoch : (epoch + 1) * per_epoch])
            assert sorted(handed_out) == list(range(rows))
    stop = data.draw(st.integers(0, len(whole)))
    first, second = make(), make()
    head = list(itertools.islice(first, stop))
    second.seek(json.loads(json.dumps(first.cursor)))
    assert head + list(second) == whole


def test_blocks_are_shuffled_and_epochs_differ():
    train = stream(lambda: range(1000), 1000, epochs=2, shuffle=0, buffer_size=100)
    first, second = train
    assert first != second
    assert sorted(first) == sorted(second) == list(range(1000))
    assert first != list(range(1000))
    assert max(abs(i - x) for i, x in enumerate(first)) < 100  # a row stays in its block


def test_resuming_a_file_reads_one_block_and_not_what_came_before(sources):
    opened = []

    class Counting(FileSource):
        def open(self, position=None):
            opened.append(position)
            return super().open(position)

    source = Counting(sources["files"].files)
    first = stream(source, 5, shuffle=0, buffer_size=10)
    for _ in range(9):
        next(first)
    second = stream(source, 5, shuffle=0, buffer_size=10)
    second.seek(first.cursor)
    next(second)
    assert opened[0] is None
    assert opened[1]["file"] == 1  # 45 rows are gone; the block begins among rows 35 to 45


def test_an_iterator_is_read_once_and_refuses_the_rest_with_the_way_out():
    train = stream(iter(range(10)), 4, epochs=2)
    assert [next(train), next(train), next(train)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    with pytest.raises(DataError, match="neither resumed nor repeated; pass a function"):
        next(train)
    resumed = stream(iter(range(10)), 4)
    with pytest.raises(DataError, match="pass a function"):
        (resumed.seek({**resumed.cursor, "position": 4, "first": 4}), next(resumed))


@pytest.mark.parametrize(
    "combine",
    [
        lambda shuffled, other: shuffled,
        lambda shuffled, other: shuffled.map(lambda row: row),
        lambda shuffled, other: datasets.interleave_datasets([shuffled, other]),
        lambda shuffled, other: datasets.interleave_datasets([other, shuffled], probabilities=[0.5, 0.5], seed=3),
        lambda shuffled, other: datasets.concatenate_datasets([other, shuffled]).filter(lambda row: True),
    ],
)
def test_a_hugging_face_shuffle_buffer_is_refused(combine):
    table = datasets.Dataset.from_list([{"x": 1}]).to_iterable_dataset()
    assert list(stream(combine(table, table), 1))
    with pytest.raises(DataError, match=r"cannot be resumed exactly; leave out dataset\.shuffle"):
        stream(combine(table.shuffle(seed=0, buffer_size=10), table), 1)


@pytest.mark.parametrize(
    "change", [{"shuffle": 1}, {"buffer_size": 5}, {"length": 9}, {"batch_size": 3}, {"source": "other"}]
)
def test_a_cursor_of_another_stream_is_refused(tmp_path, change):
    here, other = jsonl(tmp_path / "a.jsonl", range(10)), jsonl(tmp_path / "b.jsonl", range(12))
    arguments = {"batch_size": 2, "shuffle": 0, "buffer_size": 4, "length": None}
    cursor = stream(FileSource(here), **arguments).cursor
    source = FileSource(other if change.pop("source", None) else here)
    with pytest.raises(DataError, match="other data"):
        stream(source, **{**arguments, **change}).seek(cursor)


@pytest.mark.parametrize("block", [7, 1 << 16])
def test_a_streamed_file_of_other_content_and_equal_size_is_refused(tmp_path, monkeypatch, block):
    monkeypatch.setattr(files, "_BLOCK_BYTES", block)
    monkeypatch.setattr(files, "_BLOCKS", 16)
    path = jsonl(tmp_path / "a.jsonl", range(10, 20))
    cursor = stream(FileSource(path), 2).cursor
    stream(FileSource(path), 2).seek(cursor)
    for changed in (11, 19):
        jsonl(path, [*range(10, changed), 77, *range(changed + 1, 20)])
        with pytest.raises(DataError, match="taken from other data: source was"):
            stream(FileSource(path), 2).seek(cursor)


def test_a_failed_batch_has_not_been_handed_out():
    def fragile(row):
        if row == 5 and broken:
            raise ValueError("broken")
        return row

    broken = True
    train = stream(lambda: range(8), 3, map_fn=fragile)
    assert next(train) == [0, 1, 2]
    with pytest.raises(ValueError):
        next(train)
    broken = False
    assert list(train) == [[3, 4, 5], [6, 7]]


def test_an_empty_stream_is_an_error_and_not_an_endless_loop():
    with pytest.raises(DataError, match="ended after 0 rows"):
        next(stream(lambda: iter(()), 2, epochs=None))
    with pytest.raises(DataError, match="before one batch of 5 was full"):
        next(stream(lambda: range(3), 5, drop_last=True))


def test_a_short_stream_does_not_hide_behind_its_length():
    assert len(stream(lambda: range(10), 4, length=10, epochs=2)) == 6
    with pytest.raises(TypeError, match="length="):
        len(stream(lambda: range(10), 4))


def test_prefetching_a_stream_keeps_its_position_exact():
    def make():
        return stream(lambda: range(40), 3, epochs=2, shuffle=0, buffer_size=16)

    whole = list(make())
    fetched = prefetch(make(), 4)
    head = list(itertools.islice(fetched, 9))
    resumed = make()
    resumed.seek(fetched.cursor)
    assert head + list(resumed) == whole
    fetched.close()


# Mixing


@given(
    weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=4),
    size=st.integers(1, 8),
    until=st.sampled_from(["first", "all"]),
    length=st.none() | st.integers(1, 30),
    data=st.data(),
)
@settings(max_examples=60)
def test_a_mixture_keeps_its_proportions_and_resumes_exactly(weights, size, until, length, data):
    names = [f"part {i}" for i in range(len(weights))]

    def make():
        parts = {name: batches([(name, i) for i in range(15 + 9 * k)], 1, shuffle=k) for k, name in enumerate(names)}
        return mix(parts, dict(zip(names, weights, strict=True)), size, until=until, length=length)

    whole = list(make())
    rows = [row for batch in whole for row in batch]
    if length is not None and until == "all":
        assert len(rows) == min(length, sum(15 + 9 * k for k in range(len(names))))
    elif until == "all":
        assert len(rows) == len(set(rows)) == sum(15 + 9 * k for k in range(len(names)))
    counted = dict.fromkeys(names, 0)
    for drawn, (name, _) in enumerate(rows[:15], start=1):  # before any part has ended
        counted[name] += 1
        for other, weight in zip(names, weights, strict=True):
            assert abs(counted[other] - drawn * weight / sum(weights)) < 2
    stop = data.draw(st.integers(0, len(whole)))
    first, second = make(), make()
    head = list(itertools.islice(first, stop))
    second.seek(json.loads(json.dumps(first.cursor)))
    assert head + list(second) == whole


@pytest.mark.parametrize("until", ["first", "all"])
@pytest.mark.parametrize("size", [4, 5])
def test_a_finished_mixture_is_extended_by_more_epochs(until, size):
    def make(epochs):
        parts = {name: batches([(name, i) for i in range(n)], 1, epochs=epochs) for name, n in (("a", 6), ("b", 10))}
        return mix(parts, {"a": 1, "b": 1}, size, until=until)

    first, longer = make(1), make(3)
    rows = [row for batch in first for row in batch]
    longer.seek(json.loads(json.dumps(first.cursor)))
    rows += [row for batch in longer for row in batch]
    at_once = [row for batch in make(3) for row in batch]
    assert sorted(rows) == sorted(at_once)
    if until == "first":
        assert rows == at_once
    again = make(1)
    again.seek(first.cursor)
    assert list(again) == []


def test_a_cursor_of_parts_in_another_order_is_refused():
    def make(*names):
        return mix({name: batches([name] * 8, 1) for name in names}, {"a": 1, "b": 1}, 3)

    first = make("a", "b")
    whole = list(make("a", "b"))
    next(first)
    cursor = json.loads(json.dumps(first.cursor))
    with pytest.raises(DataError, match=r"in the order \['a', 'b'\], and their order is \['b', 'a'\] now; resume with"):
        make("b", "a").seek(cursor)
    resumed = make("a", "b")
    resumed.seek(cursor)
    assert list(resumed) == whole[1:]


def test_mixing_refuses_what_it_cannot_weigh():
    part = batches([1], 1)
    for parts, weights in (({}, {}), ({"a": part}, {"b": 1}), ({"a": part}, {"a": 0}), ({"a": part}, {"a": -1})):
        with pytest.raises(DataError):
            mix(parts, weights, 2)
    cursor = mix({"a": part}, {"a": 1}, 2).cursor
    with pytest.raises(DataError, match="weights"):
        mix({"a": part}, {"a": 2}, 2).seek(cursor)
    with pytest.raises(DataError, match="batch_size was 2 and is 3 now; resume with the batch size"):
        mix({"a": part}, {"a": 1}, 3).seek(cursor)
