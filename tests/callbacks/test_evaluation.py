import asyncio
import math
from concurrent.futures import Future

import numpy as np
import pytest
import tinker
from tinker.lib.public_interfaces.api_future import AwaitableConcurrentFuture

from tinkerloop.callbacks import Checkpoint, Evaluate, nll, sampled, together
from tinkerloop.errors import PlanError
from tinkerloop.loop import Callback, Checkpoints, Eval, Log, Loop, Stop, background, open_training_client
from tinkerloop.loop.jsonl import read_lines


def asked(callback, boundary, steps, final=None):
    return [step for step in range(steps) if callback.on_boundary(boundary(step, final=step == final)) is not None]


def test_it_evaluates_at_the_start_every_so_often_and_at_the_end(boundary):
    evaluate = Evaluate("test", lambda client: None, every=3)
    assert asked(evaluate, boundary, 9, final=8) == [0, 3, 6, 8]


def test_start_and_end_can_be_left_out(boundary):
    evaluate = Evaluate("test", lambda client: None, every=3, at_start=False, at_end=False)
    assert asked(evaluate, boundary, 9, final=8) == [3, 6]


@pytest.mark.parametrize("every", [0, 2.5, math.nan])
def test_it_evaluates_after_whole_numbers_of_steps(every):
    with pytest.raises(PlanError, match="every must be a whole number of at least 1, got"):
        Evaluate("test", lambda client: None, every=every)


def test_an_evaluation_that_would_never_run_is_refused():
    with pytest.raises(PlanError, match="the evaluation 'test' would never run"):
        Evaluate("test", lambda client: None, at_start=False, at_end=False)


def test_the_request_names_the_evaluation_and_carries_its_future(boundary):
    assert Evaluate("test", lambda client: "future").on_boundary(boundary(0)) == Eval("test", "future")


def test_its_metrics_are_logged_under_its_name(eval_result):
    assert Evaluate("test", lambda client: None).on_eval(eval_result(3, nll=1.5)) == Log({"test/nll": 1.5})


def test_it_leaves_other_evaluations_alone(eval_result):
    assert Evaluate("other", lambda client: None).on_eval(eval_result(3, nll=1.5)) is None


def test_several_evaluations_have_their_own_cadence(service, batches):
    rows = []
    callbacks = [Evaluate("a", nll(batches[0]), every=2), Evaluate("b", nll(batches[1]), every=3)]
    sinks = [lambda step, row: rows.extend((step, name) for name in row if name.endswith("/nll"))]
    Loop(service.create_lora_training_client(), batches, steps=6, callbacks=callbacks, sinks=sinks).run()
    assert [step for step, name in rows if name == "a/nll"] == [0, 2, 4, 6]
    assert [step for step, name in rows if name == "b/nll"] == [0, 3, 6]


def test_nll_is_the_mean_over_weighted_tokens(service, datums):
    assert nll(datums)(service.create_lora_training_client()).result() == {"nll": pytest.approx(math.log(20))}


