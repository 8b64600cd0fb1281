"""`check_loop` finds runs that do not end in the same way after a kill."""

import json
from functools import partial

import pytest
import tinker

from tinkerloop.callbacks import Checkpoint
from tinkerloop.datum import make_datum
from tinkerloop.errors import CheckFailedError
from tinkerloop.loop import Callback, Checkpoints, Jsonl, Log, Loop, Record, open_training_client
from tinkerloop.testing import OrderedService, check_loop


class Count(Callback):
    """Counts steps in an attribute, which no record has."""

    def __init__(self):
        self.steps = 0

    def on_step(self, result):
        self.steps += 1
        return Log({"steps": self.steps})


def run(service, folder, batches, *, callbacks=(), used=None, checkpoints=None, catch=()):
    checkpoints = checkpoints or Checkpoints(folder)
    record = checkpoints.latest()
    client = open_training_client(service, record, base_model="unigram")
    loop = Loop(
        client,
        batches,
        steps=4,
        callbacks=[Checkpoint(every=2), *callbacks],
        sinks=[Jsonl(folder / "metrics.jsonl")],
        checkpoints=checkpoints,
        record=used(record) if used and record else record,
    )
    try:
        return loop.run()
    except catch:
        return None


def small_service():
    return OrderedService(20)


def test_a_run_that_resumes_exactly_passes(batches):
    whole = check_loop(lambda service, folder: run(service, folder, batches), service=small_service)
    assert sorted(whole) == ["checkpoints.jsonl", "metrics.jsonl", "summary", "updates", "weights"]


@pytest.mark.parametrize(
    ("mistake", "difference"),
    [
        ({"callbacks": [Count]}, r"after .*save_state.*\['steps'\] is 2, expected 4"),
        ({"used": lambda record: Record(**(vars(record) | {"cursor": 0}))}, "weights"),
        ({"catch": BaseException}, "catches BaseException"),
    ],
)
def test_a_mistake_in_a_run_is_found(mistake, difference, batches):
    def make_run(service, folder):
        made = {"callbacks": [make() for make in mistake.get("callbacks", ())]}
        return run(service, folder, batches, **(mistake | made))

    with pytest.raises(CheckFailedError, match=difference):
        check_loop(make_run, service=small_service)


def test_a_run_that_does_not_use_the_service_is_refused():
    with pytest.raises(CheckFailedError, match="has used no operation"):
        check_loop(lambda service, folder: None)


def train_on_samples(service, folder, seed):
    """Train for three steps on sampled tokens, saving a state after each."""
    file = folder / "state.json"
    step, path = json.loads(file.read_text()) if file.exists() else (0, None)
    open_saved = service.create_training_client_from_state_with_optimizer
    client = open_saved(path) if path else service.create_lora_training_client()
    for i in range(step, 3):
        params = tinker.SamplingParams(max_tokens=3, seed=seed(i))
        sampler, prompt = client.save_weights_and_get_sampling_client(), tinker.ModelInput.from_ints([1])
        tokens = sampler.sample(prompt, 1, params).result().sequences[0].tokens
        client.forward_backward([make_datum([1, *tokens], [0, 1, 1, 1])], "cross_entropy").result()
        client.optim_step(tinker.AdamParams(learning_rate=0.1)).result()
        file.write_text(json.dumps((i + 1, client.save_state(str(i), overwrite=True).result().path)))


def test_a_run_that_samples_without_seeds_is_found():
    check_loop(partial(train_on_samples, seed=lambda step: step), service=small_service)
    with pytest.raises(CheckFailedError, match="weights"):
        check_loop(partial(train_on_samples, seed=lambda step: None), service=small_service)
