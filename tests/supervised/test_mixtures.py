"""No test row of a mixture is trained on, whichever part it belongs to."""

import json
from pathlib import Path

import pytest

from tinkerloop import make_datum
from tinkerloop.errors import DataError
from tinkerloop.supervised.data import (
    FromConversationFileBuilder,
    InterleavedDataset,
    InterleavedDatasetBuilder,
    StreamingSupervisedDatasetFromHFDataset,
    SupervisedDatasetFromHFDataset,
)
from tinkerloop.supervised.types import ChatDatasetBuilderCommonConfig, SupervisedDataset


def datum(number):
    return make_datum([number + 1, 1, 2, number + 1], [0, 0, 1, 1])


class Numbers(SupervisedDataset):
    batch_size = 2

    def __init__(self, numbers):
        self.numbers = numbers

    def __iter__(self):
        return map(datum, self.numbers)


KINDS = {
    "datums": Numbers,
    "rows": lambda numbers: SupervisedDatasetFromHFDataset(list(numbers), 2, map_fn=datum),
    "many datums of a row": lambda numbers: SupervisedDatasetFromHFDataset(
        [list(numbers)[i : i + 2] for i in range(0, len(numbers), 2)], 2, flatmap_fn=lambda pair: map(datum, pair)
    ),
    "mixture": lambda numbers: InterleavedDataset(
        {"even": Numbers(numbers[::2]), "odd": Numbers(numbers[1::2])}, {"even": 1, "odd": 1}, 2
    ),
}


def numbers_of(datums):
    return {one.model_input.to_ints()[0] - 1 for one in datums}


def mixed(first, second, **options):
    """Build a mixture of two pairs of training and test data."""
    builders = {"first": lambda: first, "second": lambda: second}
    return InterleavedDatasetBuilder(builders=builders, weights={"first": 1, "second": 1}, **options)()


@pytest.mark.parametrize("kind", KINDS)
def test_test_data_of_one_part_is_left_out_of_the_training_data_of_all(kind, capsys):
    train, test = mixed((KINDS[kind](range(10)), None), (Numbers(range(20, 24)), Numbers([2, 3, 30])))
    trained = numbers_of(one for batch in train.batches() for one in batch)
    assert trained == {0, 1, *range(4, 10), *range(20, 24)}
    assert numbers_of(test.all_datums()) == {2, 3, 30}
    printed = capsys.readouterr().err
    assert sum(int(line.rpartition(": ")[2]) for line in printed.splitlines()) == (1 if "many" in kind else 2)


def test_parts_that_share_no_test_data_are_unchanged():
    first, second = Numbers(range(10)), KINDS["rows"](range(20, 24))
    train, _ = mixed((first, Numbers([30])), (second, None))
    assert (train.parts["first"], train.parts["second"]) == (first, second)


class Indexed(SupervisedDataset):
    def get_batch(self, index):
        return [datum(index)]

    def __len__(self):
        return 10


@pytest.mark.parametrize(
    "data", [StreamingSupervisedDatasetFromHFDataset(lambda: range(10), 2, None, map_fn=datum), Indexed()]
)
def test_data_that_are_not_read_before_training_are_refused_beside_test_data(data):
    problem = rf"rows of a {type(data).__name__} cannot be compared with the test data.*evaluator_builders"
    with pytest.raises(DataError, match=problem) as caught:
        mixed((data, None), (Numbers(range(4)), Numbers([30])), length=8)
    assert caught.value.__notes__ == ["in the part 'first' of the mixture"]
    assert mixed((data, None), (Numbers(range(4)), None), length=8)[1] is None


@pytest.mark.parametrize("held_out", [(20, 20), (0, 20)])
@pytest.mark.parametrize("seed", range(3))
def test_files_that_share_rows_hold_out_each_row_from_both(tmp_path, held_out, seed):
    def builder(name, first, test_size):
        turns = [[("user", f"question {i}"), ("assistant", f"a{i}")] for i in range(first, first + 60)]
        rows = [{"messages": [{"role": role, "content": text} for role, text in turn]} for turn in turns]
        path = Path(tmp_path / name)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        common = ChatDatasetBuilderCommonConfig(model_name_for_tokenizer="tiny", renderer_name="qwen3_instruct")
        return FromConversationFileBuilder(
            common_config=common, file_path=str(path), test_size=test_size, shuffle_seed=seed
        )

    builders = {"a": builder("a.jsonl", 0, held_out[0]), "b": builder("b.jsonl", 30, held_out[1])}
    train, test = InterleavedDatasetBuilder(builders=builders, weights={"a": 1, "b": 1})()
    trained = {tuple(one.model_input.to_ints()) for batch in train.batches() for one in batch}
    tested = {tuple(one.model_input.to_ints()) for one in test.all_datums()}
    assert len(tested) > 0
    assert not trained & tested
    assert len(trained | tested) == 90
