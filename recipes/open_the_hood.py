"""The hood open: between `forward_backward` and `optim_step`, read and change gradients, weights and Adam's moments.

    python -m recipes.open_the_hood
    python -m recipes.open_the_hood batch_size=64 part=8 clip=0.5
    python -m recipes.open_the_hood --help

`client.apply(function)` queues a function of the training state like any other request: it sees the gradient of
everything submitted before it, and what it changes counts for everything after. No hosted service offers it, so this
recipe runs on the embedded engine alone. Here it serves three ends: the gradient noise scale, which says how large a
batch is worth its cost; clipping each tensor by itself; and a table of what every layer is doing.

What you should see: the loss falls, while the noise scale grows: the nearer to the end, the larger a batch pays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import chz
import tinker
import torch

import tinkerloop
from tinkerloop.data import batches, conversation_datums, load_conversations
from tinkerloop.local.nn.parameters import TrainState


@chz.chz
class Config:
    model: str = chz.field(default="recipes/base", doc="A model folder or a name.")
    file: str = chz.field(default="recipes/data/pig_latin_train.jsonl", doc="JSONL with messages.")
    conversations: int = chz.field(default=512, doc="How many to train on.")
    steps: int = chz.field(default=60, doc="Optimizer steps.")
    batch_size: int = chz.field(default=32, doc="Conversations in a step.")
    part: int = chz.field(default=4, doc="Conversations in one forward_backward; must divide batch_size.")
    learning_rate: float = chz.field(default=2e-3, doc="The learning rate.")
    lora_rank: int = chz.field(default=16, doc="The rank of the adapter.")
    clip: float = chz.field(default=1.0, doc="The largest norm of one tensor's gradient, per conversation.")


@dataclass(frozen=True)
class Layer:
    """One adapted layer after the last step; norms over its A and B together."""

    gradient: float
    """Of the clipped gradient."""
    update: float
    """Of what the last step changed."""
    steadiness: float
    """mean |m| / sqrt(v): near 1 where steps agree, near 0 where they are noise."""


def signal_and_noise(parts: Sequence[torch.Tensor], size: int) -> tuple[float, float]:
    """Unbiased estimates of |G|^2 and trace(S), for the gradient G of one conversation and its covariance S.

    `parts` are gradients summed over `size` conversations each. From McCandlish et al. 2018 (arXiv:1812.06162,
    appendix A.1): E |g_b|^2 = |G|^2 + trace(S) / b for a mean g_b over b conversations, taken at two values of b.
    """
    whole = size * len(parts)
    small = sum(float((part / size).square().sum()) for part in parts) / len(parts)
    large = float((torch.stack(list(parts)).sum(0) / whole).square().sum())
    return (whole * large - size * small) / (whole - size), (small - large) / (1 / size - 1 / whole)


def clip_each(state: TrainState, limit: float) -> None:
    """Scale down every tensor's gradient whose norm is above `limit`, in place."""
    for gradient in state.gradients.values():
        gradient *= min(1.0, limit / max(float(gradient.norm()), 1e-30))


def gradient(state: TrainState) -> torch.Tensor:
    return state.gradient.clone()  # everything in `state` is live: what leaves it is copied


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.weights.named.items()}


def main(config: Config) -> tuple[list[float], list[float], dict[str, Layer]]:
    if config.batch_size % config.part or config.batch_size == config.part:
        raise ValueError(f"part={config.part} must divide batch_size={config.batch_size} into two or more")
    service = tinkerloop.connect("local")
    client = service.create_lora_training_client(config.model, rank=config.lora_rank, seed=0)
    renderer = tinkerloop.get_renderer("qwen3_instruct", client.get_tokenizer())
    datums = conversation_datums(load_conversations(config.file)[: config.conversations], renderer, 512)
    losses: list[float] = []
    scales: list[float] = []
    signal = noise = 0.0

    for step, batch in enumerate(batches(datums, config.batch_size, epochs=None, shuffle=0)):
        # Everything of a step is queued before anything is waited for; the functions run at their place in the queue.
        passed, seen = [], []
        for start in range(0, config.batch_size, config.part):
            passed.append(client.forward_backward(batch[start : start + config.part], "cross_entropy"))
            seen.append(client.apply(gradient))
        client.apply(lambda state: clip_each(state, config.clip * config.batch_size))
        clipped = client.apply(lambda state: {name: float(g.norm()) for name, g in state.gradients.items()})
        before = client.apply(weights)
        client.optim_step(tinker.AdamParams(learning_rate=config.learning_rate))
        after = client.apply(weights)

        # Gradients accumulate, so a part's own is the difference of what was seen after it and before it.
        sums = [future.result() for future in seen]
        parts = [b - a for a, b in zip([torch.zeros_like(sums[0]), *sums], sums, strict=False)]
        found = signal_and_noise(parts, config.part)
        signal, noise = (0.9 * old + 0.1 * new for old, new in zip((signal, noise), found, strict=True))
        trained = sum(float(datum.loss_fn_inputs["weights"].to_numpy().sum()) for datum in batch)
        losses.append(sum(future.result().metrics["loss:sum"] for future in passed) / trained)
        scales.append(noise / signal if signal > 0 else float("inf"))  # both average over steps, their ratio does not
        if step % 10 == 0 or step + 1 == config.steps:
            print(f"step {step:3d}  loss {losses[-1]:.3f} per token  noise scale {scales[-1]:6.1f} conversations")
        if step + 1 == config.steps:
            break

    def steadiness(state: TrainState) -> dict[str, float]:
        return {name: float((m.abs() / (v.sqrt() + 1e-12)).mean()) for name, (m, v) in state.moments.items()}

    moments, norms = client.apply(steadiness).result(), clipped.result()
    changed = {name: float((after.result()[name] - old).norm()) for name, old in before.result().items()}
    layers = {}
    print(f"\n{'layer':40} {'gradient':>9} {'update':>9} {'steadiness':>10}")
    for name in dict.fromkeys(tensor.rsplit(".", 1)[0] for tensor in changed):
        pair = [f"{name}.lora_A", f"{name}.lora_B"]
        gradients, updates = (sum(values[n] ** 2 for n in pair) ** 0.5 for values in (norms, changed))
        layers[name] = Layer(gradients / config.batch_size, updates, sum(moments[n] for n in pair) / 2)
        print(f"{name:40} {layers[name].gradient:9.4f} {layers[name].update:9.4f} {layers[name].steadiness:10.2f}")
    return losses, scales, layers


if __name__ == "__main__":
    chz.nested_entrypoint(main, allow_hyphens=True)
