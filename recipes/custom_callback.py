"""The same loop with `Loop` and a callback of your own: it watches, it logs, it stops, and it survives a resume.

    python -m recipes.custom_callback
    python -m recipes.custom_callback steps=200 good_enough=0.5
    python -m recipes.custom_callback --help

The callback keeps the examples with the highest loss it has seen, logs the number, and ends the run when the loss per
token stays below `good_enough` for ten steps. Its state is saved with every checkpoint: interrupt the run, start it
again, and it goes on with the same list and the same count.

What you should see: a run that ends at about step 50 of 400, and a table of the hardest conversations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import chz

import tinkerloop
from tinkerloop import Callback, Log, Loop, Run, StepResult, Stop, open_training_client
from tinkerloop.callbacks import Checkpoint, LRSchedule, Progress
from tinkerloop.data import batches, conversation_datums, load_conversations
from tinkerloop.loop.schedules import linear, warmup


@dataclass
class Hardest:
    """The state of `HardExamples`: JSON values, so that it can be saved."""

    losses: dict[str, float] = field(default_factory=dict[str, float])
    good_steps: int = 0


class HardExamples(Callback):
    """Keeps the examples of the highest loss, and stops when the training loss has been low for ten steps."""

    state: Hardest

    def __init__(self, decode: Callable[[list[int]], str], *, keep: int, good_enough: float):
        self.decode, self.keep, self.good_enough = decode, keep, good_enough
        self.state = Hardest()

    def on_start(self, step: int, steps: int | None) -> Stop | None:
        return self._decide()  # again from the saved state: a run that was stopped stays stopped

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
        return Stop(f"the loss was below {self.good_enough} for ten steps") if self.state.good_steps >= 10 else None


@chz.chz
class Config:
    model: str = chz.field(default="recipes/base", doc="A model folder or a name.")
    renderer: str = chz.field(default="qwen3_instruct", doc="The model's chat format.")
    service: str = chz.field(default="local", doc="local, tinker, or a URL.")
    file: str = chz.field(default="recipes/data/pig_latin_train.jsonl", doc="JSONL with messages.")
    run: str = chz.field(default="runs/custom_callback", doc="The run's folder.")
    steps: int = chz.field(default=400, doc="Steps at most.")
    batch_size: int = chz.field(default=16, doc="Conversations in a step.")
    learning_rate: float = chz.field(default=2e-3, doc="The highest learning rate.")
    good_enough: float = chz.field(default=0.35, doc="The loss per token to stop below.")
    keep: int = chz.field(default=5, doc="Examples remembered.")


def main(config: Config) -> tinkerloop.Summary:
    service = tinkerloop.connect(config.service, root=Path(config.run) / "service")
    tokenizer = tinkerloop.get_tokenizer(config.model)
    renderer = tinkerloop.get_renderer(config.renderer, tokenizer)
    datums = conversation_datums(load_conversations(config.file), renderer, 512)
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
    chz.nested_entrypoint(main, allow_hyphens=True)
