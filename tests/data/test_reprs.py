"""One line about each object, for the debugger and the notebook."""

from __future__ import annotations

import itertools
import json

import pytest

from tinkerloop.data import (
    Datums,
    FileSource,
    JsonlFile,
    batches,
    conversation_datums,
    load_conversations,
    mix,
    prefetch,
    render_files,
    stream,
    stream_conversations,
    train_test_split,
)
from tinkerloop.errors import DataError
from tinkerloop.renderers import get_renderer
from tinkerloop.tokenizers import get_tokenizer

ROW = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text((json.dumps(ROW) + "\n") * 1200 + "{oops\n")
    return "a.jsonl"


def test_what_is_read_from_files_says_how_much_there_is(file):
    renderer = get_renderer("qwen3", get_tokenizer("tiny"))
    conversations = load_conversations(file, on_bad="skip")
    assert repr(conversations) == "Conversations(1,200 conversations, 1 skipped)"
    assert repr(conversations[:10]) == "Conversations(10 conversations, 1 skipped)"
    datums = conversation_datums(conversations[:20], renderer, report=conversations.report)
    assert repr(datums) == "Datums(20 datums, 0 truncated, 1 skipped)"
    assert repr(Datums()) == "Datums(0 datums, 0 truncated, 0 skipped)"
    assert repr(FileSource(file)) == "FileSource(1 files)"
    assert repr(JsonlFile(file)) == "JsonlFile('a.jsonl', 1,201 rows)"
    source = stream_conversations(file, on_bad="skip")
    assert len(list(source)) == 1200
    assert repr(source) == "ConversationSource(1 files, 1 rows skipped so far)"
    stored = render_files(file, renderer, cache="cache", on_bad="skip")
    assert repr(stored) == "DatumStore(1,200 datums, 0 truncated, 1 skipped)"


def test_batches_say_where_they_are():
    rows = batches(range(32), 8, epochs=2, shuffle=0)
    assert repr(rows) == "RowBatches(32 rows, batch_size=8, epochs=2, at batch 0 of 8)"
    assert len(list(itertools.islice(rows, 5))) == 5
    assert repr(rows) == "RowBatches(32 rows, batch_size=8, epochs=2, at batch 5 of 8)"
    assert len(list(rows)) == 3
    assert repr(rows) == "RowBatches(32 rows, batch_size=8, epochs=2, at batch 8 of 8)"
    endless = batches(range(3), 2, epochs=None)
    assert len(list(itertools.islice(endless, 3))) == 3
    assert repr(endless) == "RowBatches(3 rows, batch_size=2, epochs=None, at batch 3)"


def test_streams_mixtures_and_prefetched_batches_say_where_they_are():
    streamed = stream(lambda: range(10), 4, shuffle=0, length=10, epochs=2)
    next(streamed)
    assert repr(streamed) == "StreamBatches(batch_size=4, epochs=2, at row 4 of 10 in epoch 0)"
    assert repr(stream(lambda: range(10), 4)) == "StreamBatches(batch_size=4, epochs=1, at row 0 in epoch 0)"
    mixed = mix({"a": batches(range(9), 1), "b": batches(range(9), 1)}, {"a": 1, "b": 1}, 4, length=8)
    next(mixed)
    assert repr(mixed) == "MixedBatches(2 parts, batch_size=4, until='first', at draw 4 of 8)"
    fetched = prefetch(batches(range(32), 8), 3)
    assert repr(fetched) == "Prefetched(RowBatches(32 rows, batch_size=8, epochs=1, at batch 0 of 4), n=3)"
    train, test = train_test_split(range(100), 0.1)
    assert (repr(train), repr(test)) == ("Subset(90 of 100 rows)", "Subset(10 of 100 rows)")


@pytest.mark.parametrize("make", [batches, stream])
@pytest.mark.parametrize("shuffle", [True, False, "0", 1.0])
def test_shuffle_is_a_seed_and_nothing_else(make, shuffle):
    with pytest.raises(DataError, match=r"shuffle must be a random seed \(a whole number\) or None, got .*shuffle=0"):
        make([1, 2, 3], 2, shuffle=shuffle)
