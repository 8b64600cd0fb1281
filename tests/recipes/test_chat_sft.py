"""The main recipe: real processes, real files, real kills."""

import json
import random
import re
import subprocess
import sys
import time

import pytest

from tests.processes import ROOT, Process, timed

FEW_ROWS = "recipes/data/pig_latin_test.jsonl"
SMALL = [f"file={FEW_ROWS}", "steps=8", "save_every=2", "eval_every=4", "test_size=4", "batch_size=8"]
COMMAND = [sys.executable, "-m", "recipes.chat_sft"]
PROGRAM = "import runpy; runpy.run_module('recipes.chat_sft', run_name='__main__', alter_sys=True)"


def start(folder):
    return Process(PROGRAM, f"run={folder}", *SMALL, output=folder.with_name(f"{folder.name}.log"))


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def outcome(folder):
    """Weights, optimizer state and metrics at the end of the run, to the bit."""
    record = json.loads((folder / "checkpoints.jsonl").read_text().splitlines()[-1])
    (saved,) = (folder / "service").glob(f"{record['path'].split('/')[2].replace(':', '_')}/weights/*-000008")
    tensors = {file.name: file.read_bytes() for file in saved.glob("*.safetensors")}
    assert {"adapter_model.safetensors", "optimizer.safetensors"} <= tensors.keys()
    return tensors, rows(folder), record | {"path": "", "run": "", "folder": "", "name": "", "state_path": ""}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to: its folder, its output, and its duration in seconds from the first file on."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, *timed([*COMMAND, f"run={folder}", *SMALL], folder / "config.json")


def test_it_leaves_a_run_folder_and_says_what_it_did(whole):
    folder, output, _ = whole
    names = {"config.json", "environment.json", "metrics.jsonl", "checkpoints.jsonl", "metrics.png", "summary.json"}
    assert names <= {file.name for file in folder.iterdir()}
    assert "before" in output
    assert "after" in output
    assert "exact match on 4 unseen prompts" in output


def test_the_final_row_carries_the_exact_match(whole):
    assert "test/exact_match" in rows(whole[0])[-1]


def test_it_evaluates_before_during_and_after(whole):
    assert [row["step"] for row in rows(whole[0]) if "test/nll" in row] == [0, 4, 8]


def test_a_complete_run_says_so_and_more_steps_extend_it(tmp_path, capsys):
    folder = tmp_path / "run"
    small = {"run": str(folder), "save_every": 2, "eval_every": 4, "test_size": 2, "batch_size": 4}
    main(**small, steps=2)
    main(**small, steps=2)
    assert "is complete: 2 steps" in capsys.readouterr().out
    main(**small, steps=4)
    assert [row["step"] for row in rows(folder) if "loss" in row] == [0, 1, 2, 3]


def kill_and_resume(folder, whole, moments):
    for moment in moments:
        process = start(folder)
        process.wait_for(folder / "config.json")
        time.sleep(moment * whole[2])
        process.kill()
    start(folder).finish()
    assert outcome(folder) == outcome(whole[0])


@pytest.mark.slow
def test_killed_at_a_random_moment_it_ends_bit_identical(whole, tmp_path):
    kill_and_resume(tmp_path / "run", whole, [random.Random("kill").uniform(0.2, 0.9)])


def kill_during_a_save(folder):
    """Kill the run when it has begun to write a checkpoint; returns whether that was left half-written."""
    before = set((folder / "service").glob(".writing-*"))
    process = start(folder)
    while not process.has_ended and not set((folder / "service").glob(".writing-*")) - before:
        pass
    process.kill()
    return bool(set((folder / "service").glob(".writing-*")) - before)


@pytest.mark.slow
def test_killed_during_a_save_it_ends_bit_identical(whole, tmp_path):
    folder = tmp_path / "run"
    assert any(kill_during_a_save(folder) for _ in range(3)), "every save was finished before the kill arrived"
    start(folder).finish()
    assert outcome(folder) == outcome(whole[0])


@pytest.mark.soak
@pytest.mark.parametrize("trial", range(10))
def test_killed_at_thirty_random_moments_each_run_ends_bit_identical(whole, tmp_path, trial):
    chance = random.Random(f"kill/{trial}")
    kill_and_resume(tmp_path / "run", whole, [chance.uniform(0, 1) for _ in range(3)])


BAD_ROWS = {
    "not json": "{nope",
    "no messages": '{"text": "hello"}',
    "unknown role": '{"messages": [{"role": "wizard", "content": "a"}, {"role": "assistant", "content": "b"}]}',
    "empty content": '{"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]}',
    "only user turns": '{"messages": [{"role": "user", "content": "a"}]}',
    "too long": '{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "b"}]}'
    % ("a" * 2000),
}
GOOD = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'


@pytest.fixture
def bad_file(tmp_path, request):
    file = tmp_path / "chats.jsonl"
    good = [GOOD.replace('"a"', f'"a{number}"') for number in range(21)]
    file.write_text("\n".join([*good[:20], BAD_ROWS[request.param], good[20]]) + "\n")
    return file


def main(**options):
    import chz

    from recipes.chat_sft import Config
    from recipes.chat_sft import main as run

    run(chz.replace(Config(), **options))


@pytest.mark.parametrize("bad_file", BAD_ROWS, indirect=True)
def test_a_bad_row_is_one_error_with_file_and_line_before_any_training(bad_file, tmp_path):
    from tinkerloop.errors import DataError

    with pytest.raises(DataError, match=rf"{bad_file}:21: .*; ") as caught:
        main(file=str(bad_file), run=str(tmp_path / "run"))
    assert (caught.value.path, caught.value.line) == (str(bad_file), 21)
    assert caught.value.remedy
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("bad_file", ["not json", "too long"], indirect=True)
def test_a_bad_row_is_skipped_and_counted_when_asked(bad_file, tmp_path, capsys):
    main(file=str(bad_file), run=str(tmp_path / "run"), on_bad="skip", steps=1, batch_size=2, test_size=2)
    assert re.search(r"1 of \d+ rows skipped", capsys.readouterr().out)


def test_long_replies_are_sampled_but_not_compared(tmp_path, capsys):
    file = tmp_path / "long.jsonl"
    reply = {"role": "assistant", "content": "long reply " * 40}
    asked = [{"messages": [{"role": "user", "content": f"question {i}"}, reply]} for i in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in asked))
    main(file=str(file), run=str(tmp_path / "run"), steps=1, batch_size=2, eval_every=1)
    assert "exact match" not in capsys.readouterr().out
    assert not any("test/exact_match" in row for row in rows(tmp_path / "run"))
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {sample["step"] for sample in samples} == {0, 1}
    assert all("score" not in sample for sample in samples)


def test_a_dry_run_prints_the_size_of_the_run_and_writes_nothing(tmp_path, capsys):
    main(run=str(tmp_path / "run"), dry_run=True, steps=8, eval_every=4, test_size=4)
    shown = capsys.readouterr().out
    assert re.search(r"^evaluations +3, each of [\d,]+ tokens, at most [\d,]+ sampled tokens$", shown, re.MULTILINE)
    assert "memory of the embedded engine: about" in shown
    assert re.search(r"^steps +8 ", shown, re.MULTILINE)
    assert not (tmp_path / "run").exists()


def test_a_misspelt_option_names_the_nearest(tmp_path):
    done = subprocess.run([*COMMAND, f"run={tmp_path}", "lerning_rate=1"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Did you mean 'learning_rate'" in done.stdout + done.stderr
