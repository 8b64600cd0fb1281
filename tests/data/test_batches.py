import gc
import itertools
import json
import threading
import warnings

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkerloop.data import Batches, batches, prefetch, train_test_split
from tinkerloop.errors import DataError


def rest(of):
    return list(of)


def test_prefetching_ends_with_whoever_held_the_batches():
    def threads():
        return [thread for thread in threading.enumerate() if thread.name == "tinkerloop-prefetch"]

    before = set(threads())
    train = prefetch(batches(list(range(9)), 2, epochs=None))
    next(train)
    (thread,) = set(threads()) - before
    del train
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("kind", ["map_fn", "flatmap_fn"])
def test_a_stop_iteration_out_of_a_map_is_not_the_end_of_the_data(kind):
    empty = iter(())
    train = batches([1, 2, 3], 2, **{kind: lambda row: next(empty)})
    with pytest.raises(RuntimeError, match="mapping row 0"):
        next(train)


@pytest.mark.filterwarnings("ignore:batch_size=")
@given(
    rows=st.integers(1, 40),
    size=st.integers(1, 12),
    epochs=st.integers(1, 4),
    shuffle=st.none() | st.integers(0, 3),
    drop_last=st.booleans(),
    data=st.data(),
)
@settings(max_examples=150)
def test_a_cursor_continues_with_exactly_the_batches_that_would_have_come(rows, size, epochs, shuffle, drop_last, data):
    if drop_last and rows < size:
        return

    def make():
        return batches(list(range(rows)), size, epochs=epochs, shuffle=shuffle, drop_last=drop_last)

    whole = rest(make())
    assert len(whole) == len(make())
    stop = data.draw(st.integers(0, len(whole)))
    first, second = make(), make()
    head = list(itertools.islice(first, stop))
    second.seek(json.loads(json.dumps(first.cursor)))
    assert head + rest(second) == whole


