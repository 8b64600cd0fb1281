"""What a user mistypes is refused with what was probably meant, and an interrupted end is still an end."""

from pathlib import Path

import pytest

from tinkerloop.callbacks import Checkpoint, Evaluate, LRSchedule, Progress
from tinkerloop.data import Conversation
from tinkerloop.errors import PlanError, TinkerloopError
from tinkerloop.loop import Callback, Checkpoints, Console, Jsonl, Loop, Save, Sink, background


def callback(**methods):
    return type("Mine", (Callback,), methods)()


@pytest.fixture
def loop(service, batches):
    return lambda *callbacks, **options: Loop(
        service.create_lora_training_client(), batches, callbacks=callbacks, **options
    )


@pytest.mark.parametrize("name", ["on_stepp", "on_step_end"])
def test_an_unknown_event_is_refused_with_the_nearest(loop, name):
    with pytest.raises(PlanError, match=f"method '{name}', which is no event.*did you mean 'on_step'"):
        loop(callback(**{name: lambda self, result: None}))


def test_a_number_for_a_schedule_is_refused():
    with pytest.raises(PlanError, match=r"learning_rate must be a schedule.*got 0\.001: .*constant"):
        LRSchedule(1e-3)
    with pytest.raises(PlanError, match=r"weight_decay must be a schedule"):
        LRSchedule(weight_decay=0.1)


def test_datums_for_an_evaluator_are_refused(datums):
    with pytest.raises(PlanError, match=r"got a list: .*nll\(datums\)"):
        Evaluate("test", datums)


def test_an_evaluator_that_returns_its_metrics_is_refused(loop):
    with pytest.raises(PlanError, match=r"evaluation 'test' with a dict as its future.*background"):
        loop(Evaluate("test", lambda client: {"nll": 1.0})).run()


def test_a_custom_loss_without_metrics_is_refused(loop):
    with pytest.raises(PlanError, match=r"must return \(scalar loss, dict of metrics\), got a Tensor"):
        loop(loss_fn=lambda datums, logprobs: -logprobs[0].sum(), normalize="none").run()


def test_a_misspelt_loss_is_refused(loop):
    with pytest.raises(PlanError, match="unknown loss 'cross_entropi'; did you mean 'cross_entropy'"):
        loop(loss_fn="cross_entropi")


def test_a_stop_iteration_in_a_callback_is_an_error_that_names_it(loop):
    with pytest.raises(TinkerloopError, match=r"StopIteration was raised in mine\.on_step"):
        loop(callback(on_step=lambda self, result: next(iter([])))).run()


@pytest.mark.parametrize("sinks", [["run/metrics.jsonl"], [Path("run/metrics.jsonl")], "run/metrics.jsonl"])
def test_a_path_as_a_sink_names_the_sink_that_writes_a_file(loop, sinks):
    with pytest.raises(PlanError, match=r"got the path 'run/metrics\.jsonl': pass Jsonl\(path\)"):
        loop(sinks=sinks)


@pytest.mark.parametrize("sink", [Jsonl, 3, None])
def test_a_sink_that_cannot_be_called_with_rows_is_refused(loop, sink):
    with pytest.raises(PlanError, match="a sink must be a function"):
        loop(sinks=[sink])


def test_an_interrupt_in_the_end_of_a_sink_skips_no_other_end(loop):
    ended = []

    class Last(Callback):
        def on_end(self, summary):
            ended.append("callback")

    class Interrupted(Sink):
        def close(self, failed):
            raise KeyboardInterrupt

    class Closed(Sink):
        def close(self, failed):
            ended.append("sink")

    with pytest.raises(KeyboardInterrupt):
        loop(Last(), steps=1, sinks=[Interrupted(), Closed()]).run()
    assert ended == ["callback", "sink"]


def test_an_interrupt_in_an_end_skips_no_other_end(loop):
    ended = []

    class Last(Sink):
        def close(self, failed):
            ended.append("sink")

    class Other(Callback):
        def on_end(self, summary):
            ended.append("callback")

    def interrupted(self, summary):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop(Other(), callback(on_end=interrupted), steps=1, sinks=[Last()]).run()
    assert ended == ["callback", "sink"]


@pytest.mark.parametrize(("ttls", "longest"), [((60, 3600), 3600), ((3600, 60), 3600), ((60, None), None)])
def test_of_two_saves_at_a_boundary_the_longest_lifetime_counts(service, loop, tmp_path, monkeypatch, ttls, longest):
    from tinkerloop.testing import OrderedClient

    seen, save_state = [], OrderedClient.save_state

    def watch(self, name, ttl_seconds=None, overwrite=False):
        seen.append(ttl_seconds)
        return save_state(self, name, ttl_seconds, overwrite)

    monkeypatch.setattr(OrderedClient, "save_state", watch)
    names = iter("ab")
    asking = [type(next(names), (Callback,), {"on_boundary": lambda self, b, t=ttl: Save(t)})() for ttl in ttls]
    loop(*asking, steps=0, checkpoints=Checkpoints(tmp_path)).run()
    assert seen == [longest]


def test_sinks_are_synced_before_a_record_is_written(loop, tmp_path):
    """Or the record may count rows that a crash of the machine takes away."""
    checkpoints, seen = Checkpoints(tmp_path), []

    class Synced(Sink):
        def sync(self):
            seen.append([record.step for record in checkpoints.records()])

    loop(Checkpoint(every=2), steps=4, checkpoints=checkpoints, sinks=[Synced()]).run()
    assert seen == [[], [2]]


@pytest.mark.parametrize(
    ("rows", "given"),
    [
        ([Conversation([{"role": "user", "content": "hi"}])], "a Conversation"),
        ([{"messages": []}], "a dict"),
        ("conversations.jsonl", "a str"),
        (3, "an int"),
    ],
)
def test_a_batch_of_other_things_than_datums_is_refused(service, rows, given):
    with pytest.raises(PlanError, match=rf"expected tinker\.Datum, got {given}; make datums with conversation_datums"):
        Loop(service.create_lora_training_client(), [rows]).run()


def test_a_service_client_in_place_of_a_training_client_is_refused(service, batches):
    with pytest.raises(PlanError, match="got the service client OrderedService: open one with open_training_client"):
        Loop(service, batches)


def test_swapped_arguments_of_a_loop_are_refused(service, batches):
    with pytest.raises(PlanError, match=r"must be a training client, got a list: the order is Loop\(client, batches\)"):
        Loop(batches, service.create_lora_training_client())


@pytest.mark.parametrize(
    ("options", "remedy"),
    [({"callbacks": Progress()}, r"callbacks=\[Progress\("), ({"sinks": Console()}, r"sinks=\[sink\]")],
)
def test_a_single_callback_or_sink_is_refused(service, batches, options, remedy):
    with pytest.raises(PlanError, match=f"must be a list, got .*: pass {remedy}"):
        Loop(service.create_lora_training_client(), batches, **options)


def test_a_dict_from_a_callback_is_refused_with_the_request_that_logs_it(loop):
    with pytest.raises(PlanError, match=r"wrap it: Log\(\{\.\.\.\}\)"):
        loop(callback(on_step=lambda self, result: {"mine": 1.0})).run()


def test_arguments_beside_a_coroutine_are_refused(recwarn):
    async def work():
        return 1

    with pytest.raises(PlanError, match=r"background got the coroutine .*work\(\.\.\.\) and the arguments \(1, 2\)"):
        background(work(), 1, 2)
    assert not recwarn.list  # a coroutine that is dropped would be warned of