def test_nll_does_not_depend_on_the_batch_size(service, datums):
    client = service.create_lora_training_client()
    client.state = client.state.__class__(np.arange(20.0) / 5, *[np.zeros(20)] * 2)
    values = [nll(datums, batch_size=size)(client).result()["nll"] for size in (None, 1, 5)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


def test_bits_per_byte_counts_the_bytes_of_the_text(service, datums):
    trained = sum(np.count_nonzero(datum.loss_fn_inputs["weights"].to_numpy()) for datum in datums)
    metrics = nll(datums, utf8_bytes=2 * trained)(service.create_lora_training_client()).result()
    assert metrics["bits_per_byte"] == pytest.approx(math.log2(20) / 2)


def test_nll_can_be_awaited(service, datums):
    async def run():
        return await nll(datums, batch_size=7)(service.create_lora_training_client())

    assert asyncio.run(run()) == {"nll": pytest.approx(math.log(20))}


def test_nll_refuses_nothing_to_evaluate_on():
    with pytest.raises(PlanError, match="at least one datum"):
        nll([])


@pytest.mark.parametrize("option", ["batch_size", "utf8_bytes"])
@pytest.mark.parametrize("value", [-1, 0, 2.5])
def test_nll_refuses_numbers_with_which_its_loss_would_be_wrong(datums, option, value):
    with pytest.raises(PlanError, match=f"{option} of nll must be a whole number of at least 1, got {value}"):
        nll(datums, **{option: value})


def test_nll_refuses_what_is_no_list_of_datums(datums):
    for data in (["a"], datums[0], [datums]):
        with pytest.raises(PlanError, match="the data of nll must be a list of datums"):
            nll(data)


def test_nll_refuses_a_datum_without_weights(datums):
    targets = {"target_tokens": datums[1].loss_fn_inputs["target_tokens"]}
    without = tinker.Datum(model_input=datums[1].model_input, loss_fn_inputs=targets)
    with pytest.raises(PlanError, match=r"datum 1 of nll has only .*needs 'weights'"):
        nll([datums[0], without])


def test_a_sampled_evaluation_scores_the_boundarys_weights_while_training_goes_on(service, batches):
    def most_likely(sampler):
        params = tinker.SamplingParams(max_tokens=1, temperature=0)
        (sequence,) = sampler.sample(tinker.ModelInput.empty(), 1, params).result().sequences
        return {"token": sequence.tokens[0], "logprob": float(sequence.logprobs[0])}

    rows = {}
    loop = Loop(
        service.create_lora_training_client(),
        batches,
        callbacks=[Evaluate("sampled", sampled(most_likely), every=1)],
        sinks=[lambda step, row: rows.setdefault(step, row.get("sampled/logprob"))],
        optim=tinker.AdamParams(learning_rate=1.0),
    )
    loop.run()
    assert rows[0] == pytest.approx(-math.log(20), rel=1e-6)
    assert rows[1] > rows[0]


@pytest.mark.parametrize("detached", [False, True])
def test_a_failing_evaluation_ends_the_run_and_says_which(service, batches, detached):
    def fail(sampler):
        raise RuntimeError("no answer")

    evaluate = Evaluate("bad", sampled(fail), detached=detached)
    with pytest.raises(RuntimeError) as caught:
        Loop(service.create_lora_training_client(), batches, callbacks=[evaluate]).run()
    assert caught.value.__notes__ == ["in evaluation 'bad' at boundary 0"]


def test_evaluators_together_make_one_row(service, batches):
    rows = []
    evaluator = together(nll(batches[0]), sampled(lambda sampler: {"score": 1.0}))
    sinks = [lambda step, row: rows.append(row)]
    Loop(service.create_lora_training_client(), [], callbacks=[Evaluate("test", evaluator)], sinks=sinks).run()
    assert rows == [{"test/nll": pytest.approx(math.log(20)), "test/score": 1.0}]


def test_evaluators_together_can_be_awaited(service, batches):
    evaluator = together(nll(batches[0]), sampled(lambda sampler: {"score": 1.0}))

    async def run():
        await Loop(service.create_lora_training_client(), batches, callbacks=[Evaluate("test", evaluator)]).arun()

    asyncio.run(run())


def test_evaluators_together_are_done_when_all_are():
    """Of the service's own futures too: a detached evaluation is delivered once it is done."""
    one, other = Future(), Future()
    both = together(lambda client: AwaitableConcurrentFuture(one), lambda client: other)(None)
    one.set_result({"a": 1.0})
    assert not both.done()
    other.set_result({"b": 2.0})
    assert both.done()
    assert both.result() == {"a": 1.0, "b": 2.0}


def test_evaluators_together_cannot_return_the_same_metric(service, batches):
    evaluator = together(nll(batches[0]), nll(batches[1]))
    with pytest.raises(PlanError, match="different metrics"):
        evaluator(service.create_lora_training_client()).result()


class StopAt(Callback):
    """Stops at boundary 3, at the event that it is made for."""

    def __init__(self, event):
        self.event = event

    def on_boundary(self, boundary):
        return Stop("far enough") if self.event == "boundary" and boundary.step >= 3 else None

    def on_step(self, result):
        return Stop("far enough") if self.event == "step" and result.step == 2 else None

    def on_eval(self, result):
        return Stop("far enough") if self.event == "eval" and result.step == 3 else None


@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("save_every", [None, 3, 4])
@pytest.mark.parametrize("event", ["boundary", "step", "eval"])
def test_it_evaluates_the_last_boundary_whatever_stops_the_run(service, batches, tmp_path, event, save_every, ahead):
    rows, checkpoints = [], Checkpoints(tmp_path)
    callbacks = [
        Evaluate("test", nll(batches[0]), every=3),
        Evaluate("last", nll(batches[0]), at_start=False),
        StopAt(event),
        Checkpoint(every=save_every),
    ]
    sinks = [lambda step, row: rows.extend((step, name) for name in row if name.endswith("/nll"))]
    client = service.create_lora_training_client()
    summary = Loop(client, batches, callbacks=callbacks, sinks=sinks, checkpoints=checkpoints, ahead=ahead).run()
    assert summary.reason == "far enough"
    assert [step for step, name in rows if name == "last/nll"] == [summary.step]
    assert [step for step, name in rows if name == "test/nll"] == sorted({0, 3, summary.step})
    assert checkpoints.latest().step == summary.step
    assert "last/nll" in checkpoints.latest().metrics


def test_a_stopped_run_is_saved_at_the_end_as_its_checkpoint_callback_asks(service, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    callbacks = [StopAt("boundary"), Checkpoint(sampler=True)]
    Loop(service.create_lora_training_client(), batches, callbacks=callbacks, checkpoints=checkpoints).run()
    assert checkpoints.latest().sampler_path is not None


def train_with_samples(service, batches, folder, *callbacks, sample=None):
    """Run one process of a run, and return the boundaries of the samples in its file."""
    checkpoints, file = Checkpoints(folder), folder / "samples.jsonl"
    record = checkpoints.latest()
    client = open_training_client(service, record, base_model="unigram")
    replies = [sample or {"messages": [], "reply": "x"}]
    evaluate = Evaluate("test", lambda client: background(lambda: {"n": 1, "samples": replies}), every=2, samples=file)
    options = {"steps": 3, "checkpoints": checkpoints, "record": record}
    Loop(client, batches, callbacks=[evaluate, *callbacks], **options).run()
    return [row["step"] for row in read_lines(file)]


class StopAtOnce(Callback):
    def on_boundary(self, boundary):
        return Stop("now")


def test_samples_of_the_first_boundary_stay_if_the_run_is_resumed_there(service, batches, tmp_path):
    assert train_with_samples(service, batches, tmp_path, StopAtOnce()) == [0]
    assert train_with_samples(service, batches, tmp_path) == [0, 2, 3]


def test_samples_of_an_earlier_run_are_removed_by_a_new_one(service, batches, tmp_path):
    train_with_samples(service, batches, tmp_path)
    Checkpoints(tmp_path).file.unlink()
    assert train_with_samples(service, batches, tmp_path) == [0, 2, 3]


@pytest.mark.parametrize("key", ["name", "step"])
def test_a_sample_cannot_have_a_key_of_its_own_row(service, batches, tmp_path, key):
    with pytest.raises(PlanError, match=f"has the keys \\['{key}'\\]"):
        train_with_samples(service, batches, tmp_path, sample={key: 7, "reply": "x"})
