"""Checked by pyright in strict mode, never run: a script as a user writes it."""

from __future__ import annotations

from dataclasses import dataclass

import tinker

import tinkerloop
from tinkerloop import Callback, Checkpoints, Log, Loop, StepResult, Stop, open_training_client
from tinkerloop.callbacks import Checkpoint, Evaluate, LRSchedule, nll
from tinkerloop.clients import Future, TrainingClientLike
from tinkerloop.data import batches, conversation_datums, load_conversations
from tinkerloop.loop import Jsonl, background
from tinkerloop.loop.schedules import cosine, warmup


@dataclass
class Seen:
    worst: float = 0.0


class StopOnSpike(Callback):
    state: Seen

    def __init__(self, factor: float) -> None:
        self.factor, self.state = factor, Seen()

    def on_step(self, result: StepResult) -> Log | Stop:
        if self.state.worst and result.loss > self.factor * self.state.worst:
            return Stop(f"loss {result.loss:.2f} at step {result.step}")
        self.state.worst = max(self.state.worst, result.loss)
        return Log({"worst_loss": self.state.worst, "longest": max(d.model_input.length for d in result.plan.datums)})


def reply_length(client: TrainingClientLike) -> Future[dict[str, float]]:
    sampler = tinkerloop.loop.resolve(client.save_weights_and_get_sampling_client())
    answer = sampler.sample(tinker.ModelInput.from_ints([1, 2, 3]), 1, tinker.SamplingParams(max_tokens=16))
    return background(lambda: {"tokens": float(len(answer.result().sequences[0].tokens))})


def main() -> None:
    service = tinkerloop.connect("local", root="runs/service")
    renderer = tinkerloop.get_renderer("qwen3_instruct", tinkerloop.get_tokenizer("tiny"))
    datums = conversation_datums(load_conversations("train.jsonl"), renderer, 512)
    train = batches(datums, 16, epochs=3, shuffle=0)
    checkpoints = Checkpoints("runs/one")
    record = checkpoints.latest()
    client = open_training_client(service, record, base_model="tiny", rank=8)
    test = [datum for batch in batches(datums, 16) for datum in batch]
    loop = Loop(
        client,
        train,
        steps=100,
        callbacks=[
            LRSchedule(warmup(10, cosine(1e-3, 0.0, 90))),
            StopOnSpike(3.0),
            Evaluate("test", nll(test), every=20),
            Evaluate("replies", reply_length, every=20),
            Checkpoint(every=20, keep_last=2),
        ],
        sinks=[Jsonl("runs/one/metrics.jsonl"), lambda step, row: print(step, row["loss"])],
        checkpoints=checkpoints,
        record=record,
    )
    for result in loop.steps():
        print(result.step, result.loss, result.metrics["tokens"], result.outputs[0].metrics["loss:sum"])
    summary = loop.summary
    assert summary is not None
    print(summary.reason)