@pytest.mark.filterwarnings("ignore:batch_size=")
@given(rows=st.integers(1, 60), size=st.integers(1, 20), epochs=st.integers(1, 3))
@settings(max_examples=50)
def test_each_epoch_holds_every_row_once(rows, size, epochs):
    seen = [row for batch in batches(list(range(rows)), size, epochs=epochs, shuffle=1) for row in batch]
    for epoch in range(epochs):
        assert sorted(seen[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_epochs_differ_in_order_and_seeds_too():
    first, second = rest(batches(range(100), 100, epochs=2, shuffle=0))
    assert first != second
    assert first != next(batches(range(100), 100, shuffle=1))
    assert first == next(batches(range(100), 100, shuffle=0))


def test_the_last_partial_batch_is_kept_or_dropped_by_choice_and_said():
    kept, dropped = batches(range(10), 4), batches(range(10), 4, drop_last=True)
    assert [len(b) for b in kept] == [4, 4, 2]
    assert [len(b) for b in dropped] == [4, 4]
    assert "the last 2 rows as one more" in str(kept)
    assert "the last 2 rows dropped" in str(dropped)


def test_seeking_into_a_late_epoch_reads_no_row_before_it():
    class Rows(list):
        read = 0

        def __getitem__(self, index):
            Rows.read += 1
            return super().__getitem__(index)

    rows = Rows(range(1000))
    late = batches(rows, 10, epochs=50, shuffle=0)
    late.seek({**late.cursor, "epoch": 37, "row": 500})
    next(late)
    assert Rows.read == 10


def test_more_epochs_extend_a_finished_run():
    done = batches(range(6), 2, epochs=1, shuffle=0)
    rest(done)
    longer = batches(range(6), 2, epochs=2, shuffle=0)
    longer.seek(done.cursor)
    assert rest(longer) == rest(batches(range(6), 2, epochs=2, shuffle=0))[3:]
    done.seek(done.cursor)
    assert rest(done) == []


def test_endless_epochs_have_no_length_and_no_end():
    endless = batches([1, 2, 3], 2, epochs=None)
    assert list(itertools.islice(endless, 5)) == [[1, 2], [3], [1, 2], [3], [1, 2]]
    with pytest.raises(TypeError, match="pass epochs=N, or steps=N"):
        len(endless)


@pytest.mark.parametrize(
    "other",
    [{"examples": range(11)}, {"shuffle": 1}, {"shuffle": None}, {"batch_size": 5}],
    ids=["size", "seed", "order", "batch size"],
)
def test_a_cursor_of_other_data_is_refused(other):
    cursor = batches(range(10), 2, shuffle=0).cursor
    arguments = {"examples": range(10), "batch_size": 2, "shuffle": 0, **other}
    with pytest.raises(DataError, match=r"taken from other data.*start a new run folder"):
        batches(**arguments).seek(cursor)


@pytest.mark.parametrize(
    "cursor", [None, 3, {}, {"epoch": 0}, {"epoch": -1, "row": 0}, {"epoch": 0, "row": 11}, {"epoch": 0, "row": "1"}]
)
def test_a_damaged_cursor_is_refused(cursor):
    train = batches(range(10), 2)
    if isinstance(cursor, dict) and cursor:
        cursor = {**train.cursor, "row": None, **cursor}
    with pytest.raises(DataError):
        train.seek(cursor)
    assert next(train) == [0, 1]


def test_changed_content_of_the_same_size_is_refused_when_the_rows_have_a_fingerprint():
    class Rows(list):
        def __init__(self, rows, fingerprint):
            super().__init__(rows)
            self.fingerprint = fingerprint

    cursor = batches(Rows([1, 2], "a"), 1).cursor
    with pytest.raises(DataError, match="fingerprint was 'a' and is 'b' now"):
        batches(Rows([1, 3], "b"), 1).seek(cursor)


@pytest.mark.parametrize("view", [lambda rows: rows, lambda rows: train_test_split(rows, 1)[0]])
def test_a_hugging_face_dataset_of_other_content_is_refused(view):
    def make(last):
        return batches(view(datasets.Dataset.from_list([{"x": i} for i in (1, 2, 3, last)])), 1)

    make(4).seek(make(4).cursor)
    with pytest.raises(DataError, match="taken from other data: fingerprint was"):
        make(5).seek(make(4).cursor)


def test_rows_are_mapped_one_to_one_or_one_to_many():
    assert next(batches([1, 2], 2, map_fn=lambda x: x * 10)) == [10, 20]
    assert next(batches([0, 1, 2], 3, flatmap_fn=lambda x: [x] * x)) == [1, 2, 2]


def test_mapping_errors_name_the_row_and_lose_no_batch():
    def fragile(row):
        if row == 3 and broken:
            raise KeyError("no such key")
        return row

    broken = True
    train = batches([0, 1, 2, 3, 4, 5], 2, map_fn=fragile)
    assert next(train) == [0, 1]
    with pytest.raises(KeyError) as caught:
        next(train)
    assert caught.value.__notes__ == ["while mapping row 3 (epoch 0)"]
    broken = False
    assert next(train) == [2, 3]


def test_what_cannot_be_batched_is_refused():
    with pytest.raises(DataError, match="no rows"):
        batches([], 2)
    with pytest.raises(DataError, match="do not fill one batch"):
        batches([1], 2, drop_last=True)
    with pytest.raises(DataError, match=r"map_fn must return a datum, got None; .*flatmap_fn"):
        next(batches([1], 1, map_fn=lambda row: None))
    with pytest.raises(DataError, match="returned no datum"):
        next(batches([1], 1, flatmap_fn=lambda row: []))
    for arguments in ({"batch_size": 0}, {"batch_size": 2.5}, {"epochs": 0}, {"shuffle": True}):
        with pytest.raises(DataError):
            batches([1, 2], **{"batch_size": 1, **arguments})
    with pytest.raises(DataError, match="both given"):
        batches([1], 1, map_fn=id, flatmap_fn=list)


def test_a_hugging_face_dataset_is_read_batch_by_batch():
    table = datasets.Dataset.from_list([{"x": i} for i in range(5)])
    assert rest(batches(table, 2, map_fn=lambda row: row["x"])) == [[0, 1], [2, 3], [4]]


def test_they_satisfy_the_protocol_of_the_loop():
    assert isinstance(batches([1], 1), Batches)
    assert isinstance(prefetch(batches([1], 1)), Batches)


# Prefetching


@given(ahead=st.integers(1, 5), taken=st.integers(0, 7))
@settings(max_examples=30)
def test_prefetching_reports_the_position_of_what_was_handed_out(ahead, taken):
    def plain():
        return batches(range(14), 2, shuffle=0)

    whole = rest(plain())
    fetched = prefetch(plain(), ahead)
    assert list(itertools.islice(fetched, taken)) == whole[:taken]
    resumed = plain()
    resumed.seek(fetched.cursor)
    assert rest(resumed) == whole[taken:]
    fetched.close()


def test_closing_and_seeking_lose_and_repeat_nothing():
    whole = rest(batches(range(20), 2))
    fetched = prefetch(batches(range(20), 2), 3)
    assert [next(fetched), next(fetched)] == whole[:2]
    middle = fetched.cursor
    fetched.close()
    assert next(fetched) == whole[2]
    fetched.seek(middle)
    assert rest(fetched) == whole[2:]
    assert rest(fetched) == []
    fetched.seek(middle)
    assert rest(fetched) == whole[2:]


def test_an_error_surfaces_at_its_place_in_the_order():
    def fragile(row):
        if row == 4:
            raise ValueError("row 4 is broken")
        return row

    fetched = prefetch(batches(range(8), 2, map_fn=fragile), 8)
    assert [next(fetched), next(fetched)] == [[0, 1], [2, 3]]
    for _ in range(2):  # it does not go past the error
        with pytest.raises(ValueError, match="row 4"):
            next(fetched)
    assert fetched.cursor["row"] == 4


def test_a_batch_size_beyond_the_rows_gives_a_warning_with_both_numbers():
    with pytest.warns(UserWarning, match="batch_size=400 is more than the 60 rows") as given:
        assert len(next(batches(range(60), 400))) == 60
    assert given[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches(range(60), 60)
