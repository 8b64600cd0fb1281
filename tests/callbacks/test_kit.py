"""The check kit accepts the built-in callbacks, and finds mistakes that callbacks of users have."""

import time
from dataclasses import dataclass, replace
from time import sleep

import pytest
import tinker

from tinkerloop.callbacks import (
    Checkpoint,
    EarlyStop,
    Evaluate,
    GradientAccumulation,
    LRSchedule,
    Progress,
    StopOnNonFinite,
    StopWhen,
    nll,
)
from tinkerloop.errors import CheckFailedError, PlanError
from tinkerloop.loop import Callback, Log, MicroBatch, Save, Stop
from tinkerloop.loop.schedules import cosine
from tinkerloop.rollouts import policy_datum
from tinkerloop.testing import (
    check_callback,
    drive,
    sample_batches,
    sample_boundary,
    sample_plan,
    sample_step_result,
)


def evaluation():
    return Evaluate("test", nll(sample_batches()[0]), every=1)


BUILT_IN = {
    "accumulation": (lambda: GradientAccumulation(2, micro_batch=3), tuple),
    "checkpoint": (lambda: Checkpoint(every=2, keep_last=2), tuple),
    "early stop": (lambda: EarlyStop("test/nll", patience=2, min_delta=0.01), lambda: [evaluation()]),
    "evaluation": (evaluation, tuple),
    "progress": (lambda: Progress(), tuple),
    "schedule": (lambda: LRSchedule(cosine(1.0, 0.0, 6)), tuple),
    "non-finite": (StopOnNonFinite, tuple),
    "stop when": (lambda: StopWhen("loss", above=2.9, patience=2), tuple),
}


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("ahead", [0, 2])
def test_built_in_callbacks_pass(name, ahead):
    make, others = BUILT_IN[name]
    assert "µs" in str(check_callback(make, others=others, ahead=ahead))


@dataclass(frozen=True)
class FixedRate(Callback):
    rate: float = 1e-3

    def on_plan(self, plan):
        return plan.with_optim(learning_rate=self.rate)


@dataclass
class ScaledLoss(Callback):
    """Trains with a custom loss, which is another function in each step."""

    scale: float = 2.0

    def on_plan(self, plan):
        scale = self.scale

        def loss(datums, logprobs):
            return -scale * sum(one.sum() for one in logprobs), {}

        batches = [replace(one, loss_fn=loss) for one in plan.micro_batches]
        return plan.with_micro_batches(batches, normalize="none")


@pytest.mark.parametrize("make", [FixedRate, ScaledLoss])
def test_a_correct_callback_passes(make):
    pytest.importorskip("torch")
    check_callback(make)


@dataclass
class Worst:
    worst: float = 0.0


class Forgetful(Callback):
    """Decides from an attribute that no record has."""

    def __init__(self):
        self.worst = 0.0

    def on_step(self, result):
        self.worst = max(self.worst, result.loss)
        return Log({"worst_loss": self.worst})


class Blocking(Callback):
    def on_boundary(self, boundary):
        boundary.client.forward(sample_batches()[0], "cross_entropy").result()


class Sleepy(Callback):
    def on_step(self, result):
        time.sleep(1)


class SleepyByName(Callback):
    def on_step(self, result):
        sleep(0.001)


class GlobalConfig(Callback):
    """Sets an option of the loss from a counter of the class."""

    seen = 0

    def on_plan(self, plan):
        GlobalConfig.seen += 1
        config = {"clip_high_threshold": 1.2 + 0.01 * GlobalConfig.seen}
        return plan.with_micro_batches(replace(one, loss_fn="ppo", config=config) for one in plan.micro_batches)


class GlobalTokens(Callback):
    """Sets the input tokens from a counter of the class."""

    seen = 0

    def on_plan(self, plan):
        GlobalTokens.seen += 1
        inputs = [tinker.ModelInput.from_ints([GlobalTokens.seen % 9] * one.model_input.length) for one in plan.datums]
        datums = [
            tinker.Datum(model_input=given, loss_fn_inputs=one.loss_fn_inputs)
            for given, one in zip(inputs, plan.datums, strict=True)
        ]
        return plan.with_micro_batches([MicroBatch(tuple(datums))])


