"""Fixtures: a service in a temporary folder, a client, datums of random tokens, and optimizer parameters."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import tinker
import torch

from tinkerloop.local import SamplingClient, ServiceClient, TrainingClient


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Use one thread. The models are so small that more threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def service(tmp_path) -> Iterator[ServiceClient]:
    client = ServiceClient(root=tmp_path, device="cpu")
    yield client
    client.close("success")


@pytest.fixture
def client(service: ServiceClient) -> TrainingClient:
    return service.create_lora_training_client("tiny", rank=8, seed=1)


@pytest.fixture
def sampler(service: ServiceClient) -> SamplingClient:
    return service.create_sampling_client(base_model="tiny")


def tokens_of(seed: int, length: int) -> list[int]:
    return random.Random(f"tokens/{seed}").choices(range(256), k=length)


def datum_of(seed: int, length: int = 12, weights: list[float] | None = None) -> tinker.Datum:
    """Return a cross-entropy datum of `length` positions with random byte tokens."""
    tokens = tokens_of(seed, length + 1)
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": weights or [1.0] * length},
    )


@pytest.fixture
def datum() -> Callable[..., tinker.Datum]:
    return datum_of


@pytest.fixture
def tokens() -> Callable[[int, int], list[int]]:
    return tokens_of


@pytest.fixture
def adam() -> Callable[..., tinker.AdamParams]:
    def params(learning_rate: float = 1e-3, **fields: float) -> tinker.AdamParams:
        return tinker.AdamParams(learning_rate=learning_rate, **fields)

    return params
