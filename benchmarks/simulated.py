"""Simulated remote service: one server that works in order, a network with a round trip, no model.

The client waits in real time; the server's time is computed. A request submitted at t reaches the server at t + rtt / 2
and starts when the server is free; its answer is visible rtt / 2 after its end. The trained weights are the list of
applied batches, so a batch that is trained twice can be counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tinker
from tinker.types import SaveWeightsForSamplerResponse, SaveWeightsResponse


class Killed(BaseException):
    """Raised where the client process would be killed."""


class Answer:
    """A future whose value is visible from a moment in real time on."""

    def __init__(self, value: Any, visible: float):
        self.value, self.visible = value, visible

    def result(self, timeout: float | None = None) -> Any:
        time.sleep(max(0.0, self.visible - time.perf_counter()))
        return self.value

    async def result_async(self, timeout: float | None = None) -> Any:
        await asyncio.sleep(max(0.0, self.visible - time.perf_counter()))
        return self.value

    def __await__(self) -> Any:
        return self.result_async().__await__()


@dataclass
class SimulatedService:
    """Seconds for each kind of work, and the work of the server so far."""

    rtt: float = 0.05
    step: float = 0.1
    save: float = 0.1
    forward: float = 0.05
    kill_after: int | None = None
    """Raise `Killed` at the optimizer step after this many."""
    free: float = 0.0
    began: float | None = None
    busy: float = 0.0
    submitted: int = 0
    saved: dict[str, list[int]] = field(default_factory=dict)

    def work(self, seconds: float, value: Any) -> Answer:
        start = max(self.free, time.perf_counter() + self.rtt / 2)
        self.began = start if self.began is None else self.began
        self.free = start + seconds
        self.busy += seconds
        return Answer(value, self.free + self.rtt / 2)

    @property
    def busy_share(self) -> float:
        """The share of the time from the server's first work to its last in which it was working."""
        return self.busy / (self.free - (self.began or 0.0))

    # --- tinker.ServiceClient, as far as training loops use it ---

    def create_lora_training_client(self, *args: Any, **options: Any) -> Client:
        return Client(self, [])

    def create_training_client_from_state_with_optimizer(self, path: str, **options: Any) -> Client:
        return Client(self, list(self.saved[path]))

    def create_rest_client(self) -> Any:
        raise NotImplementedError

    def __enter__(self) -> SimulatedService:
        return self

    def __exit__(self, *error: Any) -> None:
        pass


class Client:
    def __init__(self, service: SimulatedService, weights: list[int]):
        self.service, self.weights, self.pending = service, weights, None

    async def _itself(self) -> Client:
        return self

    def __await__(self) -> Any:
        return self._itself().__await__()

    def forward(self, data: list[Any], loss_fn: str, loss_fn_config: Any = None) -> Answer:
        return self.service.work(self.service.forward, _output(data))

    def forward_backward(self, data: list[Any], loss_fn: str, loss_fn_config: Any = None) -> Answer:
        self.pending = batch_number(data)
        return self.service.work(0.9 * self.service.step, _output(data))

    def optim_step(self, optim_params: Any) -> Answer:
        if self.service.submitted == self.service.kill_after:
            raise Killed
        self.service.submitted += 1
        self.weights.append(self.pending)
        return self.service.work(0.1 * self.service.step, tinker.OptimStepResponse(metrics={}))

    def save_state(self, name: str, ttl_seconds: Any = None, overwrite: bool = False, **options: Any) -> Answer:
        path = f"tinker://run/weights/{name}"
        self.service.saved[path] = list(self.weights)
        return self.service.work(self.service.save, SaveWeightsResponse(path=path))

    def save_weights_for_sampler(self, name: str, ttl_seconds: Any = None, **options: Any) -> Answer:
        path = f"tinker://run/sampler_weights/{name}"
        return self.service.work(self.service.save, SaveWeightsForSamplerResponse(path=path))

    async def save_state_async(self, *args: Any, **options: Any) -> Answer:
        return self.save_state(*args, **options)

    async def save_weights_for_sampler_async(self, *args: Any, **options: Any) -> Answer:
        return self.save_weights_for_sampler(*args, **options)


def numbered_batches(count: int, size: int = 4, length: int = 32) -> list[list[Any]]:
    """Make batches whose first token is their number."""
    weights = tinker.TensorData.from_numpy(np.ones(length, np.float32))
    targets = tinker.TensorData.from_numpy(np.full(length, 65))
    inputs = {"target_tokens": targets, "weights": weights}

    def datum(number: int) -> Any:
        model_input = tinker.ModelInput.from_ints([number] + [65] * (length - 1))
        return tinker.Datum(model_input=model_input, loss_fn_inputs=inputs)

    return [[datum(number)] * size for number in range(count)]


def batch_number(data: list[Any]) -> int:
    return data[0].model_input.chunks[0].tokens[0]


def _output(data: list[Any]) -> Any:
    logprobs = [
        {"logprobs": tinker.TensorData.from_numpy(np.full(one.model_input.length, -1.0, np.float32))} for one in data
    ]
    return tinker.ForwardBackwardOutput(
        loss_fn_output_type="ArrayRecord", loss_fn_outputs=logprobs, metrics={"loss:sum": float(len(data))}
    )


def cookbook_main(service: SimulatedService) -> Callable[[Any], Any]:
    """Return the Cookbook's own `supervised.train.main`, connected to `service`.

    Apart from that, only its request for prices over the network and its tokenizer download are replaced.
    """
    from tinker_cookbook.supervised import train  # pyright: ignore[reportMissingImports]

    from tinkerloop.tokenizers.tiny_tokenizer import tiny_tokenizer

    train.tinker.ServiceClient = lambda **options: service
    train.fetch_model_pricing = lambda name: None
    tokenizer = tiny_tokenizer()
    train.get_tokenizer = lambda name: tokenizer
    return train.main
