"""The time and memory that the embedded engine needs in addition to the model's arithmetic.

    python benchmarks/engine_requests.py [--parts latency,samples,memory] [--steps 1000]

latency   forward_backward + optim_step on one datum of 8 tokens: the total time, and the engine's own part, which
          excludes the model, the gradient of the loss and AdamW; also the time from process start to the end of the
          first step
samples   64 sample calls of 64 tokens: one after another, and all at once
memory    resident memory over steps with datums of changing lengths; every 50 steps, a sampling client is created and
          the state is saved

All parts use one thread, float32 and the built-in tiny model, and print medians. Latency is measured in processor time,
which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import tempfile
import time
from pathlib import Path

STARTED = time.time()

import tinker  # noqa: E402
import torch  # noqa: E402

from tinkerloop.local import ServiceClient, TrainingClient  # noqa: E402
from tinkerloop.local.nn.layers.head import Head  # noqa: E402
from tinkerloop.local.nn.model import Model  # noqa: E402
from tinkerloop.local.nn.replica import Replica  # noqa: E402
from tinkerloop.local.runtime import engine  # noqa: E402


def datum(seed: int, length: int) -> tinker.Datum:
    tokens = random.Random(seed).choices(range(256), k=length + 1)
    inputs = {"target_tokens": tokens[1:], "weights": [1.0] * length}
    return tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


def step(client: TrainingClient, data: list[tinker.Datum]) -> None:
    forward_backward = client.forward_backward(data, "cross_entropy")
    optim_step = client.optim_step(tinker.AdamParams(learning_rate=1e-4))
    forward_backward.result(), optim_step.result()


class Inside:
    """Sum of the processor time spent in the watched functions. The time of nested calls is counted once."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def watch(self, owner: object, name: str) -> None:
        function = getattr(owner, name)

        @functools.wraps(function)
        def watched(*args, **kwargs):
            self._depth += 1
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.thread_time() - start

        setattr(owner, name, watched)


def latency(client: TrainingClient, steps: int = 300) -> None:
    data = [datum(0, 8)]
    step(client, data)
    print(f"first step done {time.time() - STARTED:.2f} s after process start (imports included)")
    inside = Inside()
    for owner, name in (
        (Replica, "hidden"),
        (Model, "bind"),  # adds the adapter to the weights
        (Head, "logprobs"),
        (Head, "logprobs_and_gradient"),
        (torch.Tensor, "backward"),
        (engine, "adam_step"),
    ):
        inside.watch(owner, name)
    total, own = [], []
    for _ in range(steps):
        inside.seconds, start = 0.0, time.process_time()
        step(client, data)
        total.append(time.process_time() - start)
        own.append(total[-1] - inside.seconds)
    print(
        f"a step: {1e3 * statistics.median(total):.2f} ms, of it the engine's own {1e3 * statistics.median(own):.2f} ms"
    )


def samples(client: TrainingClient, calls: int = 64, tokens: int = 64, rounds: int = 3) -> None:
    sampler = client.save_weights_and_get_sampling_client()
    params = tinker.SamplingParams(max_tokens=tokens, stop=[], seed=0)
    rng = random.Random("prompts")
    prompts = [tinker.ModelInput.from_ints(rng.choices(range(256), k=rng.randint(10, 60))) for _ in range(calls)]
    ratios = []
    for _ in range(rounds):
        start = time.perf_counter()
        for prompt in prompts:
            sampler.sample(prompt, 1, params).result()
        alone, start = time.perf_counter() - start, time.perf_counter()
        for future in [sampler.sample(prompt, 1, params) for prompt in prompts]:
            future.result()
        ratios.append(alone / (time.perf_counter() - start))
    print(f"{calls} sample calls at once: {statistics.median(ratios):.1f} times the throughput of one after another")


def memory(client: TrainingClient, steps: int) -> None:
    resident = []
    for i in range(steps):
        step(client, [datum(i + j, 8 + (37 * i + 11 * j) % 200) for j in range(4)])
        if i % 50 == 0:
            sampler = client.save_weights_and_get_sampling_client()
            sampler.compute_logprobs(tinker.ModelInput.from_ints([1, 2, 3])).result()
            client.save_state("last", overwrite=True).result()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * 4096 / 1e6)
    tenth = steps // 10
    parts = [statistics.median(resident[i : i + tenth]) for i in range(tenth, steps, tenth)]
    spread = (max(parts) / min(parts) - 1) * 100
    print(
        f"resident memory, medians of {tenth} steps each after the first {tenth} of {steps}: "
        f"{min(parts):.0f} to {max(parts):.0f} MB, {spread:.1f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="latency,samples,memory", help="The parts to run, comma-separated.")
    parser.add_argument("--steps", type=int, default=1000, help="The number of steps in the memory part.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        client = ServiceClient(root=folder, device="cpu").create_lora_training_client("tiny", rank=8)
        for part in args.parts.split(","):
            {"latency": latency, "samples": samples, "memory": functools.partial(memory, steps=args.steps)}[part](
                client
            )


if __name__ == "__main__":
    main()
