"""A stream of many rows: constant memory, an early first batch, exact resuming in a late epoch."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinkerloop.data import FileSource, stream

ROOT = Path(__file__).parents[2]

STREAM = """
import json, resource, sys
from tinkerloop.data import FileSource, stream

class Counted(FileSource):
    read = 0
    def open(self, position=None):
        rows = super().open(position)
        parse = rows._parse
        def counting(raw):
            Counted.read += 1
            return parse(raw)
        rows._parse = counting
        return rows

train = stream(Counted(sys.argv[1]), 64, epochs=1, shuffle=0, buffer_size=int(sys.argv[2]))
next(train)
first = Counted.read
rows = 64 + sum(len(batch) for batch in train)
print(json.dumps({"first": first, "rows": rows, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


def write(path, count):
    with open(path, "w") as file:
        for i in range(count):
            messages = [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "x" * 200}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def measured(path, buffer_size):
    done = subprocess.run(
        [sys.executable, "-c", STREAM, str(path), str(buffer_size)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def check(tmp_path, few, many, buffer_size):
    small, large = (measured(write(tmp_path / f"{n}.jsonl", n), buffer_size) for n in (few, many))
    assert (small["rows"], large["rows"]) == (few, many)
    assert large["peak"] < 1.1 * small["peak"]
    assert large["first"] <= many / 100


@pytest.mark.skipif(os.name != "posix", reason="peak memory is read from getrusage")
def test_memory_is_constant_and_the_first_batch_early(tmp_path):
    check(tmp_path, 2_000, 100_000, 1_000)


@pytest.mark.soak
def test_memory_is_constant_over_a_million_rows(tmp_path):
    check(tmp_path, 10_000, 1_000_000, 4_096)


@pytest.mark.parametrize("count", [5_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_a_run_resumes_in_the_middle_of_the_third_epoch(tmp_path, count):
    source = FileSource(write(tmp_path / "rows.jsonl", count))

    def make():
        return stream(source, 64, epochs=3, shuffle=0, buffer_size=1024)

    whole = make()
    middle = 2 * -(-count // 64) + count // 128
    for _ in itertools.islice(whole, middle):
        pass
    resumed = make()
    resumed.seek(json.loads(json.dumps(whole.cursor)))
    assert resumed.cursor["epoch"] == 2
    for ours, theirs in itertools.zip_longest(resumed, whole):
        assert ours == theirs
