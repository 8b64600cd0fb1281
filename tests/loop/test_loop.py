"""The loop queues, delivers and decides in a fixed order."""

import asyncio
import itertools
import logging
import math
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import tinker
import torch

from tinkerloop.callbacks import Checkpoint, Evaluate, GradientAccumulation, nll
from tinkerloop.data import batches as row_batches
from tinkerloop.errors import CheckpointError, NonFiniteError, PlanError
from tinkerloop.loop import (
    Accumulate,
    Callback,
    Checkpoints,
    Eval,
    EvalResult,
    Jsonl,
    Log,
    Loop,
    MicroBatch,
    Pipeline,
    Plan,
    Retain,
    Save,
    Stop,
    background,
    open_training_client,
)
from tinkerloop.loop.pipeline import TOKEN_TOTALS
from tinkerloop.testing import OrderedService
from tinkerloop.testing.ready import Ready

OPTIM = tinker.AdamParams(learning_rate=0.1)


def events(loop_operations):
    """Operations as short strings, results marked with an arrow."""
    return [f"<-{op[1][0]}" if op[0] == "result" else op[0] for op in loop_operations]


def extend(service, batches, checkpoints, **options):
    """A loop from the newest record on, or a new one."""
    record = checkpoints.latest()
    client = open_training_client(service, record)
    return Loop(client, batches, checkpoints=checkpoints, record=record, **options)


class Recorder(Callback):
    """Writes down every event it is told."""

    def __init__(self):
        self.seen = []

    def on_start(self, step, steps):
        self.seen.append(("start", step, steps))

    def on_boundary(self, boundary):
        self.seen.append(("boundary", boundary.step, boundary.final))

    def on_step(self, result):
        self.seen.append(("step", result.step))

    def on_eval(self, result):
        self.seen.append(("eval", result.step, result.name))

    def on_save(self, record):
        self.seen.append(("save", record.step))

    def on_end(self, summary):
        self.seen.append(("end", summary.step, summary.reason))


def test_the_order_of_events_with_one_step_ahead(service, batches):
    seen = Recorder()
    Loop(service.create_lora_training_client(), batches, steps=3, callbacks=[seen], ahead=1).run()
    assert seen.seen == [
        ("start", 0, 3),
        ("boundary", 0, False),
        ("boundary", 1, False),
        ("step", 0),
        ("boundary", 2, False),
        ("step", 1),
        ("boundary", 3, True),
        ("step", 2),
        ("end", 3, "steps reached"),
    ]


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
def test_before_step_s_exactly_the_results_up_to_s_minus_1_minus_ahead_are_delivered(service, batches, ahead):
    delivered, at_plan = [], []

    class Watch(Callback):
        def on_plan(self, plan):
            at_plan.append((plan.step, len(delivered)))
            return plan

        def on_step(self, result):
            delivered.append(result.step)

    Loop(service.create_lora_training_client(), batches, steps=9, callbacks=[Watch()], ahead=ahead).run()
    assert at_plan == [(step, max(step - ahead, 0)) for step in range(9)]
    assert delivered == list(range(9))


def callbacks_of_a_full_run(batches):
    return [GradientAccumulation(2, micro_batch=3), Evaluate("test", nll(batches[0]), every=2), Checkpoint(every=2)]


def by_hand(client, batches, checkpoints):
    """The same run without Loop: Pipeline, Plan and Checkpoints."""
    from tinkerloop.loop import Record

    pipeline, evaluate, saving = Pipeline(client, run=checkpoints.run_id()), nll(batches[0]), None
    pending = list(batches)
    for step in range(5):
        for _ in pipeline.before(step):
            pass
        if step % 2 == 0 or step == 4:
            pipeline.eval(step, "test", evaluate(client))
        if step and step % 2 == 0:
            saving = pipeline.submit_save(step)
            for _ in pipeline.drain():
                pass
            record = Record(step, "", cursor=2 * step, callbacks={}, metrics={})
            pipeline.push(saving)
            if step == 4:
                (saved,) = pipeline.drain()
                checkpoints.append(replace(record, path=saved.path))
                return
        parts = [MicroBatch(tuple(batch[start : start + 3])) for batch in pending[:2] for start in range(0, 4, 3)]
        del pending[:2]
        pipeline.step(Plan(step, tuple(parts), OPTIM))


