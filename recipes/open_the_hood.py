"""Read and change gradients, weights and Adam's moments between `forward_backward` and `optim_step`.

    python -m recipes.open_the_hood
    python -m recipes.open_the_hood batch_size=64 part=8 clip=0.5
    python -m recipes.open_the_hood --help

`client.apply(function)` queues a function of the training state like any other request. The function receives the
gradient of all earlier requests, and its changes affect all later requests. Hosted services do not offer it, so this
recipe runs only on the embedded engine. It shows three uses:

* the gradient noise scale, which estimates up to which size a larger batch is worth its cost;
* clipping the gradient of each tensor separately;
* a table of every layer's gradient and update.

What you should see: the loss falls while the noise scale grows, so larger batches become useful towards the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import chz
import tinker
import torch

import tinkerloop
from recipes.command_line import run_from_command_line
from tinkerloop.data import batches, conversation_datums, load_conversations
from tinkerloop.local.nn.parameters import TrainState


@chz.chz
class Config:
    model: str = chz.field(default="recipes/base", doc="Base model: a folder or a model name of the service.")
    file: str = chz.field(default="recipes/data/pig_latin_train.jsonl", doc="JSONL file with `messages` in each row.")
    conversations: int = chz.field(default=512, doc="Number of conversations to train on.")
    steps: int = chz.field(default=60, doc="Number of optimizer steps.")
    batch_size: int = chz.field(default=32, doc="Conversations per step.")
    part: int = chz.field(default=4, doc="Conversations per forward_backward; must divide batch_size.")
    learning_rate: float = chz.field(default=2e-3, doc="Learning rate.")
    lora_rank: int = chz.field(default=16, doc="Rank of the LoRA adapter.")
    clip: float = chz.field(default=1.0, doc="Clip each tensor's gradient to this norm per conversation.")


@dataclass(frozen=True)
class Layer:
    """Statistics of one layer's adapter after the last step. Norms are over its A and B matrices together."""

    gradient: float
    """Norm of the clipped gradient, divided by the number of conversations."""
    update: float
    """Norm of the change of the weights in the last step."""
    steadiness: float
    """Mean of |m| / sqrt(v) over Adam's moments: near 1 if the gradients of steps agree, near 0 if they are noise."""


def signal_and_noise(parts: Sequence[torch.Tensor], size: int) -> tuple[float, float]:
    """Return unbiased estimates of |G|^2 and trace(S), for mean G and covariance S of a conversation's gradient.

    Each of `parts` is a gradient summed over `size` conversations. The estimates are from McCandlish et al. 2018
    (arXiv:1812.06162, appendix A.1): for the mean g_b of b gradients, E |g_b|^2 = |G|^2 + trace(S) / b. They use this
    equation with two values of b.
    """
    whole = size * len(parts)
    small = sum(float((part / size).square().sum()) for part in parts) / len(parts)
    large = float((torch.stack(list(parts)).sum(0) / whole).square().sum())
    return (whole * large - size * small) / (whole - size), (small - large) / (1 / size - 1 / whole)


def clip_each(state: TrainState, limit: float) -> None:
    """Clip the gradient of every tensor to the norm `limit`, in place."""
    for gradient in state.gradients.values():
        gradient *= min(1.0, limit / max(float(gradient.norm()), 1e-30))


def gradient(state: TrainState) -> torch.Tensor:
    return state.gradient.clone()  # a copy, because later requests change the tensors of `state`


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.weights.named.items()}


def main(config: Config) -> tuple[list[float], list[float], dict[str, Layer]]:
    if config.batch_size % config.part or config.batch_size == config.part:
        raise ValueError(
            f"part must divide batch_size={config.batch_size} into two or more parts, got part={config.part}"
        )
    service = tinkerloop.connect("local")
    client = service.create_lora_training_client(config.model, rank=config.lora_rank, seed=0)
    renderer = tinkerloop.get_renderer("qwen3_instruct", client.get_tokenizer())
    datums = conversation_datums(load_conversations(config.file)[: config.conversations], renderer, 512)
    losses: list[float] = []
    scales: list[float] = []
    signal = noise = 0.0

    for step, batch in enumerate(batches(datums, config.batch_size, epochs=None, shuffle=0)):
        # Queue all requests of the step, then wait. Each function runs at its place in the queue.
        outputs, gradient_sums = [], []
        for start in range(0, config.batch_size, config.part):
            outputs.append(client.forward_backward(batch[start : start + config.part], "cross_entropy"))
            gradient_sums.append(client.apply(gradient))
        client.apply(lambda state: clip_each(state, config.clip * config.batch_size))
        clipped = client.apply(lambda state: {name: float(g.norm()) for name, g in state.gradients.items()})
        before = client.apply(weights)
        client.optim_step(tinker.AdamParams(learning_rate=config.learning_rate))
        after = client.apply(weights)

        # Gradients accumulate, so the gradient of one part is the difference between the sums after and before it.
        sums = [future.result() for future in gradient_sums]
        parts = [b - a for a, b in zip([torch.zeros_like(sums[0]), *sums], sums, strict=False)]
        estimates = signal_and_noise(parts, config.part)
        signal, noise = (0.9 * old + 0.1 * new for old, new in zip((signal, noise), estimates, strict=True))
        trained = sum(float(datum.loss_fn_inputs["weights"].to_numpy().sum()) for datum in batch)
        losses.append(sum(future.result().metrics["loss:sum"] for future in outputs) / trained)
        scales.append(noise / signal if signal > 0 else float("inf"))  # averages of both, not of their ratio
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
    run_from_command_line(main)
