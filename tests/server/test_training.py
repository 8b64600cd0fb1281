"""The unmodified tinker client trains over HTTP, with the numbers of the engine in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tinker
import torch

from tinkerloop.images import image_chunk
from tinkerloop.local import ServiceClient
from tinkerloop.loop.futures import resolve

ADAM = tinker.AdamParams(learning_rate=1e-3)


def trained(client: Any, datum: Callable[..., tinker.Datum], steps: int = 12) -> list[tuple[float, float]]:
    """Train, and return the loss and the norm of the gradient of each step."""
    numbers = []
    for step in range(steps):
        output = client.forward_backward([datum(step, 8 + step), datum(step + 100)], "cross_entropy")
        update = client.optim_step(ADAM)
        numbers.append((output.result().metrics["loss:sum"], update.result().metrics["unclipped_grad_l2:mean"]))
    return numbers


@pytest.fixture
def in_process(tmp_path):
    with ServiceClient(root=tmp_path, device="cpu") as service:
        yield service


def test_twelve_steps_over_http_and_in_process_give_identical_numbers(client, in_process, datum):
    assert trained(client, datum) == trained(in_process.create_lora_training_client("tiny", rank=8, seed=1), datum)


def test_two_users_at_once_train_as_if_each_were_alone(url, in_process, datum):
    alone = trained(in_process.create_lora_training_client("tiny", rank=8, seed=1), datum)
    numbers: list[list[tuple[float, float]]] = []

    def use() -> None:
        with tinker.ServiceClient(base_url=url, api_key="tml-another-user") as service:
            numbers.append(trained(resolve(service.create_lora_training_client("tiny", rank=8, seed=1)), datum))

    users = [threading.Thread(target=use) for _ in range(2)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert numbers == [alone, alone]


@pytest.mark.slow
def test_a_batch_that_the_client_sends_in_parts_gives_the_outputs_of_one_request(client, in_process, datum):
    data = [datum(seed, 2) for seed in range(2100)]  # three parts of at most 1024 datums
    over_http = client.forward_backward(data, "cross_entropy").result()
    here = (
        in_process.create_lora_training_client("tiny", rank=8, seed=1).forward_backward(data, "cross_entropy").result()
    )
    assert over_http.metrics["loss:sum"] == pytest.approx(here.metrics["loss:sum"], rel=1e-6)
    for ours, theirs in zip(over_http.loss_fn_outputs, here.loss_fn_outputs, strict=True):
        np.testing.assert_allclose(ours["logprobs"].to_numpy(), theirs["logprobs"].to_numpy(), rtol=1e-5)


def test_forward_leaves_the_gradient_as_it_is(service, client, datum):
    def norm(client: Any, between: str) -> float:
        client.forward_backward([datum(1)], "cross_entropy")
        if between:
            getattr(client, between)([datum(2)], "cross_entropy")
        return client.optim_step(ADAM).result().metrics["unclipped_grad_l2:mean"]

    others = [resolve(service.create_lora_training_client("tiny", rank=8, seed=1)) for _ in range(2)]
    assert norm(client, "") == norm(others[0], "forward") != norm(others[1], "forward_backward")


def test_a_custom_loss_trains_as_in_process(client, in_process, datum):
    def loss(data, logprobs):
        total = sum((values * (index + 1) - 0.1 * values**2).sum() for index, values in enumerate(logprobs))
        return total, {"mine": float(total)}

    def numbers(client: Any) -> tuple[float, float, float]:
        output = client.forward_backward_custom([datum(1), datum(2, 5)], loss).result()
        update = client.optim_step(ADAM).result()
        return output.metrics["loss:sum"], output.metrics["mine"], update.metrics["unclipped_grad_l2:mean"]

    assert numbers(client) == numbers(in_process.create_lora_training_client("tiny", rank=8, seed=1))


@pytest.mark.parametrize("width", [2, 40])
def test_several_targets_for_each_position_arrive_dense_or_sparse(client, in_process, width):
    tokens = [5, 6, 7, 8, 9, 10]
    targets, weights = torch.zeros(6, width, dtype=torch.int64), torch.zeros(6, width)
    targets[:, 0], targets[:, -1] = torch.arange(6), torch.arange(6) + 20
    weights[:, 0], weights[:, -1] = 0.25, -0.75
    inputs = {
        "target_tokens": tinker.TensorData.from_torch_sparse(targets),
        "weights": tinker.TensorData.from_torch(weights),
    }
    datum = tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens), loss_fn_inputs=inputs)
    here = in_process.create_lora_training_client("tiny", rank=8, seed=1)
    outputs = [c.forward_backward([datum], "cross_entropy").result() for c in (client, here)]
    assert outputs[0].metrics == outputs[1].metrics
    logprobs = [output.loss_fn_outputs[0]["logprobs"].to_numpy() for output in outputs]
    assert logprobs[0].shape == (6, width)
    np.testing.assert_array_equal(*logprobs)


def test_policy_losses_and_their_configuration_arrive(client, in_process):
    inputs = {"target_tokens": [2, 3, 4], "logprobs": [-1.0, -2.0, -6.0], "advantages": [1.0, -1.0, 0.5]}
    datum = tinker.Datum(model_input=tinker.ModelInput.from_ints([1, 2, 3]), loss_fn_inputs=inputs)
    config = {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}
    here = in_process.create_lora_training_client("tiny", rank=8, seed=1)
    ours, theirs = (c.forward_backward([datum], "ppo", config).result().metrics for c in (client, here))
    assert ours == theirs
    assert ours != here.forward_backward([datum], "ppo").result().metrics


def image() -> tinker.types.ImageChunk:
    picture = np.random.default_rng(0).integers(0, 255, (56, 56, 3), dtype=np.uint8)
    return image_chunk(picture, model="tiny-vl")


def test_images_are_trained_on_and_sampled_from(service, in_process):
    chunk = image()
    text = tinker.EncodedTextChunk(tokens=[5, 6, 7])
    prompt = tinker.ModelInput(chunks=[text, chunk, text])
    length = prompt.length
    inputs = {"target_tokens": [0] * (length - 2) + [7, 8], "weights": [0.0] * (length - 2) + [1.0, 1.0]}
    data = [tinker.Datum(model_input=prompt, loss_fn_inputs=inputs)]
    params = tinker.SamplingParams(max_tokens=3, seed=3)

    def numbers(client: Any, sampler: Any) -> tuple[float, list[int]]:
        loss = client.forward_backward(data, "cross_entropy").result().metrics["loss:sum"]
        return loss, sampler.sample(prompt, 1, params).result().sequences[0].tokens

    over_http = numbers(
        resolve(service.create_lora_training_client("tiny-vl", rank=4, seed=1)),
        resolve(service.create_sampling_client(base_model="tiny-vl")),
    )
    here = in_process.create_lora_training_client("tiny-vl", rank=4, seed=1)
    assert over_http == numbers(here, in_process.create_sampling_client(base_model="tiny-vl"))
