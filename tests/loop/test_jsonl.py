"""Lines of JSON: what is written is valid JSON, and what is read back is what was written."""

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from tinkerloop import Callback
from tinkerloop.errors import CheckpointError
from tinkerloop.loop import Checkpoints, Log, Loop, Run
from tinkerloop.loop.jsonl import append_line, encode, read_lines


def strictly(text):
    """Parse `text` as JSON, without the constants that Python's parser also accepts."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


ROW = {"inf": math.inf, "list": [-math.inf, {"numpy": np.float32("inf")}], "text": "NaNs", "one": 1.5}


def test_infinite_numbers_are_written_as_valid_json():
    assert strictly(encode(ROW)) == {
        "inf": "Infinity",
        "list": ["-Infinity", {"numpy": "Infinity"}],
        "text": "NaNs",
        "one": 1.5,
    }


def test_infinite_numbers_are_read_back_as_numbers(tmp_path):
    append_line(tmp_path / "m.jsonl", ROW)
    assert list(read_lines(tmp_path / "m.jsonl")) == [ROW]


@pytest.mark.parametrize("line", ['{"a": NaN}', '{"a": "NaN"}'], ids=["of an older version", "of this one"])
def test_nan_is_read_as_a_number(tmp_path, line):
    (tmp_path / "m.jsonl").write_text(line + "\n")
    (row,) = read_lines(tmp_path / "m.jsonl")
    assert math.isnan(row["a"])


@dataclass
class Lowest:
    value: float = math.inf
    name: str = ""


class Keeps(Callback):
    """Keeps a state that begins infinite, and logs a metric that is not a number."""

    def __init__(self, name=""):
        self.state = Lowest(name=name)

    def on_step(self, result):
        return Log({"undefined": math.nan})


def train(service, batches, folder, callback):
    with Run(folder, {"patience": math.inf}) as run:
        loop = Loop(
            service.create_lora_training_client(),
            batches,
            steps=1,
            callbacks=[callback],
            sinks=[run.metrics],
            checkpoints=run.checkpoints,
        )
        run.finish(loop.run())


def test_every_file_of_a_run_folder_is_valid_json(service, batches, tmp_path):
    train(service, batches, tmp_path, Keeps())
    for file in tmp_path.glob("*.json"):
        strictly(file.read_text())
    for file in tmp_path.glob("*.jsonl"):
        for line in file.read_text().splitlines():
            strictly(line)
    assert strictly((tmp_path / "config.json").read_text()) == {"patience": "Infinity"}


def test_a_record_gives_back_states_and_metrics_that_are_not_finite(service, batches, tmp_path):
    train(service, batches, tmp_path, Keeps())
    record = Checkpoints(tmp_path).latest()
    assert record.callbacks["keeps"]["value"] == math.inf
    assert math.isnan(record.metrics["undefined"])


@pytest.mark.parametrize("word", ["NaN", "-Infinity", "'NaN", "''Infinity", "'", "'x"])
def test_a_record_gives_back_texts_that_are_words_for_numbers(word, service, batches, tmp_path):
    train(service, batches, tmp_path, Keeps(word))
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest().callbacks["keeps"] == {"value": math.inf, "name": word}
    checkpoints.append(replace(checkpoints.latest(), step=2, cursor={"files": [word], "rate": math.inf}))
    assert checkpoints.latest().cursor == {"files": [word], "rate": math.inf}


@pytest.mark.parametrize("damage", ['{"step": 4', "3]", '{"step": 4}, {"step": 5}', "\udcff"])
def test_a_damaged_line_among_many_is_named_after_the_rows_before_it(tmp_path, damage):
    lines = [f'{{"step": {step}}}' for step in range(20_000)]
    lines[12_345] = damage
    (tmp_path / "m.jsonl").write_bytes("\n".join([*lines, "{"]).encode(errors="surrogateescape"))
    rows = read_lines(tmp_path / "m.jsonl")
    assert [next(rows)["step"] for _ in range(12_345)] == list(range(12_345))
    with pytest.raises(CheckpointError, match=r"m\.jsonl:12346: not a JSON object"):
        next(rows)
