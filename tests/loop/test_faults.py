"""One fault, one outcome: never a record that cannot be resumed."""

import errno
import json
import os
import re
import resource
import subprocess
import sys

import pytest

import tinkerloop
from tinkerloop.callbacks import Checkpoint, Evaluate, nll
from tinkerloop.errors import CheckpointError, RunLockedError
from tinkerloop.loop import Callback, Checkpoints, Jsonl, Log, Loop, Run, Sink, open_training_client
from tinkerloop.loop.checkpoints import Record
from tinkerloop.loop.jsonl import append_line, write_lines
from tinkerloop.testing import OrderedService


class LongRows(Callback):
    """Makes metrics.jsonl the largest file of the run folder, also under a long path: records name the folder."""

    def on_step(self, result):
        return Log({"x" * 1000: 0.0})


def run(service, batches, folder, steps=6, sinks=()):
    checkpoints = Checkpoints(folder)
    record = checkpoints.latest()
    client = open_training_client(service, record)
    loop = Loop(
        client,
        batches,
        steps=steps,
        callbacks=[Checkpoint(every=2), Evaluate("test", nll(batches[0]), every=2), LongRows()],
        checkpoints=checkpoints,
        record=record,
        sinks=[Jsonl(folder / "metrics.jsonl"), *sinks],
    )
    loop.run()
    return client


def failing(name, times=1):
    """A fault that fails the result of the `times`-th operation called `name`."""
    count = [0]

    def fault(operation):
        if operation[0] == "result" and operation[1][0] == name:
            count[0] += 1
            if count[0] == times:
                raise OSError(f"{name} failed")

    return fault


@pytest.fixture
def whole(batches, tmp_path_factory):
    """The folder and client of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(OrderedService(20), batches, folder)


def assert_resumes(service, batches, folder, whole):
    """The run can be resumed and ends as if nothing had happened."""
    for record in Checkpoints(folder).records():
        assert record.path in service.checkpoints
    service.fault = None
    client = run(service, batches, folder)
    assert client.state.logits.tobytes() == whole[1].state.logits.tobytes()
    assert (folder / "metrics.jsonl").read_text() == (whole[0] / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("name", "times", "note"),
    [
        ("save_state", 2, "in save at boundary 4"),
        ("forward", 2, "in evaluation 'test' at boundary 2"),
        ("optim_step", 4, "in step 3"),
        ("forward_backward", 4, "in step 3"),
    ],
)
def test_a_failed_operation_surfaces_in_its_place_and_the_run_resumes(
    service, batches, tmp_path, whole, name, times, note
):
    service.fault = failing(name, times)
    with pytest.raises(OSError, match=f"{name} failed") as caught:
        run(service, batches, tmp_path)
    assert note in caught.value.__notes__
    assert_resumes(service, batches, tmp_path, whole)


def test_a_poisoned_client_ends_the_run_where_it_is_next_used(service, batches, tmp_path, whole):
    seen = []

    def poisoned(operation):
        seen.append(operation)
        if len(seen) > 20:
            raise RuntimeError("A previous request failed; this TrainingClient is poisoned")

    service.fault = poisoned
    with pytest.raises(RuntimeError, match="poisoned"):
        run(service, batches, tmp_path)
    assert_resumes(service, batches, tmp_path, whole)


class FullDisk(Sink):
    """Fails as a full disk does, after some rows."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, step, row):
        self.rows -= 1
        if self.rows < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_under_a_sink_ends_the_run_with_a_note(service, batches, tmp_path, whole):
    with pytest.raises(OSError, match="No space left") as caught:
        run(service, batches, tmp_path, sinks=[FullDisk(5)])
    assert "in the sink FullDisk" in caught.value.__notes__
    assert_resumes(service, batches, tmp_path, whole)


def test_an_optional_sink_may_fail(service, batches, tmp_path, caplog):
    full = FullDisk(5)
    full.optional = True
    assert run(service, batches, tmp_path, sinks=[full]).state.updates == 6
    assert "the optional sink FullDisk failed and is removed" in caplog.text


