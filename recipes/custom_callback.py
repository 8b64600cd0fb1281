"""Train with `Loop` and a custom callback that logs a metric, stops the run, and keeps its state when a run resumes.

    python -m recipes.custom_callback
    python -m recipes.custom_callback steps=200 good_enough=0.5
    python -m recipes.custom_callback --help

The callback keeps the examples with the highest losses so far and logs the highest loss. It stops the run when the loss
per token has been below `good_enough` for ten steps in a row. Its state is saved with every checkpoint. So if you
interrupt the run and start it again, the callback continues with the same examples and the same count.

What you should see: the run ends at about step 50 of 400, and prints a table of the hardest conversations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import chz

import tinkerloop
from recipes.command_line import run_from_command_line
from recipes.model_defaults import device_field, dry_run_field, dtype_field, learning_rate_field, renderer_field
from recipes.run_size import print_run_size
from tinkerloop import Callback, Log, Loop, Run, StepResult, Stop, open_training_client
from tinkerloop.callbacks import Checkpoint, LRSchedule, Progress
from tinkerloop.data import batches, conversation_datums, load_conversations
from tinkerloop.loop.schedules import linear, warmup


@dataclass
class Hardest:
    """The state of `HardExamples`. Its fields are JSON-serializable, so that checkpoints can store them."""

    losses: dict[str, float] = field(default_factory=dict[str, float])
    good_steps: int = 0


class HardExamples(Callback):
    """Keeps the examples with the highest losses. Stops the run after ten steps in a row with a low loss."""

    state: Hardest

    def __init__(self, decode: Callable[[list[int]], str], *, keep: int, good_enough: float):
        self.decode, self.keep, self.good_enough = decode, keep, good_enough
        self.state = Hardest()

    def on_start(self, step: int, steps: int | None) -> Stop | None:
        return self._decide()  # with the restored state, so that a run that was stopped stays stopped

    def on_step(self, result: StepResult) -> list[Log | Stop]:
        outputs = [output for one in result.outputs for output in one.loss_fn_outputs]
        for datum, output in zip(result.plan.datums, outputs, strict=True):
            weights = datum.loss_fn_inputs["weights"].to_numpy()
            loss = -float(weights @ output["logprobs"].to_numpy()) / float(weights.sum())
            text = self.decode(datum.model_input.to_ints())
            self.state.losses[text] = loss
        hardest = sorted(self.state.losses.items(), key=lambda item: -item[1])[: self.keep]
        self.state.losses = dict(hardest)
        self.state.good_steps = self.state.good_steps + 1 if result.loss < self.good_enough else 0
        log = Log({"hardest": hardest[0][1]})
        return [log, stop] if (stop := self._decide()) else [log]

    def _decide(self) -> Stop | None:
        return (
            Stop(f"the loss was below {self.good_enough} for ten steps in a row")
            if self.state.good_steps >= 10
            else None
        )


@chz.chz
class Config:
    model: str = chz.field(default="recipes/base", doc="Base model: a folder or a model name of the service.")
    renderer: str = renderer_field()
    service: str = chz.field(default="local", doc="Service to use: local, tinker, or a URL.")
    device: str | None = device_field()
    dtype: str | None = dtype_field()
    file: str = chz.field(default="recipes/data/pig_latin_train.jsonl", doc="JSONL file with `messages` in each row.")
    run: str = chz.field(default="runs/custom_callback", doc="Folder of the run.")
    steps: int = chz.field(default=400, doc="Maximum number of optimizer steps.")
    batch_size: int = chz.field(default=16, doc="Conversations per step.")
    learning_rate: float = learning_rate_field(2e-3)
    good_enough: float = chz.field(default=0.35, doc="Stop when the loss per token stays below this.")
    keep: int = chz.field(default=5, doc="Number of hardest examples to keep.")
    dry_run: bool = dry_run_field()


def main(config: Config) -> tinkerloop.Summary:
    tokenizer = tinkerloop.get_tokenizer(config.model)
    renderer = tinkerloop.get_renderer(config.renderer, tokenizer)
    datums = conversation_datums(load_conversations(config.file), renderer, 512)
    if config.dry_run:
        print_run_size(config, datums, rank=32)
        return tinkerloop.Summary(0, "dry run", {})
    root = Path(config.run) / "service"
    service = tinkerloop.connect(config.service, root=root, device=config.device, dtype=config.dtype)
    hard = HardExamples(renderer.decode, keep=config.keep, good_enough=config.good_enough)

    with Run(config.run, config=chz.asdict(config)) as run:
        record = run.checkpoints.latest()
        client = open_training_client(service, record, base_model=config.model, rank=32)
        loop = Loop(
            client,
            batches(datums, config.batch_size, epochs=None, shuffle=0),
            steps=config.steps,
            callbacks=[
                LRSchedule(warmup(5, linear(config.learning_rate, 0.0, config.steps))),
                hard,
                Checkpoint(every=20, keep_last=2),
                Progress(),
            ],
            sinks=[run.metrics],
            checkpoints=run.checkpoints,
            record=record,
        )
        summary = loop.run()
        run.finish(summary)
    print("the hardest:")
    for text, loss in hard.state.losses.items():
        print(f"  {loss:.2f}  {text!r}")
    return summary


if __name__ == "__main__":
    run_from_command_line(main)