def test_run_arun_steps_and_a_script_by_hand_perform_the_same_operations(batches, tmp_path, monkeypatch):
    monkeypatch.setattr("tinkerloop.loop.checkpoints.new_run_id", lambda: "0123abcd")
    logs = []
    for kind in ("run", "arun", "steps", "asteps", "hand"):
        service = OrderedService(20)
        client = service.create_lora_training_client()
        checkpoints = Checkpoints(tmp_path / kind)
        if kind == "hand":
            by_hand(client, batches, checkpoints)
        else:
            callbacks = callbacks_of_a_full_run(batches)
            loop = Loop(client, batches, steps=4, callbacks=callbacks, checkpoints=checkpoints, optim=OPTIM)

            async def drain(loop=loop):
                return [result.step async for result in loop.asteps()]

            if kind == "run":
                loop.run()
            elif kind == "arun":
                asyncio.run(loop.arun())
            elif kind == "steps":
                assert [result.step for result in loop.steps()] == [0, 1, 2, 3]
            else:
                assert asyncio.run(drain()) == [0, 1, 2, 3]
        logs.append(service.operations)
    assert logs[0] == logs[1] == logs[2] == logs[3]
    assert logs[4] == logs[0]


def test_a_save_sits_right_behind_its_step(service, batches, tmp_path):
    client = service.create_lora_training_client()
    Loop(client, batches, steps=5, callbacks=[Checkpoint(every=2)], checkpoints=Checkpoints(tmp_path), ahead=2).run()
    submitted = [op for op in service.operations if op[0] != "result"]
    (at,) = [i for i, op in enumerate(submitted) if op[0] == "save_state" and op[1].endswith("-000002")]
    assert [op[0] for op in submitted[:at]].count("optim_step") == 2


def test_a_record_counts_exactly_the_rows_before_it(service, batches, tmp_path):
    rows = []
    client = service.create_lora_training_client()
    callbacks = [Checkpoint(every=2), Evaluate("test", nll(batches[0]), every=1)]
    sinks = [lambda step, row: rows.append(dict(row))]
    Loop(client, batches, steps=4, callbacks=callbacks, checkpoints=Checkpoints(tmp_path), sinks=sinks).run()
    for record in Checkpoints(tmp_path).records():
        before = rows[: record.rows]
        assert sum("loss" in row for row in before) == record.step
        assert sum("test/nll" in row for row in before) == record.step + 1


def test_an_evaluation_sees_its_boundarys_weights(service, batches):
    values = {}

    class Keep(Callback):
        def on_eval(self, result):
            values[result.step] = result.value["nll"]

    client = service.create_lora_training_client()
    Loop(client, batches, steps=4, callbacks=[Evaluate("test", nll(batches[0]), every=1), Keep()], optim=OPTIM).run()

    again = OrderedService(20).create_lora_training_client()
    pipeline = Pipeline(again, ahead=0)
    for step in range(5):
        list(pipeline.drain())
        assert values[step] == nll(batches[0])(again).result()["nll"]
        if step < 4:
            pipeline.step(Plan(step, (MicroBatch(tuple(batches[step])),), OPTIM))


def stopping_at(step, **options):
    class StopAt(Callback):
        def on_step(self, result):
            return Stop("enough", **options) if result.step == step else None

    return StopAt()


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_a_stop_from_a_result_ends_ahead_steps_later(service, batches, ahead):
    client = service.create_lora_training_client()
    summary = Loop(client, batches, steps=12, callbacks=[stopping_at(4)], ahead=ahead).run()
    assert (summary.step, summary.reason) == (5 + ahead, "enough")
    assert client.state.updates == 5 + ahead


