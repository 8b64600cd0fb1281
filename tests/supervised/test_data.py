import json
from pathlib import Path

import chz
import pytest

from tinkerloop.data import Subset, train_test_split
from tinkerloop.errors import DataError
from tinkerloop.supervised.data import (
    FromConversationFileBuilder,
    InterleavedDataset,
    InterleavedDatasetBuilder,
    StreamingSupervisedDatasetFromHFDataset,
    SupervisedDatasetFromHFDataset,
)
from tinkerloop.supervised.types import ChatDatasetBuilderCommonConfig
from tinkerloop.tokenizers import get_tokenizer


def rows_of(name, count):
    """Return rows that only have to be told apart."""
    return SupervisedDatasetFromHFDataset([f"{name}{i}" for i in range(count)], 1, map_fn=lambda row: row)


def mixture(**weights):
    return InterleavedDataset({"a": rows_of("a", 30), "b": rows_of("b", 5)}, weights, batch_size=8)


def test_every_mixed_batch_holds_its_share_and_an_epoch_every_row():
    mixed = list(mixture(a=3, b=1).batches())
    assert [sum(row.startswith("b") for row in batch) for batch in mixed] == [2] * 5
    assert {row for batch in mixed for row in batch} == {*rows_of("a", 30), *rows_of("b", 5)}
    assert len(mixture(a=3, b=1)) == 5


def test_a_mixture_resumes_in_a_later_epoch():
    whole = mixture(a=3, b=1).batches(epochs=3)
    for _ in range(11):
        next(whole)
    resumed = mixture(a=3, b=1).batches(epochs=3)
    resumed.seek(json.loads(json.dumps(whole.cursor)))
    assert list(resumed) == list(whole) != []


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("epoch", [None, 0, 2])
def test_there_is_no_batch_after_the_last_one(drop_last, epoch):
    rows = SupervisedDatasetFromHFDataset(list(range(11)), 5, map_fn=lambda row: row, drop_last=drop_last)
    if epoch is not None:
        rows.set_epoch(epoch)
    whole = [rows.get_batch(index) for index in range(len(rows))]
    assert rows.get_batch(-1) == whole[-1]
    assert len({row for batch in whole for row in batch}) == (10 if drop_last else 11)
    for index in (len(rows), len(rows) + 1, -len(rows) - 1):
        with pytest.raises(IndexError):
            rows.get_batch(index)


@pytest.mark.parametrize("weights", [{"a": 1}, {"a": 1, "b": 0}, {"a": 1, "b": 1, "c": 1}])
def test_weights_that_do_not_fit_the_parts_are_refused(weights):
    with pytest.raises(DataError, match=r"every part needs a weight|must be positive"):
        mixture(**weights)


def test_the_test_data_of_mixed_files_is_tested_one_after_another(conversations_file):
    other = Path("other.jsonl")
    other.write_text("".join(json.dumps({"instruction": f"Add {i}", "output": str(i)}) + "\n" for i in range(10)))
    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer="tiny", renderer_name="qwen3_instruct", batch_size=4
    )

    def read(path, adapter):
        return FromConversationFileBuilder(common_config=common, file_path=str(path), adapter=adapter, test_size=3)

    builders = {"chats": read(conversations_file, "messages"), "sums": read(other, "alpaca")}
    train, test = InterleavedDatasetBuilder(builders=builders, weights={"chats": 1, "sums": 1}, batch_size=4)()
    assert [len(batch) for batch in test.batches(seed=None)] == [4, 2]
    trained = {tuple(datum.model_input.to_ints()) for batch in train.batches() for datum in batch}
    tested = {tuple(datum.model_input.to_ints()) for batch in test.batches(seed=None) for datum in batch}
    assert (len(trained), len(tested), len(trained & tested)) == (21 + 7, 6, 0)


