import math
from concurrent.futures import Future

import pytest

from tinkerloop.callbacks import Budget, EarlyStop, Evaluate, StopOnNonFinite, StopWhen
from tinkerloop.errors import NonFiniteError, PlanError, TinkerloopError
from tinkerloop.loop import Callback, Checkpoints, Eval, EvalResult, Log, Loop, Stop, open_training_client


def feed(callback, eval_result, values):
    return [callback.on_eval(eval_result(step, nll=value)) for step, value in enumerate(values)]


def test_early_stop_waits_for_its_patience(eval_result):
    answers = feed(EarlyStop("test/nll", patience=2), eval_result, [3.0, 2.0, 2.5, 2.1])
    assert answers == [None, None, None, Stop("test/nll has not improved on 2 since step 1")]


def test_an_improvement_resets_the_patience(eval_result):
    assert feed(EarlyStop("test/nll", patience=2), eval_result, [3.0, 3.5, 2.0, 2.5]) == [None] * 4


def test_any_value_improves_on_nan(eval_result):
    assert feed(EarlyStop("test/nll", patience=2), eval_result, [math.nan, 3.0, 2.0, 1.0]) == [None] * 4


def test_max_mode_wants_more(eval_result):
    answers = feed(EarlyStop("test/nll", patience=1, mode="max"), eval_result, [1.0, 2.0, 1.5])
    assert answers[-1] == Stop("test/nll has not improved on 2 since step 1")


def test_a_small_improvement_does_not_count(eval_result):
    answers = feed(EarlyStop("test/nll", patience=1, min_delta=0.5), eval_result, [3.0, 2.8])
    assert isinstance(answers[-1], Stop)


def test_early_stop_ignores_other_evaluations(eval_result):
    callback = EarlyStop("other/nll", patience=1)
    assert feed(callback, eval_result, [1.0, 2.0, 3.0]) == [None] * 3


def test_a_missing_metric_is_an_error(eval_result):
    with pytest.raises(TinkerloopError, match=r"no metric 'accuracy'; its metrics are \['nll'\]"):
        EarlyStop("test/accuracy").on_eval(eval_result(0, nll=1.0))


def test_early_stop_decides_again_from_its_state(eval_result):
    callback = EarlyStop("test/nll", patience=1)
    feed(callback, eval_result, [1.0, 2.0])
    patient = EarlyStop("test/nll", patience=2)
    patient.state = callback.state
    assert isinstance(callback.on_start(2, None), Stop)
    assert patient.on_start(2, None) is None


def test_two_early_stops_have_two_names():
    assert EarlyStop("a/nll").name != EarlyStop("b/nll").name


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_metric_raises(step_result, value):
    with pytest.raises(NonFiniteError, match="grad_norm is"):
        StopOnNonFinite().on_step(step_result(grad_norm=value))


def test_metrics_may_be_excepted(step_result):
    assert StopOnNonFinite(ignore=["grad_norm"]).on_step(step_result(grad_norm=math.nan)) is None


def test_a_token_budget_stops_the_run(service, batches):
    tokens = sum(datum.model_input.length for batch in batches[:2] for datum in batch)
    summary = Loop(service.create_lora_training_client(), batches, callbacks=[Budget(tokens=tokens)], ahead=0).run()
    assert (summary.step, summary.reason) == (2, f"the budget of {tokens} tokens is spent")


def test_a_time_budget_counts_what_earlier_parts_spent(step_result):
    now = [0.0]
    first = Budget(seconds=10, clock=lambda: now[0])
    assert first.on_start(0, None) is None
    now[0] = 6.0
    assert first.on_step(step_result()) is None
    second = Budget(seconds=10, clock=lambda: now[0])
    second.state = first.state
    now[0] = 100.0
    assert second.on_start(1, None) is None
    now[0] = 104.0
    assert second.on_step(step_result()) == Stop("the budget of 10 seconds is spent")


def test_a_budget_needs_a_limit():
    with pytest.raises(PlanError, match="tokens= or seconds="):
        Budget()


class Ready(Future):
    def __init__(self, **metrics):
        super().__init__()
        self.set_result(metrics)


def constant(client):
    return Ready(**{"math/acc": 0.5})


def test_early_stop_reads_a_metric_with_a_slash_in_its_name(service, batches):
    callbacks = [Evaluate("test", constant, every=1), EarlyStop("test/math/acc", patience=2, mode="max")]
    summary = Loop(service.create_lora_training_client(), batches, callbacks=callbacks, ahead=0).run()
    assert summary.reason == "test/math/acc has not improved on 0.5 since step 0"


def test_a_metric_with_a_slash_may_be_of_an_evaluation_with_a_longer_name():
    callback = EarlyStop("test/math/acc", patience=1)
    assert callback.on_eval(EvalResult(0, "test", {"nll": 1.0})) is None
    assert callback.on_eval(EvalResult(0, "test/math", {"acc": 1.0})) is None
    assert isinstance(callback.on_eval(EvalResult(1, "test/math", {"acc": 1.0})), Stop)