def test_a_stopped_run_records_its_last_boundary(service, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    loop = Loop(service.create_lora_training_client(), batches, callbacks=[stopping_at(4)], checkpoints=checkpoints)
    assert loop.run().step == checkpoints.latest().step == 6


def test_a_stop_without_save_records_nothing(service, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    callbacks = [stopping_at(4, save=False)]
    Loop(service.create_lora_training_client(), batches, callbacks=callbacks, checkpoints=checkpoints).run()
    assert checkpoints.latest() is None


def test_a_stop_without_save_during_the_barrier_discards_the_save(service, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    callbacks = [stopping_at(3, save=False), Checkpoint(every=2)]
    Loop(service.create_lora_training_client(), batches, callbacks=callbacks, checkpoints=checkpoints, ahead=1).run()
    assert [record.step for record in checkpoints.records()] == [2]


def test_with_nothing_ahead_an_evaluation_stops_before_the_next_step(service, batches):
    class StopOnEval(Callback):
        def on_eval(self, result):
            return Stop("seen") if result.step == 3 else None

    client = service.create_lora_training_client()
    callbacks = [Evaluate("test", nll(batches[0]), every=1), StopOnEval()]
    summary = Loop(client, batches, callbacks=callbacks, ahead=0).run()
    assert summary.step == client.state.updates == 3


def test_the_script_can_stop_the_loop_it_drives(service, batches):
    loop = Loop(service.create_lora_training_client(), batches)
    for result in loop.steps():
        if result.step == 2:
            loop.stop("seen enough")
    assert (loop.summary.reason, loop.summary.step) == ("seen enough", 4)


def test_leaving_the_loop_early_tells_the_callbacks(service, batches):
    seen = Recorder()
    loop = Loop(service.create_lora_training_client(), batches, callbacks=[seen])
    for result in loop.steps():
        if result.step == 1:
            break
    assert seen.seen[-1] == ("end", 3, "abandoned")
    assert loop.summary.error is None


def test_without_steps_the_run_ends_with_the_data(service, batches):
    summary = Loop(service.create_lora_training_client(), iter(batches)).run()
    assert (summary.step, summary.reason, summary.stopped_early) == (12, "data exhausted", False)


def test_the_last_boundary_is_final_when_the_data_ends(service, batches):
    seen = Recorder()
    Loop(service.create_lora_training_client(), batches[:2], callbacks=[seen]).run()
    assert [event for event in seen.seen if event[0] == "boundary"][-1] == ("boundary", 2, True)


def test_the_last_step_of_the_data_may_take_fewer_batches(service, batches):
    client = service.create_lora_training_client()
    summary = Loop(client, batches[:5], callbacks=[GradientAccumulation(3)]).run()
    calls = [op[0] for op in service.operations if op[0] in ("forward_backward", "optim_step")]
    assert summary.step == 2
    assert calls == ["forward_backward"] * 3 + ["optim_step"] + ["forward_backward"] * 2 + ["optim_step"]


@pytest.mark.parametrize("normalize", ["token", "example", "none"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_splitting_never_changes_the_update(batches, normalize, size):
    states = []
    for callbacks in ([], [GradientAccumulation(micro_batch=size)]):
        client = OrderedService(20).create_lora_training_client()
        Loop(client, batches, steps=6, callbacks=callbacks, normalize=normalize, optim=OPTIM).run()
        states.append(client.state.logits)
    assert np.allclose(states[0], states[1], rtol=1e-9, atol=0)


def test_accumulating_equals_one_large_batch(batches):
    large = [batches[i] + batches[i + 1] for i in range(0, 12, 2)]
    one, two = (OrderedService(20).create_lora_training_client() for _ in range(2))
    Loop(one, large, optim=OPTIM).run()
    Loop(two, batches, callbacks=[GradientAccumulation(2)], optim=OPTIM).run()
    assert np.allclose(one.state.logits, two.state.logits, rtol=1e-9, atol=0)


def test_the_loss_is_the_mean_per_weighted_token(service, batches):
    client = service.create_lora_training_client()
    (result,) = Loop(client, batches, steps=1).steps()
    assert result.loss == pytest.approx(np.log(20))  # a fresh model is uniform over its 20 tokens


@pytest.mark.parametrize("normalize", ["token", "example", "none"])
def test_a_uniform_model_has_the_same_mean_loss_however_it_is_normalised(service, batches, normalize):
    (result,) = Loop(service.create_lora_training_client(), batches, steps=1, normalize=normalize).steps()
    assert result.loss == pytest.approx(np.log(20))


def test_one_row_per_item(service, batches):
    rows = []

    class Extra(Callback):
        def on_step(self, result):
            return Log({"twice": 2 * result.loss})

    callbacks = [Extra(), Evaluate("test", nll(batches[0]), every=2)]
    sinks = [lambda step, row: rows.append((step, set(row)))]
    Loop(service.create_lora_training_client(), batches, steps=3, callbacks=callbacks, sinks=sinks).run()
    own = {"loss", "learning_rate", "tokens", *TOKEN_TOTALS, "loss:sum", "unclipped_grad_l2:mean", "twice"}
    assert rows == [(0, {"test/nll"}), (0, own), (1, own), (2, {"test/nll"}), (2, own), (3, {"test/nll"})]


def test_two_callbacks_cannot_log_the_same_metric(service, batches):
    class Extra(Callback):
        def on_step(self, result):
            return Log({"loss": 0.0})

    with pytest.raises(PlanError, match=r"extra.on_step logs \['loss'\]"):
        Loop(service.create_lora_training_client(), batches, callbacks=[Extra()]).run()


def test_no_callback_can_move_a_plan_to_another_step(service, batches):
    class Move(Callback):
        def on_plan(self, plan):
            return replace(plan, step=plan.step + 1)

    with pytest.raises(PlanError, match=r"must not change plan\.step: it was 0, got 1"):
        Loop(service.create_lora_training_client(), batches, steps=1, callbacks=[Move()]).run()


def test_no_metric_can_take_the_place_of_the_step(service, batches):
    class Clash(Callback):
        def on_step(self, result):
            return Log({"step": 99.0})

    with pytest.raises(PlanError, match="named 'step'"):
        Loop(service.create_lora_training_client(), batches, steps=1, callbacks=[Clash()]).run()


def logs(event, metrics):
    return type("Logging", (Callback,), {event: lambda self, *args: Log(metrics)})()


@pytest.mark.parametrize("value", [None, "hello", "NaN", [1, 2], {"a": 1}, np.ones(2), 1j], ids=repr)
@pytest.mark.parametrize("event", ["on_step", "on_boundary", "on_start"])
def test_only_numbers_can_be_logged(service, batches, event, value):
    loop = Loop(service.create_lora_training_client(), batches, steps=1, callbacks=[logs(event, {"a": value})])
    with pytest.raises(PlanError, match="the metric 'a' of step 0 must be a number, got"):
        loop.run()


@pytest.mark.parametrize(
    "value", [True, np.bool_(True), math.nan, -math.inf, 3, np.float16(1), torch.ones(())], ids=repr
)
def test_a_sink_gets_each_kind_of_number_as_it_was_logged(service, batches, value):
    rows = []
    callbacks = [logs("on_start", {"a": value})]
    sinks = [lambda step, row: rows.append(row)]
    Loop(service.create_lora_training_client(), batches, steps=0, callbacks=callbacks, sinks=sinks).run()
    assert rows[0]["a"] is value


def test_the_name_of_a_metric_is_a_text(service, batches):
    callbacks = [logs("on_step", {1: 2.0, "1": 3.0})]
    with pytest.raises(PlanError, match="a metric of step 0 is named 1, but a name must be a text"):
        Loop(service.create_lora_training_client(), batches, steps=1, callbacks=callbacks).run()


@pytest.mark.parametrize("name", ["step", "loss", "learning_rate", "tokens", *TOKEN_TOTALS])
def test_no_other_row_can_have_a_metric_of_the_loop(service, batches, name):
    loop = Loop(service.create_lora_training_client(), batches, callbacks=[logs("on_boundary", {name: 1.0})])
    with pytest.raises(PlanError, match=f"named '{name}', but this name is reserved"):
        loop.run()


def test_a_plan_is_made_by_all_callbacks_in_order(service, batches):
    class Times(Callback):
        def __init__(self, name, factor, offset):
            self.name, self.factor, self.offset = name, factor, offset

        def on_plan(self, plan):
            return plan.with_optim(learning_rate=plan.optim.learning_rate * self.factor + self.offset)

    callbacks = [Times("double", 2, 0), Times("add", 1, 1)]
    (result,) = Loop(service.create_lora_training_client(), batches, steps=1, callbacks=callbacks, optim=OPTIM).steps()
    assert result.plan.optim.learning_rate == pytest.approx(1.2)


def test_a_future_that_can_only_block_is_awaited_too(service, batches):
    class Blocking:
        def result(self, timeout=None):
            return {"score": 1.0}

    evaluate = Evaluate("test", lambda client: Blocking(), every=1)
    loop = Loop(service.create_lora_training_client(), batches, steps=2, callbacks=[evaluate])
    assert asyncio.run(loop.arun()).metrics["test/score"] == 1.0


def test_a_detached_evaluation_is_logged_with_its_own_step_before_the_end(service, batches):
    rows = []

    class Slow(Callback):
        def on_boundary(self, boundary):
            if boundary.step == 1:
                return Eval("slow", background(lambda: {"score": 1.0}), detached=True)

        def on_eval(self, result):
            return Log({"slow/score": result.value["score"]})

    sinks = [lambda step, row: rows.append((step, dict(row)))]
    Loop(service.create_lora_training_client(), batches, steps=4, callbacks=[Slow()], sinks=sinks).run()
    assert (1, {"slow/score": 1.0}) in rows


class Late(Future):
    """Is never done by itself, but has a value for whoever waits for it."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def result(self, timeout=None):
        return self.value


def test_a_detached_evaluation_is_delivered_before_the_next_record(service, batches, tmp_path):
    seen = Recorder()

    class Slow(Callback):
        def on_boundary(self, boundary):
            if boundary.step == 1:
                return Eval("slow", Late({"score": 1.0}), detached=True)

    checkpoints = Checkpoints(tmp_path)
    callbacks = [Slow(), seen, Checkpoint(every=2)]
    Loop(service.create_lora_training_client(), batches, steps=4, callbacks=callbacks, checkpoints=checkpoints).run()
    assert seen.seen.index(("eval", 1, "slow")) < seen.seen.index(("save", 2))


def test_detached_evaluations_are_delivered_in_the_order_they_began(service, batches):
    """Or the newest value of a metric, which records keep, would be that of whichever was slower."""
    seen, first = Recorder(), Future()

    class Slow(Callback):
        def on_boundary(self, boundary):
            if boundary.step == 3:
                first.set_result({"score": 1.0})
            if boundary.step in (1, 2):
                return Eval("slow", first if boundary.step == 1 else background(lambda: {"score": 2.0}), detached=True)

    Loop(service.create_lora_training_client(), batches, steps=6, callbacks=[Slow(), seen]).run()
    assert [event for event in seen.seen if event[0] == "eval"] == [("eval", 1, "slow"), ("eval", 2, "slow")]


def test_nothing_may_be_decided_by_a_detached_evaluation(service, batches):
    class Slow(Callback):
        def on_boundary(self, boundary):
            return Eval("slow", background(lambda: 0.0), detached=True)

        def on_eval(self, result):
            return Stop("no")

    with pytest.raises(PlanError, match="detached evaluation 'slow'"):
        Loop(service.create_lora_training_client(), batches, steps=2, callbacks=[Slow()]).run()


@pytest.mark.parametrize("ready", [True, False])
def test_a_detached_evaluation_is_logged_but_in_no_metrics_that_callbacks_see(service, batches, tmp_path, ready):
    rows, seen, checkpoints = [], [], Checkpoints(tmp_path)

    class Look(Callback):
        def on_boundary(self, boundary):
            seen.extend(boundary.metrics)

        def on_row(self, step, row):
            seen.extend(row)

    future = Future() if ready else Late({"score": 1.0})
    if ready:
        future.set_result({"score": 1.0})
    callbacks = [Evaluate("slow", lambda client: future, every=1, detached=True), Look(), Checkpoint(every=2)]
    client, sinks = service.create_lora_training_client(), [lambda step, row: rows.extend(row)]
    loop = Loop(client, batches, steps=4, callbacks=callbacks, sinks=sinks, checkpoints=checkpoints)
    summary = loop.run()
    assert rows.count("slow/score") == 5
    assert "slow/score" not in {*seen, *summary.metrics, *checkpoints.latest().metrics}


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_on_row_gets_each_row_of_a_step_and_an_evaluation_as_it_is_logged(service, batches, ahead, tmp_path):
    """With saves too, at which several results are delivered at once."""
    rows, seen = [], []

    class Look(Callback):
        def on_row(self, step, row):
            seen.append((step, dict(row)))

    class Logs(Callback):
        def on_step(self, result):
            return Log({"more": result.step})

    callbacks = [Look(), Logs(), Evaluate("test", nll(batches[0]), every=2), Checkpoint(every=2)]
    client, sinks = service.create_lora_training_client(), [lambda step, row: rows.append((step, dict(row)))]
    checkpoints = Checkpoints(tmp_path)
    Loop(client, batches, steps=5, callbacks=callbacks, sinks=sinks, checkpoints=checkpoints, ahead=ahead).run()
    assert seen == rows
    assert [row["more"] for _, row in seen if "more" in row] == [0, 1, 2, 3, 4]


def test_a_detached_evaluation_must_not_change_the_state_of_a_callback(service, batches):
    class Counts(Counting):
        def on_eval(self, result):
            self.state.boundaries += 1

    callbacks = [Evaluate("slow", lambda client: Late({"score": 1.0}), detached=True), Counts()]
    with pytest.raises(PlanError, match=r"counts.on_eval changed its state for the detached EvalResult"):
        Loop(service.create_lora_training_client(), batches, steps=1, callbacks=callbacks).run()


def test_an_error_in_a_callback_says_where(service, batches):
    class Broken(Callback):
        def on_step(self, result):
            raise KeyError("oops")

    with pytest.raises(KeyError) as caught:
        Loop(service.create_lora_training_client(), batches, callbacks=[Broken()]).run()
    assert caught.value.__notes__ == ["in broken.on_step at step 0"]


def test_an_optional_callback_is_dropped_with_a_warning(service, batches, caplog):
    class Broken(Callback):
        optional = True

        def on_step(self, result):
            raise KeyError("oops")

    with caplog.at_level(logging.WARNING):
        summary = Loop(service.create_lora_training_client(), batches, steps=3, callbacks=[Broken()]).run()
    assert summary.step == 3
    assert [record.getMessage() for record in caplog.records] == [
        "broken.on_step failed at step 0; the callback is removed"
    ]


def test_an_error_in_forgetting_records_says_whose_request_it_was(service, batches, tmp_path):
    class Forget(Callback):
        def on_save(self, record):
            return Retain(lambda records: [records[5].step])

    client, checkpoints = service.create_lora_training_client(), Checkpoints(tmp_path)
    with pytest.raises(IndexError) as caught:
        Loop(client, batches, steps=1, callbacks=[Forget()], checkpoints=checkpoints).run()
    assert caught.value.__notes__ == ["in the Retain returned by forget.on_save at step 1"]


class Yielding(Callback):
    """Answers as a generator, and fails after its first request."""

    def on_step(self, result):
        yield Log({"yielded": 1.0})
        raise TypeError("oops")


def test_an_error_in_a_callback_that_yields_its_requests_says_where(service, batches):
    with pytest.raises(TypeError, match="oops") as caught:
        Loop(service.create_lora_training_client(), batches, steps=2, callbacks=[Yielding()]).run()
    assert caught.value.__notes__ == ["in yielding.on_step at step 0"]


def test_an_optional_callback_that_yields_its_requests_is_dropped(service, batches, caplog):
    callback = Yielding()
    callback.optional = True
    Loop(service.create_lora_training_client(), batches, steps=2, callbacks=[callback]).run()
    assert "yielding.on_step failed at step 0" in caplog.text


def test_on_end_is_told_in_reverse_with_the_error(service, batches):
    told = []

    class Tell(Callback):
        def __init__(self, name):
            self.name = name

        def on_end(self, summary):
            told.append((self.name, type(summary.error)))
            raise RuntimeError("at the end")

    class Broken(Callback):
        def on_step(self, result):
            raise KeyError("oops")

    with pytest.raises(KeyError) as caught:
        Loop(service.create_lora_training_client(), batches, callbacks=[Tell("a"), Tell("b"), Broken()]).run()
    assert told == [("b", KeyError), ("a", KeyError)]
    assert sum("then, while ending" in note for note in caught.value.__notes__) == 2


def test_an_error_in_on_end_of_a_good_run_is_raised(service, batches):
    class Broken(Callback):
        def on_end(self, summary):
            raise RuntimeError("at the end")

    with pytest.raises(RuntimeError, match="at the end"):
        Loop(service.create_lora_training_client(), batches, steps=1, callbacks=[Broken()]).run()


@pytest.mark.parametrize(
    ("event", "answer", "says"),
    [
        ("on_step", 3, r"on_step returned 3, but it may return only Log, Stop, None"),
        ("on_step", Save(), r"on_step returned Save"),
        ("on_boundary", [Log({}), "x"], r"on_boundary returned 'x'"),
        ("on_plan", None, r"on_plan must return a Plan, but it returned None"),
    ],
)
def test_a_wrong_answer_is_refused(service, batches, event, answer, says):
    wrong = type("Wrong", (Callback,), {event: lambda self, *args: answer})()
    with pytest.raises(PlanError, match=says):
        Loop(service.create_lora_training_client(), batches, callbacks=[wrong]).run()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        *[({"steps": value}, "steps must be a whole number of at least 0") for value in (-1, 2.5, math.nan)],
        *[({"ahead": value}, "ahead must be a whole number of at least 0") for value in (-1, 0.5, math.inf)],
        ({"normalize": "mean"}, "normalize must be one of"),
        ({"callbacks": [Recorder(), Recorder()]}, "two callbacks have the name 'recorder'"),
        ({"callbacks": [Recorder]}, "must be a tinkerloop.Callback object"),
    ],
)
def test_contradictory_arguments_are_refused(service, batches, options, says):
    with pytest.raises(PlanError, match=says):
        Loop(service.create_lora_training_client(), batches, **options)


@pytest.mark.parametrize("make", [Accumulate, Save])
@pytest.mark.parametrize("value", [0, 1.5, math.nan])
def test_a_request_refuses_what_is_no_whole_number(make, value):
    with pytest.raises(PlanError, match=f"of {make.__name__} must be a whole number of at least 1, got"):
        make(value)


def test_a_cursor_of_other_batches_is_refused(service, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    client = service.create_lora_training_client()
    Loop(client, row_batches(batches[0], 2), steps=1, checkpoints=checkpoints).run()
    with pytest.raises(PlanError, match="resume with the same batches"):
        extend(service, batches, checkpoints, steps=2)


def test_datums_that_nobody_batched_are_refused(service, batches):
    with pytest.raises(PlanError, match="a batch must be a list of datums"):
        Loop(service.create_lora_training_client(), batches[0]).run()


def test_an_iterator_cannot_be_checkpointed(service, batches, tmp_path):
    with pytest.raises(PlanError, match="needs batches whose position can be saved"):
        Loop(service.create_lora_training_client(), iter(batches), checkpoints=Checkpoints(tmp_path))


def test_a_save_without_checkpoints_is_refused(service, batches):
    with pytest.raises(PlanError, match="callback 'checkpoint' requested a Save"):
        Loop(service.create_lora_training_client(), batches, callbacks=[Checkpoint(every=1)]).run()


def test_two_callbacks_cannot_accumulate_differently(service, batches):
    class Other(Callback):
        def on_start(self, step, steps):
            return Accumulate(3)

    with pytest.raises(PlanError, match=r"requested 3 batches per step, but another callback 2"):
        Loop(service.create_lora_training_client(), batches, callbacks=[GradientAccumulation(2), Other()]).run()


def test_forgetting_to_resume_is_refused(service, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    Loop(service.create_lora_training_client(), batches, steps=2, checkpoints=checkpoints).run()
    with pytest.raises(CheckpointError, match="holds a record of step 2: resume from it"):
        Loop(service.create_lora_training_client(), batches, steps=4, checkpoints=checkpoints)


def test_a_non_finite_loss_is_never_recorded(service, batches, tmp_path, monkeypatch):
    """The engine and `OrderedService` refuse such a loss; another service may return it."""
    checkpoints = Checkpoints(tmp_path)
    client = service.create_lora_training_client()
    forward_backward, steps = client.forward_backward, itertools.count()

    def diverging(*args):
        output = forward_backward(*args).result()
        return Ready(replace(output, metrics={"loss:sum": math.nan}) if next(steps) >= 2 else output)

    monkeypatch.setattr(client, "forward_backward", diverging)
    with pytest.raises(NonFiniteError):
        Loop(client, batches, callbacks=[Checkpoint(every=1)], checkpoints=checkpoints).run()
    assert [record.step for record in checkpoints.records()] == [1, 2]


def test_a_loop_runs_once(service, batches):
    loop = Loop(service.create_lora_training_client(), batches, steps=1)
    loop.run()
    with pytest.raises(PlanError, match="already run"):
        loop.run()


def test_a_loop_that_is_half_way_cannot_be_started_again(service, batches, tmp_path):
    loop = Loop(service.create_lora_training_client(), batches, steps=3, sinks=[Jsonl(tmp_path / "metrics.jsonl")])
    results = loop.steps()
    next(results)
    with pytest.raises(PlanError, match="is running"):
        loop.run()
    assert [result.step for result in results] == [1, 2]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_zero_steps_is_a_run(service, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    summary = Loop(service.create_lora_training_client(), batches, steps=0, checkpoints=checkpoints).run()
    assert (summary.step, summary.reason, checkpoints.latest().step) == (0, "steps reached", 0)


def test_a_record_of_step_zero_can_be_resumed(service, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    Loop(service.create_lora_training_client(), batches, steps=0, checkpoints=checkpoints).run()
    assert extend(service, batches, checkpoints, steps=2).run().step == 2


@dataclass
class Count:
    boundaries: int = 0


class Counting(Callback):
    def __init__(self):
        self.state = Count()

    def on_boundary(self, boundary):
        self.state.boundaries += 1


def resumed(service, batches, tmp_path, *callbacks):
    return extend(service, batches, Checkpoints(tmp_path), steps=4, callbacks=callbacks)


def test_the_records_boundary_is_not_asked_again(service, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    first = Counting()
    Loop(service.create_lora_training_client(), batches, steps=2, callbacks=[first], checkpoints=checkpoints).run()
    second = Counting()
    resumed(service, batches, tmp_path, second).run()
    assert (first.state.boundaries, second.state.boundaries) == (3, 5)


def test_changed_state_fields_are_an_error_that_names_them(service, batches, tmp_path):
    @dataclass
    class Other:
        bounds: int = 0

    resumed(service, batches, tmp_path, Counting()).run()
    changed = Counting()
    changed.state = Other()
    with pytest.raises(CheckpointError, match=r"differ in \['boundaries', 'bounds'\]"):
        resumed(service, batches, tmp_path, changed)


@dataclass
class Given:
    value: object


@dataclass
class Counted:
    value: int = field(default=1, init=False)


@pytest.mark.parametrize(
    "state", [Given({1: 2}), Given([(1, 2)]), Given({"a"}), Given(np.float32(1)), Given(Count()), Counted()], ids=repr
)
def test_state_that_would_come_back_changed_is_never_recorded(service, batches, tmp_path, state):
    callback = Callback()
    callback.state = state
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match=r"state of callback .callback. cannot be saved: value is"):
        Loop(
            service.create_lora_training_client(), batches, steps=1, callbacks=[callback], checkpoints=checkpoints
        ).run()
    assert checkpoints.latest() is None


def test_state_of_a_renamed_callback_is_kept_and_warned_of(service, batches, tmp_path, caplog):
    resumed(service, batches, tmp_path, Counting()).run()
    renamed = Counting()
    renamed.name = "renamed"
    with caplog.at_level(logging.WARNING):
        loop = resumed(service, batches, tmp_path, renamed)
    assert "no state was saved for callback 'renamed'" in caplog.text
    assert "state of a callback 'counting' that this run does not have" in caplog.text
    loop._steps = 6
    loop.run()
    assert set(Checkpoints(tmp_path).latest().callbacks) == {"counting", "renamed"}


def test_an_eval_result_is_a_plain_value():
    assert EvalResult(3, "test", {"nll": 1.0}) == EvalResult(3, "test", {"nll": 1.0})