@pytest.mark.parametrize("batch_size", [4, 32])
@pytest.mark.parametrize("in_mixture", [False, True])
def test_dropping_the_last_batch_drops_no_test_data(conversations_file, batch_size, in_mixture):
    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer="tiny", renderer_name="qwen3_instruct", batch_size=batch_size
    )
    builder = FromConversationFileBuilder(
        common_config=common, file_path=str(conversations_file), test_size=6, drop_last=True
    )
    train, test = InterleavedDatasetBuilder(builders={"a": builder}, weights={"a": 1})() if in_mixture else builder()
    assert len(test.all_datums()) == sum(map(len, test.batches())) == 6
    if batch_size == 4 and not in_mixture:
        assert [len(batch) for batch in train.batches()] == [4] * 4


@pytest.mark.parametrize(
    "kind",
    [
        lambda rows, **options: SupervisedDatasetFromHFDataset(rows, 4, **options),
        lambda rows, **options: StreamingSupervisedDatasetFromHFDataset(rows, 4, None, **options),
    ],
    ids=["rows", "stream"],
)
def test_an_evaluation_reads_rows_that_training_drops(kind):
    rows = kind(list(range(6)), map_fn=lambda row: row, drop_last=True)
    assert rows.all_datums() == list(range(6))
    assert list(rows.batches(seed=None)) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("test_size", [1, 9])
@pytest.mark.parametrize("cache", [None, "cache"])
def test_test_size_counts_conversations_which_are_not_divided(tmp_path, cache, test_size):
    turn = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning": "hm"}]
    rows = [[{"role": "user", "content": f"question {i}"}, *turn[1:], *turn * 2] for i in range(12)]
    path = tmp_path / "turns.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    common = ChatDatasetBuilderCommonConfig(model_name_for_tokenizer="tiny", renderer_name="qwen3", batch_size=4)
    build = FromConversationFileBuilder(
        common_config=common, file_path=str(path), test_size=test_size, cache=cache and str(tmp_path / cache)
    )

    def questions(dataset):
        decode = get_tokenizer("tiny").decode
        texts = [decode(datum.model_input.to_ints()) for batch in dataset.batches() for datum in batch]
        return [text.partition("question ")[2].partition("<")[0] for text in texts]

    train, test = map(questions, build())
    assert (len(train), len(test), set(train) & set(test)) == (3 * (12 - test_size), 3 * test_size, set())


@pytest.mark.parametrize("test_size", [3, 0.25])
def test_the_choice_among_conversations_of_one_datum_is_that_among_their_datums(conversations_file, test_size):
    lines = conversations_file.read_text().splitlines()
    conversations_file.write_text("\n".join([*lines, *lines[:5]]))  # equal rows stay together
    common = ChatDatasetBuilderCommonConfig(model_name_for_tokenizer="tiny", renderer_name="qwen3_instruct")
    builder = FromConversationFileBuilder(
        common_config=common, file_path=str(conversations_file), test_size=test_size, shuffle_seed=3
    )
    datums = chz.replace(builder, test_size=0)()[0].rows
    texts = [str(datum.model_input.to_ints()) for datum in datums]
    expected = train_test_split(range(len(datums)), test_size, seed=3, key=texts.__getitem__)
    built = [dataset.rows for dataset in builder()]
    assert [part.numbers for part in built] == [part.numbers for part in expected]
    assert built[0].fingerprint == Subset(datums, expected[0].numbers).fingerprint


def test_a_reply_that_spells_a_tag_is_trained_as_text_only_by_choice(tmp_path):
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "<tool_call>"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")

    def build(**choice):
        common = ChatDatasetBuilderCommonConfig(model_name_for_tokenizer="tiny", renderer_name="qwen3", **choice)
        return FromConversationFileBuilder(common_config=common, file_path=str(tmp_path / "rows.jsonl"))()

    with pytest.raises(DataError, match=r"spells '<tool_call>'.*tags_in_replies='text'"):
        build()
    train, _ = build(tags_in_replies="text")
    assert len(train) == 1