class GlobalLoss(Callback):
    """Closes its custom loss over a counter of the class."""

    seen = 0

    def on_plan(self, plan):
        GlobalLoss.seen += 1
        return ScaledLoss(scale=1.0 + GlobalLoss.seen).on_plan(plan)


class Unsaved(Callback):
    def __init__(self):
        self.state = Worst()

    def on_step(self, result):
        self.state.worst = (result.loss,)


class Global(Callback):
    """Keeps its counter in the class, so that the second run differs from the first."""

    seen = 0

    def on_step(self, result):
        Global.seen += 1
        return Log({"seen": Global.seen})


class Unlisted(Callback):
    def on_step(self, result):
        return {"a": 1}


class FailsAtTheEnd(Callback):
    def on_end(self, summary):
        if summary.error:
            raise ValueError("the summary has an error")


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (
            Forgetful,
            r"resumed at step 5 gives .*: on_step at step 5 returned \[Log.*, expected \[Log.*Put .* into `state`",
        ),
        (Blocking, "on_boundary waited for the result of forward"),
        (Sleepy, "on_step slept for 1 s"),
        (SleepyByName, "on_step slept"),
        (GlobalTokens, r"`arun` gives other requests than `run`: on_plan at step 0"),
        (GlobalLoss, r"`arun` gives other requests than `run`: on_plan at step 0"),
        (Unsaved, "state of callback 'unsaved' cannot be saved"),
        (Global, r"`arun` gives other requests than `run`: on_step at step 0 .* not from a clock"),
        (Unlisted, r"Unlisted.on_step returned {'a': 1}, but it may return only .*, in unlisted.on_step at step 0"),
        (FailsAtTheEnd, "on_end was called 0 times, or raised"),
    ],
)
def test_a_mistake_in_a_callback_is_found(make, problem):
    with pytest.raises(CheckFailedError, match=problem):
        check_callback(make)


def test_an_option_of_the_loss_that_differs_in_each_run_is_found():
    def batches():
        tokens, sampled = [3, 4, 5], [False, True, True]
        return [[policy_datum(tokens, sampled, [-1.0, -2.0], [1.0, 0.5]) for _ in range(2)] for _ in range(3)]

    with pytest.raises(CheckFailedError, match="`arun` gives other requests than `run`: on_plan at step 0"):
        check_callback(GlobalConfig, batches=batches)


def test_one_callback_for_all_runs_is_refused():
    callback = StopOnNonFinite()
    with pytest.raises(CheckFailedError, match="create a new one"):
        check_callback(lambda: callback)


class Halve(Callback):
    def on_plan(self, plan):
        return plan.with_optim(learning_rate=plan.optim.learning_rate / 2)

    def on_boundary(self, boundary):
        return [Save(), Stop("far enough")] if boundary.step == 2 else None


def test_drive_returns_the_requests_of_each_event():
    plan, nothing, both = drive(Halve(), [sample_plan(1, 0.4), sample_boundary(1), sample_boundary(2)])
    assert plan.optim.learning_rate == 0.2
    assert (nothing, both) == ([], [Save(), Stop("far enough")])


def test_drive_passes_a_row_as_its_step_and_values():
    class Rows(Callback):
        def on_row(self, step, row):
            return Stop(f"{row['loss']} at {step}")

    assert drive(Rows(), [(3, {"loss": 0.5})]) == [[Stop("0.5 at 3")]]


def test_drive_refuses_a_request_that_the_event_cannot_carry():
    class Wrong(Callback):
        def on_step(self, result):
            return Save()

    with pytest.raises(PlanError, match="may return only Log, Stop"):
        drive(Wrong(), [sample_step_result()])


class Measured(Callback):
    """Logs a time, which is another one in each run."""

    def on_step(self, result):
        return Log({"loss_again": result.loss, "tokens_per_second": result.plan.trained_tokens / time.perf_counter()})


def test_measured_times_are_not_compared_if_they_are_named():
    with pytest.raises(CheckFailedError, match="tokens_per_second"):
        check_callback(Measured)
    check_callback(Measured, ignored_metrics=("tokens_per_second",))