@pytest.fixture
def room():
    """Lets files grow to so many bytes: the write that reaches the limit is cut short, as on a full disk."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


def test_a_full_disk_under_metrics_jsonl_leaves_a_run_that_resumes(service, batches, tmp_path, whole, room):
    metrics, checkpoints = ((whole[0] / name).stat().st_size for name in ("metrics.jsonl", "checkpoints.jsonl"))
    full = metrics - 20
    assert checkpoints < full, "metrics.jsonl must be the one that is full"
    room(full)
    with pytest.raises(OSError, match="File too large") as caught:
        run(service, batches, tmp_path)
    room(resource.RLIM_INFINITY)
    assert "in the sink Jsonl" in caught.value.__notes__
    assert (tmp_path / "metrics.jsonl").stat().st_size == full, "the last line is torn"
    assert_resumes(service, batches, tmp_path, whole)


def test_a_full_disk_under_checkpoints_jsonl_leaves_a_run_that_resumes(service, batches, tmp_path, whole, monkeypatch):
    fsync, count = os.fsync, [0]

    def full(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("checkpoints.jsonl"):
            count[0] += 1
            if count[0] == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(service, batches, tmp_path)
    monkeypatch.undo()
    assert [record.step for record in Checkpoints(tmp_path).records()] == [2]
    assert_resumes(service, batches, tmp_path, whole)


@pytest.mark.parametrize("torn", ['{"step": 4, "path": "tin', '{"step": 4}'])
def test_a_truncated_last_line_of_checkpoints_is_ignored_and_repaired(service, batches, tmp_path, torn):
    run(service, batches, tmp_path, steps=2)
    with (tmp_path / "checkpoints.jsonl").open("a") as file:
        file.write(torn)
    assert Checkpoints(tmp_path).latest().step == 2
    run(service, batches, tmp_path, steps=4)
    assert [json.loads(line)["step"] for line in (tmp_path / "checkpoints.jsonl").open()] == [2, 4]


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(service, batches, tmp_path):
    run(service, batches, tmp_path)
    file = tmp_path / "checkpoints.jsonl"
    file.write_text("not json\n" + file.read_text())
    with pytest.raises(CheckpointError, match=r"checkpoints.jsonl:1: not a JSON object"):
        Checkpoints(tmp_path).latest()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("step", "3", 'step is "3", expected a whole number of at least 0'),
        ("step", 2.5, "step is 2.5, expected"),
        ("step", True, "step is true, expected"),
        ("path", None, "path is null, expected a text that is not empty"),
        ("callbacks", None, "callbacks is null, expected an object"),
        ("callbacks", {"a": 3}, "expected an object with an object for each callback"),
        ("metrics", [1], r"metrics is \[1\], expected an object"),
        ("tokens", -1, "tokens is -1"),
        ("sampler_path", 3, "sampler_path is 3, expected a text or null"),
        ("saved_by", "checkpoint", "expected a list of texts"),
        ("ttl_seconds", "x", 'ttl_seconds is "x", expected a whole number or null'),
        ("final", 1, "final is 1, expected true, false or null"),
        ("model", [], "expected an object or null"),
        ("another", 1, "its fields are .*'another'"),
    ],
)
def test_a_record_with_a_field_of_another_type_is_an_error_that_names_it(tmp_path, field, value, message):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.append(Record(1, "tinker://run/weights/a", {}, {}, {}))
    line = json.loads(checkpoints.file.read_text()) | {"step": 2, field: value}
    append_line(checkpoints.file, line)
    with pytest.raises(CheckpointError, match=rf"checkpoints.jsonl:2: not a valid record: .*{message}"):
        checkpoints.latest()


@pytest.mark.parametrize("field", ["step", "path", "cursor", "callbacks", "metrics"])
def test_a_record_without_a_field_that_each_version_has_written_is_an_error(tmp_path, field):
    line = {"step": 1, "path": "tinker://run/weights/a", "cursor": {}, "callbacks": {}, "metrics": {"a": None}}
    append_line(tmp_path / "checkpoints.jsonl", line)
    assert Checkpoints(tmp_path).latest().step == 1
    del line[field]
    write_lines(tmp_path / "checkpoints.jsonl", [line])
    with pytest.raises(CheckpointError, match=r"checkpoints.jsonl:1: not a valid record: its fields are"):
        Checkpoints(tmp_path).latest()


def test_a_missing_checkpoint_says_what_to_do(service, batches, tmp_path):
    run(service, batches, tmp_path)
    service.checkpoints.clear()
    with pytest.raises(CheckpointError, match=r"the checkpoint of step 6 is not there: .* resume from an older record"):
        open_training_client(service, Checkpoints(tmp_path).latest())


def test_missing_rows_of_metrics_are_an_error(service, batches, tmp_path):
    run(service, batches, tmp_path, steps=2)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(CheckpointError, match="rows are missing"):
        run(service, batches, tmp_path, steps=4)


def test_a_run_folder_tells_what_was_asked_for_and_how_it_ended(service, batches, tmp_path):
    with Run(tmp_path / "run", {"steps": 4}) as one:
        client = service.create_lora_training_client()
        loop = Loop(client, batches, steps=4, checkpoints=one.checkpoints, sinks=[one.metrics])
        one.finish(loop.run())
    read = {name: json.loads((tmp_path / "run" / name).read_text()) for name in ("config.json", "summary.json")}
    assert read["config.json"] == {"steps": 4}
    assert (read["summary.json"]["step"], read["summary.json"]["reason"]) == (4, "steps reached")
    environment = json.loads((one.folder / "environment.json").read_text())
    assert {"command", "revision", "python", "packages"} <= set(environment)
    assert environment["packages"]["tinkerloop"] == tinkerloop.__version__
    assert len((one.folder / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_start_that_trains_nothing_leaves_the_summary_as_it_was(service, batches, tmp_path):
    with Run(tmp_path) as one:
        one.finish(Loop(service.create_lora_training_client(), batches, steps=1).run())
    ended = (tmp_path / "summary.json").read_bytes()
    with Run(tmp_path):
        assert not (tmp_path / "summary.json").exists()
    assert (tmp_path / "summary.json").read_bytes() == ended


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith("lock")}


def started(service, batches, folder, config, model=None, sinks=()):
    with Run(folder, config) as one:
        record = one.checkpoints.latest()
        one.describe(model=model)
        client = service.create_lora_training_client(model) if model else open_training_client(service, record)
        options = {"checkpoints": one.checkpoints, "record": record, "sinks": [one.metrics, *sinks]}
        one.finish(Loop(client, batches, steps=config["steps"], **options).run())


def test_a_start_that_is_refused_leaves_the_run_as_it_was(service, batches, tmp_path):
    started(service, batches, tmp_path, {"steps": 2}, "unigram")
    before = contents(tmp_path)
    with pytest.raises(CheckpointError) as raised:
        started(service, batches, tmp_path, {"steps": 3}, "bigram")
    assert contents(tmp_path) == before
    assert raised.value.__notes__[-1].endswith("is as it was before this start, which has trained nothing")
    with Run(tmp_path, {"steps": 1}):  # it is complete
        pass
    assert contents(tmp_path) == before


@pytest.mark.parametrize("steps", [1, 2])
def test_a_start_with_no_steps_left_says_that_nothing_was_trained(steps, service, batches, tmp_path, capsys):
    started(service, batches, tmp_path, {"steps": 2}, "unigram")
    assert "nothing was trained" not in capsys.readouterr().err
    started(service, batches, tmp_path, {"steps": steps})
    assert f"is complete: it was already at step 2 of {steps}, so nothing was trained; " in capsys.readouterr().err
    started(service, batches, tmp_path, {"steps": 3})
    assert "nothing was trained" not in capsys.readouterr().err


def test_a_start_that_is_refused_leaves_a_killed_run_without_a_summary(service, batches, tmp_path):
    started(service, batches, tmp_path, {"steps": 2}, "unigram")
    (tmp_path / "summary.json").unlink()
    with pytest.raises(CheckpointError):
        started(service, batches, tmp_path, {"steps": 3}, "bigram")
    assert not (tmp_path / "summary.json").exists()


def test_a_start_that_fails_in_its_first_step_is_an_error_of_the_run(service, batches, tmp_path):
    started(service, batches, tmp_path, {"steps": 2}, "unigram")

    def fails(step, row):
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError):
        started(service, batches, tmp_path, {"steps": 4}, sinks=[fails])
    assert "out of luck" in json.loads((tmp_path / "summary.json").read_text())["error"]
    assert json.loads((tmp_path / "config.json").read_text()) == {"steps": 4}


def test_a_config_may_hold_a_path(tmp_path):
    with Run(tmp_path, config={"data": tmp_path / "a.jsonl"}):
        assert json.loads((tmp_path / "config.json").read_text()) == {"data": str(tmp_path / "a.jsonl")}
        assert json.loads((tmp_path / "starts.jsonl").read_text())["config"] == {"data": str(tmp_path / "a.jsonl")}


def test_a_folder_that_could_not_be_entered_is_not_left_locked(tmp_path):
    (tmp_path / "starts.jsonl").mkdir()
    first = Run(tmp_path)  # kept, because a lock that is collected is released
    with pytest.raises(IsADirectoryError), first:
        pass
    (tmp_path / "starts.jsonl").rmdir()
    with Run(tmp_path):
        pass


def test_a_folder_whose_lock_could_not_be_written_is_not_left_locked(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    first = Run(tmp_path)  # kept, because a lock that is collected is released
    with monkeypatch.context() as disk:
        disk.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"), first:
            pass
    with Run(tmp_path):
        pass


@pytest.mark.parametrize("flush", range(1, 8))  # those of lock.holder, config.json, environment.json, starts.jsonl
@pytest.mark.parametrize("is_new", [False, True])
def test_a_start_that_fails_while_it_writes_leaves_the_run_as_it_was(
    flush, is_new, service, batches, tmp_path, monkeypatch
):
    if not is_new:
        started(service, batches, tmp_path, {"steps": 2}, "unigram")
    before, flushes, fsync = contents(tmp_path), [], os.fsync

    def full(descriptor):
        flushes.append(descriptor)
        if len(flushes) == flush:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as disk:
        disk.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"), Run(tmp_path, {"steps": 4}):
            pass
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["lock.holder", "config.json", "config.json.tmp", "environment.json.tmp"])
def test_a_planted_link_is_replaced_and_what_it_points_to_is_left_alone(tmp_path, name):
    (tmp_path / "mine").write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).symlink_to(tmp_path / "mine")
    with Run(folder, {"steps": 4}):
        pass
    assert (tmp_path / "mine").read_text() == "mine"
    assert json.loads((folder / "config.json").read_text()) == {"steps": 4}


def test_a_lock_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    with (
        pytest.raises(CheckpointError, match=r"lock is a symbolic link to .*mine: expected a regular file"),
        Run(tmp_path),
    ):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_no_module_of_the_package_needs_unix():
    """Windows has no `fcntl`; an import of it at the top of a module would end `import tinkerloop` there."""
    hidden = "import sys; sys.modules['fcntl'] = None; import tinkerloop.loop; print(tinkerloop.loop.Run.__name__)"
    answer = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, check=True)
    assert answer.stdout == "Run\n"


def test_a_failed_run_leaves_its_error_in_the_summary(tmp_path):
    with pytest.raises(RuntimeError), Run(tmp_path):
        raise RuntimeError("out of luck")
    assert "out of luck" in json.loads((tmp_path / "summary.json").read_text())["error"]


def test_a_failed_run_says_which_record_and_which_command_resume_it(service, batches, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "train", "name=a b", "api_key=s3cr3t"])

    with Run(tmp_path) as one:
        Loop(service.create_lora_training_client(), batches, steps=2, checkpoints=one.checkpoints).run()
    path = one.checkpoints.latest().path
    with pytest.raises(RuntimeError) as raised, Run(tmp_path):
        raise RuntimeError("out of luck")
    [note] = raised.value.__notes__
    assert f"it is resumed at step 2, from {path}, by: python -m train 'name=a b' " in note
    assert "s3cr3t" not in note


def test_a_failed_run_without_a_record_says_that_it_starts_anew(tmp_path):
    with pytest.raises(RuntimeError) as raised, Run(tmp_path):
        raise RuntimeError("out of luck")
    assert "; nothing was saved yet, so it is started anew, by: " in raised.value.__notes__[-1]


def test_a_program_that_exits_without_a_traceback_prints_how_to_go_on(tmp_path, capsys):
    with pytest.raises(SystemExit), Run(tmp_path):
        raise SystemExit(1)
    assert "; nothing was saved yet, so it is started anew, by: " in capsys.readouterr().err


HOLD = (
    "import sys, tinkerloop.loop as t; r = t.Run(sys.argv[1]); r.__enter__(); print('in', flush=True); sys.stdin.read()"
)


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "in\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_on_the_folder_is_refused(tmp_path, holder):
    with pytest.raises(RunLockedError, match=f"process {holder.pid}"), Run(tmp_path):
        pass


def test_a_lock_file_sends_no_escape_sequence_to_the_terminal(tmp_path, holder):
    (tmp_path / "lock.holder").write_text("me\x1b[2J\n\x9b")
    with pytest.raises(RunLockedError, match=re.escape("(me␛[2J⏎[U+009B])")), Run(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_void(tmp_path, holder):
    holder.kill()
    holder.wait()
    with Run(tmp_path):
        pass


def test_a_sink_that_cannot_open_ends_the_run_before_anything_is_queued(service, batches, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Loop(service.create_lora_training_client(), batches, sinks=[Jsonl(tmp_path / "file" / "m.jsonl")]).run()
    assert service.operations == []
