"""On a GPU, results equal the CPU's, repeated runs are bit-identical, and adapters stay float32 on a bf16 base."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tinker
import torch

from tests.local.references import policy_datum
from tests.local.tiny_models import CONFIGS, write_model
from tinkerloop.images import image_chunk
from tinkerloop.local import ServiceClient, TrainingClient

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: CUDA_VISIBLE_DEVICES=0")

NewClient = Callable[..., TrainingClient]


@pytest.fixture
def new(tmp_path) -> NewClient:
    """Return a function that creates a training client with a new service: `new(device, dtype, **service_options)`."""

    def client(device: str = "cuda", dtype: str | None = None, model: str = "tiny", rank: int = 8, **options):
        service = ServiceClient(root=tmp_path / "runs", device=device, dtype=dtype, **options)
        return service.create_lora_training_client(model, rank=rank, seed=1)

    return client


def train(client: TrainingClient, data: list[tinker.Datum], adam, steps: int = 3) -> list[np.ndarray]:
    """Train for some steps, then return the log-probabilities of the training data."""
    for _ in range(steps):
        client.forward_backward(data, "cross_entropy")
        client.optim_step(adam(3e-3))
    return logprobs(client.forward(data, "cross_entropy").result())


def logprobs(output: tinker.ForwardBackwardOutput) -> list[np.ndarray]:
    return [fields["logprobs"].to_numpy() for fields in output.loss_fn_outputs]


def weights(client: TrainingClient) -> torch.Tensor:
    return client.apply(lambda state: state.weights.flat.cpu()).result()


def gradient(client: TrainingClient) -> torch.Tensor:
    return client.apply(lambda state: state.gradient.cpu()).result()


def test_a_gpu_is_used_where_there_is_one_with_a_bf16_base_and_float32_adapters(tmp_path):
    client = ServiceClient(root=tmp_path).create_lora_training_client("tiny", rank=8)
    assert client.apply(lambda state: (state.weights.flat.device.type, state.weights.flat.dtype)).result() == (
        "cuda",
        torch.float32,
    )
    run = client._run
    assert run.model.dtype == torch.bfloat16


@pytest.mark.parametrize("architecture", CONFIGS)
def test_float32_gives_the_numbers_of_the_cpu(architecture, new, datum, adam, tmp_path):
    folder = str(write_model(architecture, tmp_path / "model"))
    data = [datum(i, n) for i, n in enumerate((5, 200, 33, 64))]
    here, there = new("cuda", "float32", folder), new("cpu", "float32", folder)
    for client in (here, there):
        client.forward_backward(data, "cross_entropy")
        client.optim_step(adam(1e-2))  # before this step B is zero, and so is the gradient of A
    for found, expected in zip(train(here, data, adam, 0), train(there, data, adam, 0), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-3)
    for client in (here, there):
        client.forward_backward(data, "cross_entropy").result()
    found, expected = gradient(here), gradient(there)
    assert (found - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize("architecture", CONFIGS)
def test_bf16_is_near_float32_and_learns(architecture, new, datum, adam, tmp_path):
    folder = str(write_model(architecture, tmp_path / "model"))
    data = [datum(i, n) for i, n in enumerate((5, 200, 33, 64))]
    narrow, wide = new("cuda", "bfloat16", folder), new("cuda", "float32", folder)
    errors = [np.abs(a - b).mean() for a, b in zip(*(train(c, data, adam, 0) for c in (narrow, wide)), strict=True)]
    assert max(errors) < 0.1
    before = float(np.concatenate(train(narrow, data, adam, 0)).mean())
    assert float(np.concatenate(train(narrow, data, adam, 10)).mean()) > before + 0.05


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_equal_runs_have_equal_bits(architecture, dtype, new, datum, adam, tmp_path):
    folder = str(write_model(architecture, tmp_path / "model"))
    data = [datum(i, n) for i, n in enumerate((255, 5, 200, 33, 64, 250, 240))]
    runs = []
    for _ in range(2):
        client = new("cuda", dtype, folder)
        train(client, data, adam)
        runs.append(weights(client))
    assert torch.equal(*runs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_equal_runs_on_long_sequences_have_equal_bits(dtype, new, datum, adam):
    data = [datum(i, n) for i, n in enumerate((3000, 17, 1200, 2047))]
    runs = []
    for _ in range(3):
        client = new("cuda", dtype, skip_zero_weight=True)
        train(client, data, adam)
        runs.append(weights(client))
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_a_resumed_run_ends_with_the_bits_of_one_that_went_on(new, datum, adam):
    data = [datum(i, n) for i, n in enumerate((300, 17, 120))]
    client = new()
    train(client, data, adam, 2)
    path = client.save_state("middle").result().path
    train(client, data, adam, 3)
    resumed = new()
    resumed.load_state_with_optimizer(path).result()
    train(resumed, data, adam, 3)
    assert torch.equal(weights(resumed), weights(client))


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("bfloat16", 0.05)])
def test_a_datum_does_not_see_its_neighbours(dtype, tolerance, new, datum):
    data = [datum(i, n) for i, n in enumerate((40, 500, 7, 129))]
    client = new("cuda", dtype)
    together = logprobs(client.forward(data, "cross_entropy").result())
    for one, expected in zip(data, together, strict=True):
        (alone,) = logprobs(client.forward([one], "cross_entropy").result())
        np.testing.assert_allclose(alone, expected, atol=tolerance)


@pytest.mark.parametrize("parts", [2, 4])
def test_splitting_a_batch_leaves_the_gradient(parts, new, datum, adam):
    data = [datum(i, 3 + 7 * i % 40) for i in range(8)]
    client = new("cuda", "float32")
    train(client, data, adam, 1)
    gradients = []
    for size in (8, 8 // parts):
        for start in range(0, 8, size):
            client.forward_backward(data[start : start + size], "cross_entropy")
        gradients.append(gradient(client))
        client.apply(lambda state: state.clear_gradient()).result()
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[0].norm()


def test_leaving_out_idle_positions_leaves_the_gradient(new, datum, adam):
    data = [datum(0, 140, [0.0] * 90 + [1.0] * 10 + [0.0] * 40), datum(1, 24, [0.0] * 14 + [1.0] * 10)]
    gradients = []
    for skip in (False, True):
        client = new("cuda", "float32", skip_zero_weight=skip)
        train(client, data, adam, 1)
        client.forward_backward(data, "cross_entropy").result()
        gradients.append(gradient(client))
    assert (gradients[0] - gradients[1]).norm() <= 1e-3 * gradients[0].norm()


def test_recomputed_activations_leave_the_result(new, datum, adam):
    data = [datum(i, n) for i, n in enumerate((300, 17, 120))]
    runs = []
    for recompute in (False, True):
        client = new("cuda", "bfloat16", gradient_checkpointing=recompute)
        train(client, data, adam)
        runs.append(weights(client))
    assert torch.equal(*runs)


@pytest.mark.parametrize("loss_fn", ["importance_sampling", "ppo", "cispo", "dro", "gspo"])
def test_policy_losses_give_the_numbers_of_the_cpu(loss_fn, new, tokens):
    data = []
    for i, n in enumerate((9, 30, 4)):
        q = np.random.default_rng(i).normal(-5.5, 0.3, n)
        data.append(policy_datum(tokens, i, n, q, loss_fn))
    here, there = new("cuda", "float32"), new("cpu", "float32")
    outputs = [client.forward_backward(data, loss_fn).result() for client in (here, there)]
    assert outputs[0].metrics == pytest.approx(outputs[1].metrics, rel=1e-3)
    found, expected = gradient(here), gradient(there)
    assert (found - expected).norm() <= 1e-3 * expected.norm()


def test_a_custom_loss_runs(new, datum):
    def loss(data, found):
        total = sum((lp**2).sum() for lp in found)
        return total, {"total": float(total.detach())}

    client = new()
    output = client.forward_backward_custom([datum(0), datum(1)], loss).result()
    assert output.metrics["total"] > 0
    assert gradient(client).abs().max() > 0


def test_every_weight_can_be_trained(new, datum, adam):
    data = [datum(0, 30)]
    here, there = (new(device, "float32", rank=0) for device in ("cuda", "cpu"))
    for found, expected in zip(train(here, data, adam), train(there, data, adam), strict=True):
        np.testing.assert_allclose(found, expected, atol=5e-3)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-3), ("bfloat16", 0.2)])
def test_the_sampler_repeats_under_a_seed_and_reports_the_trainers_logprobs(dtype, tolerance, new, datum, adam, tokens):
    client = new("cuda", dtype)
    train(client, [datum(0, 30)], adam)
    sampler = client.save_weights_and_get_sampling_client()
    prompt = tinker.ModelInput.from_ints(tokens(0, 12))
    params = tinker.SamplingParams(max_tokens=16, seed=3, temperature=0.8, top_p=0.95, top_k=50, stop=[])
    one, again = (sampler.sample(prompt, 4, params).result().sequences for _ in range(2))
    assert [s.tokens for s in one] == [s.tokens for s in again]
    for sequence in one:
        whole = tokens(0, 12) + sequence.tokens
        scored = sampler.compute_logprobs(tinker.ModelInput.from_ints(whole)).result()[-16:]
        np.testing.assert_allclose(sequence.logprobs, scored, atol=tolerance)


def test_the_exported_adapter_gives_its_numbers_in_peft(new, datum, adam, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tinkerloop.local.runtime.checkpoint_store import CheckpointStore

    folder = write_model("qwen3", tmp_path / "base")
    client = new("cuda", "float32", str(folder))
    data = [datum(0, 20)]
    (trained,) = train(client, data, adam)
    path = client.save_weights_for_sampler("a").result().path
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(CheckpointStore(tmp_path / "runs").folder(path))).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([data[0].model_input.to_ints()])).logits[0]
    targets = data[0].loss_fn_inputs["target_tokens"].to_torch()
    np.testing.assert_allclose(logits.log_softmax(-1).gather(1, targets[:, None])[:, 0], trained, atol=1e-3)


def test_images_give_the_numbers_of_the_cpu(new, tokens):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    text = [tinker.EncodedTextChunk(tokens=tokens(i, 6)) for i in range(2)]
    model_input = tinker.ModelInput(chunks=[text[0], image_chunk(pixels, model="tiny-vl"), text[1]])
    n = model_input.length
    datum = tinker.Datum(
        model_input=model_input,
        loss_fn_inputs={"target_tokens": [7] * n, "weights": [0.0] * (n - 4) + [1.0] * 4},
    )
    found, expected = (
        logprobs(new(device, "float32", "tiny-vl").forward([datum], "cross_entropy").result())[0]
        for device in ("cuda", "cpu")
    )
    np.testing.assert_allclose(found, expected, atol=1e-3)
