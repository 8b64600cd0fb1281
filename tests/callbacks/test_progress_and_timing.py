import io
import time

import pytest

from tinkerloop.callbacks import Evaluate, Progress, Timing, nll
from tinkerloop.errors import PlanError
from tinkerloop.loop import Callback, Log, Loop, Summary


def test_without_a_terminal_it_prints_plain_lines(service, batches):
    out = io.StringIO()
    callbacks = [Progress(every=2, file=out), Evaluate("test", nll(batches[0]), every=3)]
    Loop(service.create_lora_training_client(), batches, steps=4, callbacks=callbacks).run()
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines[:-1]] == ["0", "0", "2", "3", "3", "4"]
    assert all("loss" in line and "tok/s" in line for line in lines[:-1] if "nll" not in line)
    assert lines[-1] == "ended at step 4: steps reached"


def test_a_resumed_run_says_where_it_goes_on(service, batches):
    out = io.StringIO()
    progress = Progress(file=out)
    progress.on_start(7, 10)
    assert out.getvalue() == "resumed at step 7\n"


@pytest.mark.parametrize("name", ["reward", "rollouts/reward_mean"])
def test_it_shows_the_reward_that_another_callback_logs(service, batches, name):
    out = io.StringIO()

    class Rewards(Callback):
        def on_step(self, result):
            return Log({name: result.step / 4})

    callbacks = [Progress(every=1, file=out), Rewards(), Evaluate("test", nll(batches[0]), every=1)]
    Loop(service.create_lora_training_client(), batches, steps=2, callbacks=callbacks).run()
    lines = [line for line in out.getvalue().splitlines() if "loss" in line]
    assert [line[:26] for line in lines] == ["step      0  reward 0.000 ", "step      1  reward 0.250 "]


def test_it_says_how_a_failed_run_ended(service, batches):
    out = io.StringIO()

    class Broken(Callback):
        def on_step(self, result):
            raise RuntimeError("oops")

    with pytest.raises(RuntimeError):
        Loop(service.create_lora_training_client(), batches, callbacks=[Progress(file=out), Broken()]).run()
    assert out.getvalue().splitlines()[-1].endswith("error")


def test_what_it_prints_is_never_taken_for_markup():
    out = io.StringIO()
    progress = Progress(file=out)
    progress.on_start(0, None)
    progress.on_end(Summary(8, "see [/runs/one]", {}))
    assert out.getvalue() == "ended at step 8: see [/runs/one]\n"


def test_of_an_evaluation_it_prints_the_numbers(eval_result):
    out = io.StringIO()
    progress = Progress(file=out)
    progress.on_start(0, None)
    progress.on_eval(eval_result(3, score=1, samples=["a", "b"]))
    assert out.getvalue() == "step      3  test/score 1.0000\n"


def test_it_sends_no_escape_sequence_of_a_name_to_the_terminal(eval_result):
    out = io.StringIO()
    progress = Progress(file=out)
    progress.on_start(0, None)
    progress.on_eval(eval_result(3, **{"\x1b[2Jscore\n": 1}))
    progress.on_end(Summary(8, "\x1b[2J", {}))
    assert out.getvalue() == "step      3  test/␛[2Jscore⏎ 1.0000\nended at step 8: ␛[2J\n"


class Sleepy(Callback):
    def on_step(self, result):
        time.sleep(0.01)


def test_timing_says_where_a_steps_time_went(service, batches):
    rows = []
    timing = Timing(per_callback=True)

    def slow():
        for batch in batches:
            time.sleep(0.02)
            yield batch

    sinks = [lambda step, row: rows.append(row)]
    Loop(service.create_lora_training_client(), slow(), steps=4, callbacks=[Sleepy(), timing], sinks=sinks).run()
    last = rows[-1]
    assert last["time/callback/sleepy"] >= 0.01
    assert sum(row["time/data"] for row in rows) >= 0.08
    assert last["time/total"] >= last["time/data"] + last["time/callbacks"]
    assert "data" in timing.report()


@pytest.mark.parametrize("every", [0, -1, 2.5])
def test_progress_prints_after_whole_numbers_of_steps(every):
    with pytest.raises(PlanError, match="every must be a whole number of at least 1, got"):
        Progress(every=every)
