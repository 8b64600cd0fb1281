"""Simulated remote service: one server that executes requests in order, behind a network, without a model.

The client waits in real time; the time of the server is computed. A request submitted at time t reaches the server at
t + rtt / 2, and starts when the server is free. Its result arrives at the client rtt / 2 after the request has ended.
Samples come from other machines, which the training server does not wait for: each takes the same time, however many
there are. A sampling client exists when the server has saved its weights.
The trained weights are represented by the list of applied batches, so that batches trained twice can be counted.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import tinker
from tinker.types import SampledSequence, SampleResponse, SaveWeightsForSamplerResponse, SaveWeightsResponse


class Killed(BaseException):
    """Exception that simulates that the client process is killed."""


class Answer:
    """A future whose result arrives at a given point of real time."""

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
    """The simulated service: the seconds that each kind of request takes, and what the server has done so far."""

    rtt: float = 0.05
    step: float = 0.1
    save: float = 0.1
    forward: float = 0.05
    snapshot: float = 0.0
    sample: float = 0.4
    has_future_snapshots: bool = True
    """True: `save_weights_and_get_sampling_client` returns a future, as since tinker 0.38. False: it blocks."""
    kill_after: int | None = None
    """Number of optimizer steps after which the next one raises `Killed`; None never raises it."""
    free: float = 0.0
    began: float | None = None
    busy: float = 0.0
    submitted: int = 0
    steps: list[tuple[float, float]] = field(default_factory=list)
    """The time at which each optimizer step ended, and the time that the server had worked until then."""
    saved: dict[str, list[int]] = field(default_factory=dict)

    def work(self, seconds: float, value: Any) -> Answer:
        start = max(self.free, time.perf_counter() + self.rtt / 2)
        self.began = start if self.began is None else self.began
        self.free = start + seconds
        self.busy += seconds
        return Answer(value, self.free + self.rtt / 2)

    def between_steps(self, skip: int = 1) -> tuple[float, float]:
        """Return (seconds per step, share of time in which the server worked), from the end of step `skip` on."""
        (began, busy_before), (ended, busy) = self.steps[skip], self.steps[-1]
        return (ended - began) / (len(self.steps) - 1 - skip), (busy - busy_before) / (ended - began)

    @property
    def busy_share(self) -> float:
        """The share of time in which the server worked, from the start of its first request to the end of its last."""
        return self.busy / (self.free - (self.began or 0.0))

    # --- the methods of tinker.ServiceClient that training loops use ---

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
        answer = self.service.work(0.1 * self.service.step, tinker.OptimStepResponse(metrics={}))
        self.service.steps.append((self.service.free, self.service.busy))
        return answer

    def save_state(self, name: str, ttl_seconds: Any = None, overwrite: bool = False, **options: Any) -> Answer:
        path = f"tinker://run/weights/{name}"
        self.service.saved[path] = list(self.weights)
        return self.service.work(self.service.save, SaveWeightsResponse(path=path))

    def save_weights_for_sampler(self, name: str, ttl_seconds: Any = None, **options: Any) -> Answer:
        path = f"tinker://run/sampler_weights/{name}"
        return self.service.work(self.service.save, SaveWeightsForSamplerResponse(path=path))

    def create_sampling_client(self, path: str, **options: Any) -> Answer:
        return Answer(Sampler(self.service), time.perf_counter() + self.service.rtt)

    def save_weights_and_get_sampling_client(self, *args: Any, **options: Any) -> Any:
        answer = self.service.work(self.service.snapshot, Sampler(self.service))
        return answer if self.service.has_future_snapshots else answer.result()

    async def save_state_async(self, *args: Any, **options: Any) -> Answer:
        return self.save_state(*args, **options)

    async def save_weights_for_sampler_async(self, *args: Any, **options: Any) -> Answer:
        return self.save_weights_for_sampler(*args, **options)


@dataclass
class Sampler:
    """A sampling client. Each reply has `max_tokens` tokens, of which the last is the first stop token."""

    service: SimulatedService

    def sample(self, prompt: Any, num_samples: int, sampling_params: tinker.SamplingParams, **options: Any) -> Answer:
        random = Random(sampling_params.seed if sampling_params.seed is not None else time.perf_counter_ns())
        ids = [random.randrange(32, 127) for _ in range((sampling_params.max_tokens or 1) - 1)]
        ids.append(sampling_params.stop[0])  # type: ignore[index,arg-type]
        logprobs = [-1.0] * len(ids)
        sequence = SampledSequence(stop_reason="stop", sequence_id="0", _tokens_list=ids, _logprobs_list=logprobs)
        arrives = time.perf_counter() + self.service.rtt + self.service.sample
        return Answer(SampleResponse(sequences=[sequence]), arrives)


def numbered_batches(count: int, size: int = 4, length: int = 32) -> list[list[Any]]:
    """Return `count` batches in which the first token of every datum is the number of the batch."""
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


def cookbook_main(service: SimulatedService, module: str = "supervised") -> Callable[[Any], Any]:
    """Return `main` of the Cookbook's `supervised.train` or `rl.train`, connected to `service`.

    In addition, only the Cookbook's request for prices over the network and its tokenizer download are replaced.
    """
    train = importlib.import_module(f"tinker_cookbook.{module}.train")

    from tinkerloop.tokenizers.tiny_tokenizer import tiny_tokenizer

    train.tinker.ServiceClient = lambda **options: service
    train.fetch_model_pricing = lambda name: None
    tokenizer = tiny_tokenizer()
    train.get_tokenizer = lambda name: tokenizer
    return train.main
