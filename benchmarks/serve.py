"""The time that the server adds to the engine, and what it gains by computing sample calls together.

    python benchmarks/serve.py [--steps 100] [--rounds 5] [--model FOLDER] [--peer URL]

latency   forward_backward + optim_step on one datum of 16 tokens: in process and over HTTP, in turns
samples   64 sample calls of 64 tokens over HTTP: one after another, all at once by one user, and by 64 users

--peer is the URL of another server that serves the same model, such as SkyRL, for a row of the first part.

Both parts use one model, by default the built-in tiny one, on one thread. The server runs in a process of its own,
which the real `tinker` client uses. The table shows medians, and the smallest value of each, which a busy machine
disturbs least.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TINKER_TELEMETRY", "0")

import tinker

from tinkerloop.local import ServiceClient

CALLS, LENGTH = 64, 64
TOKENS = random.Random(0).choices(range(256), k=17)
INPUTS: Any = {"target_tokens": TOKENS[1:], "weights": [1.0] * 16}
DATUM = tinker.Datum(model_input=tinker.ModelInput.from_ints(TOKENS[:-1]), loss_fn_inputs=INPUTS)


def resolved(value: Any) -> Any:
    return value.result() if hasattr(value, "result") else value


def step_seconds(client: Any) -> float:
    begun = time.perf_counter()
    forward_backward = client.forward_backward([DATUM], "cross_entropy")
    optim_step = client.optim_step(tinker.AdamParams(learning_rate=1e-4))
    forward_backward.result(), optim_step.result()
    return time.perf_counter() - begun


def sampling_seconds(samplers: list[Any], together: bool) -> float:
    prompt = tinker.ModelInput.from_ints(TOKENS)
    params = tinker.SamplingParams(max_tokens=LENGTH, stop=[])
    begun = time.perf_counter()
    if together:
        for call in [sampler.sample(prompt, 1, params) for sampler in samplers]:
            call.result()
    else:
        for sampler in samplers:
            sampler.sample(prompt, 1, params).result()
    return time.perf_counter() - begun


@contextmanager
def serving(model: str) -> Iterator[str]:
    """Start a server. The value is its URL."""
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-m", "tinkerloop.cli", "serve", "--port", "0", "--root", root]
        command += ["--model", model if model == "tiny" else f"{model}={model}"]
        process = subprocess.Popen([*command, "--quiet"], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()
            process.wait()


def milliseconds(seconds: list[float]) -> str:
    return f"{1000 * statistics.median(seconds):.1f} ({1000 * min(seconds):.1f}) ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="The number of steps in each round (default: 100).")
    parser.add_argument("--rounds", type=int, default=5, help="The number of rounds (default: 5).")
    parser.add_argument("--model", default="tiny", help="The folder of the model (default: the built-in tiny one).")
    parser.add_argument("--peer", help="The URL of another server with this model.")
    arguments = parser.parse_args()
    model = arguments.model
    with ExitStack() as stack:
        url = stack.enter_context(serving(model))
        root = stack.enter_context(tempfile.TemporaryDirectory())
        here = stack.enter_context(ServiceClient(root=root, device="cpu"))
        there = stack.enter_context(tinker.ServiceClient(base_url=url, api_key="tml-benchmark"))
        services: list[Any] = [here, there]
        if arguments.peer:
            # It is not closed, because some servers have no call that ends a session.
            services.append(tinker.ServiceClient(base_url=arguments.peer, api_key="tml-benchmark"))
        clients = [resolved(service.create_lora_training_client(model, rank=8)) for service in services]
        steps: list[list[float]] = [[] for _ in clients]
        for number in range(arguments.rounds * arguments.steps):  # in turns, so that both see the same machine
            for client, seconds in zip(clients, steps, strict=True):
                seconds.append(step_seconds(client))
            if number < 5:
                steps = [[] for _ in clients]
        users = [tinker.ServiceClient(base_url=url, api_key="tml-benchmark") for _ in range(CALLS - 1)]
        samplers = [
            resolved(user.create_sampling_client(base_model=model))
            for user in (there, *map(stack.enter_context, users))
        ]
        alone, one_user, many_users = [], [], []
        for _ in range(arguments.rounds):
            alone.append(sampling_seconds(samplers, together=False))
            one_user.append(sampling_seconds(samplers[:1] * CALLS, together=True))
            many_users.append(sampling_seconds(samplers, together=True))
    print(f"in process          {milliseconds(steps[0])}")
    for name, seconds in zip(("over HTTP", "the other server"), steps[1:], strict=False):
        ratios = [statistics.median(seconds) / statistics.median(steps[0]), min(seconds) / min(steps[0])]
        print(f"{name:19} {milliseconds(seconds)}: {ratios[0]:.2f} ({ratios[1]:.2f}) times as long")
    print(f"{CALLS} calls in turn    {milliseconds(alone)}")
    for name, seconds in (("at once, one user", one_user), (f"at once, {CALLS} users", many_users)):
        ratios = [statistics.median(alone) / statistics.median(seconds), min(alone) / min(seconds)]
        print(f"{name:19} {milliseconds(seconds)}: {ratios[0]:.1f} ({ratios[1]:.1f}) times as fast")


if __name__ == "__main__":
    main()