@pytest.mark.parametrize(
    ("metric", "detached", "says"),
    [
        ("tets/acc", False, r"nothing logs it: the evaluations of this run are \['test'\].*did you mean 'test/acc'"),
        ("acc", False, "nothing logs it"),
        ("test/acc", True, "a metric of a detached evaluation"),
    ],
)
def test_a_metric_that_cannot_decide_is_refused_before_the_run(service, batches, metric, detached, says):
    callbacks = [Evaluate("test", constant, detached=detached), EarlyStop(metric)]
    with pytest.raises(PlanError, match=says):
        Loop(service.create_lora_training_client(), batches, callbacks=callbacks)
    assert service.operations == []


def test_the_evaluations_of_other_callbacks_need_not_be_known_before_the_run(service, batches):
    class Mine(Callback):
        def on_boundary(self, boundary):
            return Eval("mine", Ready(x=1.0))

    loop = Loop(service.create_lora_training_client(), batches, callbacks=[Mine(), EarlyStop("mine/x", patience=1)])
    assert loop.run().stopped_early


def test_a_metric_that_nothing_logged_is_an_error_at_the_end(service, batches):
    callbacks = [Evaluate("test", constant), EarlyStop("test/math/acx")]
    with pytest.raises(TinkerloopError, match=r"never stopped early.*did you mean 'test/math/acc'"):
        Loop(service.create_lora_training_client(), batches, steps=1, callbacks=callbacks).run()


# --- StopWhen ---


class Logged(Callback):
    """Logs the given value of the metric `policy/kl_k3` for each step; nothing for None."""

    def __init__(self, *values):
        self.values = values

    def on_step(self, result):
        value = self.values[result.step] if result.step < len(self.values) else None
        return None if value is None else Log({"policy/kl_k3": value})


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("logged_first", [True, False])
def test_stop_when_counts_the_rows_in_a_row_in_which_a_metric_is_above_its_threshold(
    service, batches, ahead, logged_first
):
    callbacks = [Logged(0.2, 0.0, 0.2, None, 0.3, 0.0), StopWhen("policy/kl_k3", above=0.1, patience=2)]
    client = service.create_lora_training_client()
    summary = Loop(client, batches * 2, callbacks=callbacks if logged_first else callbacks[::-1], ahead=ahead).run()
    assert summary.reason == "policy/kl_k3 was above 0.1 2 times in a row, last 0.3"
    assert summary.step == 5 + ahead


def rows(callback, *values):
    return [callback.on_row(step, {"x": value}) for step, value in enumerate(values)]


def test_stop_when_has_a_lower_threshold_too():
    assert rows(StopWhen("x", below=0.5), 0.5, 9.0) == [None, None]
    assert isinstance(rows(StopWhen("x", below=0.5), 0.4)[0], Stop)


def test_nan_is_beyond_every_threshold():
    assert isinstance(rows(StopWhen("x", above=1.0), math.nan)[0], Stop)


@pytest.mark.parametrize(
    "arguments, problem",
    [
        ({}, "got none"),
        ({"above": 1, "patience": 0}, "patience must be a whole number"),
        ({"above": 1, "patience": 1.5}, "patience must be a whole number"),
        ({"above": math.nan}, "above must be a finite number, got nan"),
        ({"below": -math.inf}, "below must be a finite number, got -inf"),
    ],
)
def test_stop_when_refuses_arguments_that_never_or_always_stop(arguments, problem):
    with pytest.raises(PlanError, match=problem):
        StopWhen("x", **arguments)


@pytest.mark.parametrize("option", [{"patience": 0}, {"patience": 1.5}, {"min_delta": -0.1}, {"min_delta": math.nan}])
def test_early_stop_refuses_numbers_with_which_it_stops_at_once_or_never(option):
    with pytest.raises(PlanError, match=f"{next(iter(option))} must be a"):
        EarlyStop("test/nll", **option)


@pytest.mark.parametrize("limit", ["tokens", "seconds"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_budget_that_is_never_spent_is_refused(limit, value):
    with pytest.raises(PlanError, match=f"{limit} must be a finite number, got"):
        Budget(**{limit: value})


def test_a_metric_that_nothing_logs_is_noticed_at_the_end(service, batches):
    loop = Loop(service.create_lora_training_client(), batches, callbacks=[StopWhen("los", above=9)])
    with pytest.raises(TinkerloopError, match=r"nothing has logged the metric 'los'.*did you mean 'loss'"):
        loop.run()


def test_the_metric_of_a_detached_evaluation_is_refused(service, batches):
    callbacks = [Evaluate("test", lambda client: Future(), every=1, detached=True), StopWhen("test/nll", above=1)]
    with pytest.raises(PlanError, match="a metric of a detached evaluation"):
        Loop(service.create_lora_training_client(), batches, callbacks=callbacks)


def test_stop_when_counts_on_after_a_resume(service, batches, tmp_path):
    checkpoints, values = Checkpoints(tmp_path), [0.2] * 6

    def run(record, steps):
        client = open_training_client(service, record, base_model="tiny")
        callbacks = [Logged(*values), StopWhen("policy/kl_k3", above=0.1, patience=4)]
        return Loop(client, batches, steps=steps, callbacks=callbacks, checkpoints=checkpoints, record=record, ahead=0)

    assert run(None, 3).run().reason == "steps reached"
    assert run(checkpoints.latest(), 6).run().step == 4
    assert run(checkpoints.latest(), 6).run().step == 4  # it stays stopped
