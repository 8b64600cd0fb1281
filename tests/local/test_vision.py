"""Images on the embedded engine, against the same transformers model run directly."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import tinker
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tinkerloop import image_processing_utils as known
from tinkerloop.datum import make_datum
from tinkerloop.images import image_chunk
from tinkerloop.local import ServiceClient
from tinkerloop.local.tiny import tiny_tokenizer
from tinkerloop.local.vision import Vision, patchify
from tinkerloop.local.vision_tiny import tiny_vl_config, tiny_vl_model

PAD = 261  # <|image_pad|>
SHAPES = {"square": (64, 64), "wide": (160, 64), "tall": (48, 130), "large": (200, 170)}


def picture(name: str, seed: int = 0) -> tinker.types.ImageChunk:
    width, height = SHAPES[name]
    pixels = np.random.default_rng([seed, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image_chunk(pixels, model="tiny-vl")


def words(seed: int, length: int) -> tinker.EncodedTextChunk:
    return tinker.EncodedTextChunk(tokens=random.Random(f"words/{seed}").choices(range(256), k=length))


LAYOUTS = {
    "single": [words(1, 4), picture("square"), words(2, 5)],
    "first": [picture("wide"), words(3, 6)],
    "several": [words(4, 3), picture("square", 1), words(5, 1), picture("tall"), words(6, 4)],
    "adjacent": [words(7, 2), picture("square", 2), picture("wide", 3), words(8, 5)],
    "interleaved": [
        words(9, 2),
        picture("large"),
        words(10, 7),
        picture("tall", 1),
        words(11, 2),
        picture("square"),
        words(12, 3),
    ],
    "text": [words(13, 17)],
}


def flat(chunks) -> list[int]:
    return [t for c in chunks for t in (c.tokens if isinstance(c, tinker.EncodedTextChunk) else [PAD] * c.length)]


def is_text(chunks) -> np.ndarray:
    return np.array([token != PAD for token in flat(chunks)])


def datum_of(chunks) -> tinker.Datum:
    return make_datum(tinker.ModelInput(chunks=chunks), is_text(chunks).astype(np.float32))


def processed(chunks) -> dict[str, torch.Tensor]:
    """What transformers' own image processor makes of the pictures."""
    pictures = [c for c in chunks if not isinstance(c, tinker.EncodedTextChunk)]
    if not pictures:
        return {}
    processor = Qwen2VLImageProcessorPil(
        patch_size=16, size={"shortest_edge": 4096, "longest_edge": 262144}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    found = processor.preprocess([Image.open(io.BytesIO(c.data)) for c in pictures], return_tensors="pt")
    return {"pixel_values": found["pixel_values"], "image_grid_thw": found["image_grid_thw"]}


@torch.no_grad()
def direct(model, chunks) -> np.ndarray:
    """log p of every token of one sequence given those before it, (N - 1,), by the model's own forward."""
    ids = torch.tensor([flat(chunks)])
    extra = processed(chunks)
    if extra:
        extra["mm_token_type_ids"] = (ids == PAD).int()
    logits = model(input_ids=ids, use_cache=False, **extra).logits[0].float()
    return logits[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].numpy()


@pytest.fixture(scope="module")
def reference():
    return tiny_vl_model()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    client = ServiceClient(root=tmp_path_factory.mktemp("root"), device="cpu")
    yield client
    client.close("success")


@pytest.fixture(scope="module")
def sampler(shared):
    return shared.create_sampling_client(base_model="tiny-vl")


# ---- pixels and positions


@pytest.mark.parametrize("processor", [known.QWEN3_VL, known.QWEN2_VL, known.TINY_VL])
@pytest.mark.parametrize("size", [(64, 64), (101, 37), (300, 200), (10, 700)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_patches_are_those_of_transformers_to_the_bit(processor, size, mode):
    theirs = Qwen2VLImageProcessorPil(
        patch_size=processor.patch_size,
        size={"shortest_edge": processor.min_pixels, "longest_edge": processor.max_pixels},
        image_mean=list(processor.mean),
        image_std=list(processor.std),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    expected = theirs.preprocess(image.convert("RGB"), return_tensors="np")
    found = patchify(image, processor)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected["pixel_values"])
    assert processor.grid(*size) == tuple(expected["image_grid_thw"][0])


@pytest.mark.parametrize("layout", ["single", "first", "several", "interleaved"])
def test_positions_are_those_the_model_computes(reference, layout):
    chunks = LAYOUTS[layout]
    vision = Vision(known.TINY_VL, PAD, frozenset({PAD}))
    tokens = np.array(flat(chunks))
    pictures = [vision.read(c) for c in chunks if not isinstance(c, tinker.EncodedTextChunk)]
    starts = [
        sum(c.length for c in chunks[:i]) for i, c in enumerate(chunks) if not isinstance(c, tinker.EncodedTextChunk)
    ]
    ids = torch.from_numpy(tokens)[None]
    expected, delta = reference.model.get_rope_index(
        ids, mm_token_type_ids=(ids == PAD).int(), image_grid_thw=torch.tensor([p.grid for p in pictures])
    )
    found = vision.positions(starts, pictures, len(tokens))
    np.testing.assert_array_equal(found, expected[:, 0])
    assert found.max() + 1 - len(tokens) == delta.item()


# ---- log-probabilities


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "adjacent"])
def test_logprobs_equal_a_direct_forward(shared, reference, layout):
    chunks = LAYOUTS[layout]
    client = shared.create_lora_training_client("tiny-vl", rank=4)
    output = client.forward([datum_of(chunks)], "cross_entropy").result().loss_fn_outputs[0]
    expected, text = direct(reference, chunks), is_text(chunks)[1:]
    np.testing.assert_allclose(output["logprobs"].to_numpy()[text], expected[text], atol=1e-4)
    assert not output["logprobs"].to_numpy()[~text].any()
    assert not output["elementwise_loss"].to_numpy()[~text].any()


def test_batched_with_text_each_datum_is_as_if_alone(shared, reference):
    client = shared.create_lora_training_client("tiny-vl", rank=4)
    order = ["text", "several", "single", "text", "interleaved", "adjacent"]
    outputs = client.forward([datum_of(LAYOUTS[name]) for name in order], "cross_entropy").result().loss_fn_outputs
    for name, output in zip(order, outputs, strict=True):
        found, text = output["logprobs"].to_numpy(), is_text(LAYOUTS[name])[1:]
        alone = client.forward([datum_of(LAYOUTS[name])], "cross_entropy").result().loss_fn_outputs[0]
        np.testing.assert_allclose(found, alone["logprobs"].to_numpy(), atol=1e-5)
        if name != "adjacent":  # where transformers itself takes two pictures for one
            np.testing.assert_allclose(found[text], direct(reference, LAYOUTS[name])[text], atol=1e-4)


def test_the_picture_matters(shared):
    client = shared.create_lora_training_client("tiny-vl", rank=4)
    data = [datum_of([words(1, 4), picture("square", seed), words(2, 5)]) for seed in (0, 1)]
    first, second = client.forward(data, "cross_entropy").result().loss_fn_outputs
    assert np.abs(first["logprobs"].to_numpy()[-4:] - second["logprobs"].to_numpy()[-4:]).max() > 1e-2


def test_compute_logprobs_has_none_where_there_is_no_text(sampler, reference):
    chunks = LAYOUTS["several"]
    found = sampler.compute_logprobs(tinker.ModelInput(chunks=chunks)).result()
    assert [value is None for value in found] == [i == 0 or not text for i, text in enumerate(is_text(chunks))]
    text = is_text(chunks)[1:]
    np.testing.assert_allclose(np.array(found[1:], float)[text], direct(reference, chunks)[text], atol=1e-4)


def test_top_prompt_logprobs_have_none_on_pictures(sampler):
    chunks = LAYOUTS["single"]
    params = tinker.SamplingParams(max_tokens=1, seed=0)
    answer = sampler.sample(tinker.ModelInput(chunks=chunks), 1, params, True, topk_prompt_logprobs=2).result()
    for entry, text in list(zip(answer.topk_prompt_logprobs, is_text(chunks), strict=True))[1:]:
        assert (entry is not None and entry[0][1] > -1000) == text


# ---- sampling


def test_sampling_continues_as_the_model_itself_would(sampler, reference):
    """Greedy, several prompts in one batch: tokens and their log-probabilities are those of a fresh full forward."""
    params = tinker.SamplingParams(max_tokens=6, temperature=0, stop=[])
    names = ["several", "text", "single", "first"]
    waiting = [sampler.sample(tinker.ModelInput(chunks=LAYOUTS[name]), 2, params) for name in names]
    for name, future in zip(names, waiting, strict=True):
        first, second = future.result().sequences
        assert first.tokens == second.tokens
        chunks = [*LAYOUTS[name], tinker.EncodedTextChunk(tokens=first.tokens)]
        np.testing.assert_allclose(first.logprobs, direct(reference, chunks)[-6:], atol=1e-4)


# ---- training


def nudge(client, data, steps=3):
    for _ in range(steps):
        client.forward_backward(data, "cross_entropy")
        client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    return client.forward(data, "cross_entropy").result().metrics["loss:sum"]


DATA = [datum_of(LAYOUTS["single"]), datum_of(LAYOUTS["several"]), datum_of(LAYOUTS["text"])]


def test_the_gradient_is_that_of_autograd(shared, reference):
    """Every weight's gradient (rank 0), the vision tower's too, against a plain backward pass."""
    client = shared.create_lora_training_client("tiny-vl", rank=0)
    client.forward_backward(DATA, "cross_entropy").result()
    layout = client.apply(lambda state: state.weights.layout.views(state.gradient.clone())).result()
    model = tiny_vl_model()
    total = torch.zeros(())
    for name in ("single", "several", "text"):
        ids, extra = torch.tensor([flat(LAYOUTS[name])]), processed(LAYOUTS[name])
        if extra:
            extra["mm_token_type_ids"] = (ids == PAD).int()
        logprobs = model(input_ids=ids, use_cache=False, **extra).logits[0, :-1].log_softmax(-1)
        chosen = logprobs.gather(1, ids[0, 1:, None])[:, 0]
        total = total - (chosen * torch.from_numpy(is_text(LAYOUTS[name])[1:])).sum()
    total.backward()
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(layout[name].float(), expected, atol=2e-3, rtol=2e-3, msg=name)


@pytest.mark.parametrize("rank", [0, 8])
def test_training_lowers_the_loss(shared, rank):
    client = shared.create_lora_training_client("tiny-vl", rank=rank)
    before = client.forward(DATA, "cross_entropy").result().metrics["loss:sum"]
    assert nudge(client, DATA) < 0.9 * before


def test_an_adapter_leaves_the_vision_tower_alone_unless_asked(tmp_path):
    for train_vision in (False, True):
        service = ServiceClient(root=tmp_path / str(train_vision), device="cpu", train_vision=train_vision)
        client = service.create_lora_training_client("tiny-vl", rank=4)
        names = client.apply(lambda state: list(state.weights.named)).result()
        assert any("visual" in name for name in names) == train_vision
        nudge(client, DATA, steps=2)
        moved = client.apply(
            lambda state: {name: tensor.abs().max().item() for name, tensor in state.weights.named.items()}
        ).result()
        assert all(value > 0 for value in moved.values())
        # a checkpoint has the same tensors, and continues
        path = client.save_state("x").result().path
        again = service.create_training_client_from_state_with_optimizer(path)
        assert again.apply(lambda state: list(state.weights.named)).result() == names
        service.close("success")


def test_micro_batches_do_not_change_the_result(tmp_path):
    found = []
    for budget in (16, 4096):
        service = ServiceClient(root=tmp_path / str(budget), device="cpu", token_budget=budget)
        client = service.create_lora_training_client("tiny-vl", rank=4)
        client.forward_backward(DATA, "cross_entropy").result()
        found.append(client.apply(lambda state: state.gradient.clone()).result())
        service.close("success")
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


def test_the_adapter_loads_in_peft_with_the_same_logprobs(shared, tmp_path):
    from peft import PeftModel

    client = shared.create_lora_training_client("tiny-vl", rank=4)
    nudge(client, DATA)
    path = client.save_weights_for_sampler("adapter").result().path
    folder = next(shared._engine.store.root.rglob(f"{path.rsplit('/', 1)[-1]}/adapter_model.safetensors")).parent
    model = PeftModel.from_pretrained(tiny_vl_model(), str(folder)).eval()
    chunks = LAYOUTS["several"]
    output = client.forward([datum_of(chunks)], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_numpy()
    text = is_text(chunks)[1:]
    np.testing.assert_allclose(output[text], direct(model, chunks)[text], atol=1e-4)


# ---- other models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Qwen3-VL folder as one finds it on a disk, with other sizes than the built-in's."""
    where = tmp_path_factory.mktemp("models") / "qwen3-vl"
    config = tiny_vl_config({"num_hidden_layers": 3}, {"depth": 3, "deepstack_visual_indexes": [0, 2]})
    tiny_vl_model(1, config).save_pretrained(where)
    tiny_tokenizer().save_pretrained(where)
    Qwen2VLImageProcessorPil(
        patch_size=16, size={"shortest_edge": 4096, "longest_edge": 262144}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(where)
    return where


def test_a_model_from_a_folder(shared, folder):
    from transformers import AutoModelForImageTextToText

    chunks = LAYOUTS["interleaved"]
    client = shared.create_lora_training_client(str(folder), rank=4)
    found = client.forward([datum_of(chunks)], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_numpy()
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    text = is_text(chunks)[1:]
    np.testing.assert_allclose(found[text], direct(model, chunks)[text], atol=1e-4)


TEXT = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
TOWER = {"depth": 2, "hidden_size": 32, "num_heads": 4}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
SMALL = {"rope_parameters": {**ROPE, "mrope_section": [2, 1, 1]}}
LARGE = {"rope_parameters": {**ROPE, "mrope_section": [4, 2, 2]}, "head_dim": 16}
OUT = {"intermediate_size": 64, "out_hidden_size": 32}
ARCHITECTURES = {
    "qwen2_vl": (14, SMALL, {"embed_dim": 32, "mlp_ratio": 2, "patch_size": 14}),
    "qwen2_5_vl": (14, SMALL, {**OUT, "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}),
    "qwen3_vl_moe": (
        16,
        {**LARGE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        {**OUT, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
    ),
    "qwen3_5": (
        16,
        {**LARGE, "layer_types": ["linear_attention", "full_attention"]},
        {**OUT, "num_position_embeddings": 64},
    ),
}


def write_model(architecture: str, where) -> str:
    from transformers import AutoConfig, AutoModelForImageTextToText

    patch, text, tower = ARCHITECTURES[architecture]
    config = AutoConfig.for_model(
        architecture,
        text_config=TEXT | text,
        vision_config=TOWER | tower,
        image_token_id=PAD,
        video_token_id=290,
        vision_start_token_id=259,
        vision_end_token_id=260,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.2)
    model.save_pretrained(where)
    tiny_tokenizer().save_pretrained(where)
    size = {"shortest_edge": 4096, "longest_edge": 262144}
    Qwen2VLImageProcessorPil(patch_size=patch, size=size).save_pretrained(where)
    return str(where)


@pytest.mark.parametrize("architecture", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl_moe"])
def test_other_architectures_train_and_sample_the_same_numbers(shared, tmp_path, architecture):
    """At load, an architecture's packed logits are compared with its own; here the cached ones with the packed."""
    where = write_model(architecture, tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    chunks = [words(1, 3), image_chunk(pixels, model=where), words(2, 4)]
    sampler = shared.create_sampling_client(base_model=where)
    params = tinker.SamplingParams(max_tokens=4, temperature=0, stop=[])
    sequence = sampler.sample(tinker.ModelInput(chunks=chunks), 1, params).result().sequences[0]
    whole = tinker.ModelInput(chunks=[*chunks, tinker.EncodedTextChunk(tokens=sequence.tokens)])
    np.testing.assert_allclose(sequence.logprobs, sampler.compute_logprobs(whole).result()[-4:], atol=1e-4)
    client = shared.create_lora_training_client(where, rank=4)
    before = client.forward([datum_of(chunks)], "cross_entropy").result().metrics["loss:sum"]
    assert nudge(client, [datum_of(chunks)]) < before


def test_an_architecture_that_cannot_be_packed_is_refused_by_name(shared, tmp_path):
    where = write_model("qwen3_5", tmp_path)
    with pytest.raises((NotImplementedError, tinker.TinkerError), match="Qwen3_5ForConditionalGeneration"):
        shared.create_lora_training_client(where, rank=4)


# ---- what is refused


def refused(future) -> str:
    with pytest.raises((tinker.RequestFailedError, NotImplementedError)) as caught:
        future.result()
    return str(caught.value)


def test_bad_images_are_refused_by_datum(shared):
    client = shared.create_lora_training_client("tiny-vl", rank=4)
    good = picture("square")
    wrong = good.model_copy(update={"expected_tokens": 9})
    problem = refused(client.forward([DATA[0], datum_of([words(1, 2), wrong, words(2, 3)])], "cross_entropy"))
    assert "datum 1" in problem
    assert "expected 4, got 9" in problem
    broken = good.model_copy(update={"data": b"nothing"})
    assert "not an image" in refused(client.forward([datum_of([words(1, 2), broken, words(2, 3)])], "cross_entropy"))
    late = good.model_copy(update={"data": good.data[:-200]})
    assert "truncated" in refused(client.forward([datum_of([words(1, 2), late, words(2, 3)])], "cross_entropy"))
    # and the client goes on
    assert client.forward(DATA, "cross_entropy").result().metrics["loss:sum"] > 0


def test_text_cannot_stand_for_an_image(shared, sampler):
    client = shared.create_lora_training_client("tiny-vl", rank=4)
    forged = tinker.ModelInput(chunks=[tinker.EncodedTextChunk(tokens=[1, PAD, 2])])
    assert "images are chunks" in refused(client.forward([make_datum(forged, [0, 0, 1])], "cross_entropy"))
    assert "images are chunks" in refused(sampler.sample(forged, 1, tinker.SamplingParams(max_tokens=1)))


def test_a_text_model_refuses_images(shared):
    client = shared.create_lora_training_client("tiny", rank=4)
    assert "ImageChunk" in refused(client.forward([DATA[0]], "cross_entropy"))


def test_policy_losses_cannot_reward_an_image(shared):
    client = shared.create_lora_training_client("tiny-vl", rank=4)
    chunks = LAYOUTS["single"]
    length = len(flat(chunks)) - 1
    inputs = DATA[0].loss_fn_inputs

    def rewarded(advantages):
        data = {"target_tokens": inputs["target_tokens"], "logprobs": [0.0] * length, "advantages": advantages}
        return [tinker.Datum(model_input=DATA[0].model_input, loss_fn_inputs=data)]

    assert "advantages" in refused(client.forward(rewarded([1.0] * length), "importance_sampling"))
    client.forward(rewarded(is_text(chunks)[1:].astype(float).tolist()), "importance_sampling").result()


def test_equal_seeds_make_equal_models():
    first, second = tiny_vl_model(3), tiny_vl_model(3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    state = torch.random.get_rng_state()
    tiny_vl_model(4)
    assert torch.equal(torch.random.get_rng_state(), state)
