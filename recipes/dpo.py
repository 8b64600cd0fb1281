"""Direct preference optimisation: train on pairs of a better and a worse reply with a custom loss.

    python -m recipes.dpo
    python -m recipes.dpo beta=0.05 steps=60 run=runs/dpo_weak
    python -m recipes.dpo --help

The loss is -log sigmoid(beta * ((log p(better) - log ref(better)) - (log p(worse) - log ref(worse)))), where ref is the
model before training (Rafailov et al., "Direct Preference Optimization", 2023). The pairs of this recipe are generated:
the better reply is the word in capitals, and the worse reply repeats the word unchanged.

What you should see: before training, the better reply has the higher probability in 20 % of the unseen pairs with seed
0, and in 7 % with seed 1. After 30 steps it does in all of them with both seeds. This takes about 20 s on one core.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import chz
import numpy as np
import tinker

from recipes.command_line import run_from_command_line
from recipes.ending import end_with_score
from recipes.model_defaults import (
    NOISY_LOSS_SHARE,
    ModelOptions,
    held_out_field,
    learning_rate_field,
    service_and_renderer,
)
from recipes.stored import stored
from tinkerloop import Callback, Loop, Plan, Run
from tinkerloop.callbacks import Checkpoint, Evaluate, LRSchedule, Preempt
from tinkerloop.callbacks.evaluation import Evaluator
from tinkerloop.data import batches, conversation_to_datum
from tinkerloop.errors import PlanError
from tinkerloop.loop import open_training_client, resolve
from tinkerloop.loop.futures import Mapped
from tinkerloop.loop.schedules import constant, warmup
from tinkerloop.renderers import Renderer


@chz.chz
class Config(ModelOptions):
    run: str = chz.field(default="runs/dpo", doc="Folder of the run. A run that was interrupted resumes.")
    pairs: int = chz.field(default=240, doc="Number of pairs to train on.")
    test_pairs: int = held_out_field(60, "Number of pairs held out for evaluation.")
    beta: float = chz.field(default=0.1, doc="DPO's beta. A larger value keeps the model closer to the base model.")
    steps: int = chz.field(default=30, doc="Total number of optimizer steps.")
    batch_size: int = chz.field(default=16, doc="Pairs per step.")
    learning_rate: float = learning_rate_field(5e-4, share=NOISY_LOSS_SHARE)
    save_every: int = chz.field(default=10, doc="Save a checkpoint every this many steps.")
    seed: int = chz.field(default=0, doc="Random seed for the pairs, their order and the adapter.")


def make_pairs(renderer: Renderer, seed: int, count: int) -> list[tuple[tinker.Datum, tinker.Datum]]:
    """Return pairs of datums with the better and the worse reply to "Say <word>". Weights are 1 on the replies."""
    rng = random.Random(f"{seed}/pairs")
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 7))) for _ in range(count)]

    def datum(word: str, reply: str) -> tinker.Datum:
        messages = [{"role": "user", "content": f"Say {word}"}, {"role": "assistant", "content": reply}]
        return conversation_to_datum(messages, renderer)

    return [(datum(word, word.upper()), datum(word, word)) for word in words]


def key(datum: tinker.Datum) -> tuple[int, ...]:
    """Return the tokens of a datum, used as the key of its reference log-likelihood."""
    return (*datum.model_input.to_ints(), *datum.loss_fn_inputs["target_tokens"].tolist()[-1:])


def log_likelihoods(datums: list[tinker.Datum], output: tinker.ForwardBackwardOutput) -> np.ndarray:
    """Return log p(reply | prompt) of each datum (n,), from the output of a `forward` request."""
    weights = [datum.loss_fn_inputs["weights"].to_numpy() for datum in datums]
    return np.array([w @ one["logprobs"].to_numpy() for w, one in zip(weights, output.loss_fn_outputs, strict=True)])


class PreferenceLoss(Callback):
    """Sets the DPO loss for each step. Datums 2i and 2i + 1 hold the better and the worse reply of a pair.

    The losses of a step's micro-batches are summed, so each is divided by the number of pairs in the whole step. A step
    may therefore be split in any way that leaves pairs together.
    """

    def __init__(self, reference: dict[tuple[int, ...], float], beta: float):
        self.reference, self.beta = reference, beta

    def on_plan(self, plan: Plan) -> Plan:
        for one in plan.micro_batches:
            refuse_broken_pairs(len(one.datums))
        pairs = len(plan.datums) // 2

        def dpo(datums: list[tinker.Datum], logprobs: list[Any]) -> tuple[Any, dict[str, float]]:
            import torch

            refuse_broken_pairs(len(datums))  # a later callback may have split the step
            before = [self.reference[key(datum)] for datum in datums]
            weights = [torch.tensor(datum.loss_fn_inputs["weights"].tolist()) for datum in datums]
            now = torch.stack([w @ lp for w, lp in zip(weights, logprobs, strict=True)])  # (2n,)
            gain = now - torch.tensor(before)  # log-likelihood minus that of the reference model
            margin = self.beta * (gain[0::2] - gain[1::2])  # (n,)
            loss = -torch.nn.functional.logsigmoid(margin).sum() / pairs
            moved = margin.detach()
            return loss, {"preferred": float((moved > 0).float().mean()), "margin": float(moved.mean())}

        return plan.with_micro_batches(replace(one, loss_fn=dpo) for one in plan.micro_batches)


def refuse_broken_pairs(count: int) -> None:
    if count % 2:
        raise PlanError(
            f"a micro-batch has {count} datums, but a preference loss needs whole pairs: split with an even "
            "GradientAccumulation(micro_batch=...), and not by tokens"
        )


def preferred(pairs: list[tuple[tinker.Datum, tinker.Datum]]) -> Evaluator:
    """Return an evaluator: in which fraction of the pairs the better reply has the higher probability."""
    datums = [datum for pair in pairs for datum in pair]

    def share(output: tinker.ForwardBackwardOutput) -> dict[str, float]:
        likelihood = log_likelihoods(datums, output)
        return {"preferred": float((likelihood[0::2] > likelihood[1::2]).mean())}

    return lambda client: Mapped(client.forward(datums, "cross_entropy"), share)


def main(config: Config) -> float:
    """Return the fraction of the unseen pairs in which the better reply has the higher probability after training."""
    service, renderer = service_and_renderer(config)
    pairs = make_pairs(renderer, config.seed, config.pairs + config.test_pairs)
    train, test = pairs[: config.pairs], pairs[config.pairs :]
    datums = [datum for pair in train for datum in pair]

    with Run(config.run, config=chz.asdict(config)) as run:
        record = run.checkpoints.latest()
        client = open_training_client(service, record, base_model=config.model, rank=32, seed=config.seed)
        # A new adapter does not change the model, so the untrained client is the reference model.
        before = stored(
            run.folder / "reference.json",
            lambda: log_likelihoods(datums, resolve(client.forward(datums, "cross_entropy"))).tolist(),
        )
        reference = dict(zip(map(key, datums), before, strict=True))
        loop = Loop(
            client,
            batches(train, config.batch_size, epochs=None, shuffle=config.seed, flatmap_fn=list),
            steps=config.steps,
            callbacks=[
                LRSchedule(warmup(5, constant(config.learning_rate))),
                PreferenceLoss(reference, config.beta),
                Evaluate("test", preferred(test)),
                Checkpoint(every=config.save_every, keep_last=2),
                Preempt(),
            ],
            normalize="none",  # the loss is already a mean over pairs
            sinks=[run.metrics],
            checkpoints=run.checkpoints,
            record=record,
        )
        for result in loop.steps():
            if result.step % 5 == 0:
                print(f"step {result.step:3d}  loss {result.loss:.3f}  margin {result.metrics['margin']:.3f}")
        return end_with_score(run, loop.summary, "test/preferred", "unseen pairs whose better reply is more likely")


if __name__ == "__main__":
    run_from_command_line(main)
