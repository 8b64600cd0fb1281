"""Compare the embedded engine's results for images with those of the same transformers model, run directly."""

from __future__ import annotations

import inspect
import io
import json
import random
import shutil
import threading

import numpy as np
import pytest
import tinker
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from tinkerloop.datum import make_datum
from tinkerloop.images import image_chunk
from tinkerloop.images import processors as known
from tinkerloop.local import ServiceClient
from tinkerloop.local.nn.model_loading import load_model
from tinkerloop.local.nn.tiny_vision_model import tiny_vl_config, tiny_vl_model
from tinkerloop.local.nn.vision import Vision, image_tensors, patchify, vision_of
from tinkerloop.tokenizers.tiny_tokenizer import tiny_tokenizer

START, PAD = 259, 261  # <|vision_start|> and <|image_pad|>
SHAPES = {"square": (64, 64), "wide": (160, 64), "tall": (48, 130), "large": (200, 170)}


def image(name: str, seed: int = 0) -> tinker.types.ImageChunk:
    width, height = SHAPES[name]
    pixels = np.random.default_rng([seed, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image_chunk(pixels, model="tiny-vl")


def their_processor(**options):
    """Return the image processor of transformers that needs only PIL. Its name is that of transformers 5, or of 4."""
    from transformers.models import qwen2_vl

    if hasattr(qwen2_vl, "Qwen2VLImageProcessorPil"):
        return qwen2_vl.Qwen2VLImageProcessorPil(**options)
    size = options.pop("size")
    return qwen2_vl.Qwen2VLImageProcessor(min_pixels=size["shortest_edge"], max_pixels=size["longest_edge"], **options)


def words(seed: int, length: int) -> tinker.EncodedTextChunk:
    return tinker.EncodedTextChunk(tokens=random.Random(f"words/{seed}").choices(range(256), k=length))


def text_before_image(seed: int, length: int) -> tinker.EncodedTextChunk:
    """Return random words and the token by which transformers 4 finds images."""
    return tinker.EncodedTextChunk(tokens=[*words(seed, length).tokens, START])


LAYOUTS = {
    "single": [text_before_image(1, 4), image("square"), words(2, 5)],
    "first": [text_before_image(0, 0), image("wide"), words(3, 6)],
    "several": [text_before_image(4, 3), image("square", 1), text_before_image(5, 1), image("tall"), words(6, 4)],
    "adjacent": [words(7, 2), image("square", 2), image("wide", 3), words(8, 5)],
    "interleaved": [
        text_before_image(9, 2),
        image("large"),
        text_before_image(10, 7),
        image("tall", 1),
        text_before_image(11, 2),
        image("square"),
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
    """Return the model inputs that transformers' image processor computes for the images of the chunks."""
    images = [c for c in chunks if not isinstance(c, tinker.EncodedTextChunk)]
    if not images:
        return {}
    processor = their_processor(
        patch_size=16, size={"shortest_edge": 4096, "longest_edge": 262144}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    found = processor.preprocess([Image.open(io.BytesIO(c.data)) for c in images], return_tensors="pt")
    return {"pixel_values": found["pixel_values"], "image_grid_thw": found["image_grid_thw"]}


def types_of(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the argument by which transformers 5 finds images. transformers 4 finds them by the token before them."""
    takes_types = "mm_token_type_ids" in inspect.signature(Qwen3VLModel.forward).parameters
    return {"mm_token_type_ids": (ids == PAD).int()} if takes_types else {}


def logprobs_of(model, ids: torch.Tensor, images: dict[str, torch.Tensor], spatial: bool = True) -> torch.Tensor:
    """Return log p (N - 1,) of every token given the tokens before it, by the model's own forward pass.

    Without the mask, transformers 4.57 takes the repeated positions of an image for the start of another sequence.
    """
    extra = images | (types_of(ids) if images and spatial else {})
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **extra).logits[0, :-1]
    return logits.float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]


@torch.no_grad()
def direct(model, chunks) -> np.ndarray:
    """Like `logprobs_of`, with the images as transformers' image processor reads them."""
    return logprobs_of(model, torch.tensor([flat(chunks)]), processed(chunks)).numpy()


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
    theirs = their_processor(
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


@pytest.mark.parametrize("size", [(28, 28), (50, 41), (20, 100)])
def test_patches_for_kimi_are_cut_row_by_row_from_the_picture_padded_with_black(size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    width, height = known.KIMI_K25.padded(*size)
    padded = np.zeros((height, width, 3))
    padded[: size[1], : size[0]] = np.asarray(image) / 255
    found = patchify(image, known.KIMI_K25)
    corners = [(y, x) for y in range(0, height, 14) for x in range(0, width, 14)]
    assert known.KIMI_K25.grid(*size) == (1, height // 14, width // 14)
    for patch, (y, x) in zip(found, corners, strict=True):
        np.testing.assert_allclose(patch, (padded[y : y + 14, x : x + 14].transpose(2, 0, 1) - 0.5) / 0.5, atol=1e-6)


@pytest.mark.parametrize("layout", ["single", "first", "several", "interleaved"])
def test_positions_are_those_the_model_computes(reference, layout):
    chunks = LAYOUTS[layout]
    vision = Vision(known.TINY_VL, PAD, frozenset({PAD}))
    tokens = np.array(flat(chunks))
    images = [vision.read(c) for c in chunks if not isinstance(c, tinker.EncodedTextChunk)]
    starts = [
        sum(c.length for c in chunks[:i]) for i, c in enumerate(chunks) if not isinstance(c, tinker.EncodedTextChunk)
    ]
    ids = torch.from_numpy(tokens)[None]
    expected, delta = reference.model.get_rope_index(
        ids, image_grid_thw=torch.tensor([p.grid for p in images]), **types_of(ids)
    )
    found = vision.positions(starts, images, len(tokens))
    assert found is not None
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
        if name != "adjacent":  # for which transformers mistakes two images for one
            np.testing.assert_allclose(found[text], direct(reference, LAYOUTS[name])[text], atol=1e-4)


def test_the_picture_matters(shared):
    client = shared.create_lora_training_client("tiny-vl", rank=4)
    data = [datum_of([words(1, 4), image("square", seed), words(2, 5)]) for seed in (0, 1)]
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
    """Greedy tokens of a batch of prompts, and their log-probabilities, equal those of full forward passes."""
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
    """With rank 0, the gradient of every weight, also in the vision tower, equals that of a plain backward pass."""
    client = shared.create_lora_training_client("tiny-vl", rank=0)
    client.forward_backward(DATA, "cross_entropy").result()
    layout = client.apply(lambda state: state.weights.layout.views(state.gradient.clone())).result()
    model = tiny_vl_model()
    total = torch.zeros(())
    for name in ("single", "several", "text"):
        chosen = logprobs_of(model, torch.tensor([flat(LAYOUTS[name])]), processed(LAYOUTS[name]))
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
        # a checkpoint has the same tensors, and training can continue from it
        path = client.save_state("x").result().path
        again = service.create_training_client_from_state_with_optimizer(path)
        assert again.apply(lambda state: list(state.weights.named)).result() == names
        service.close("success")


def test_packed_batches_do_not_change_the_result(tmp_path):
    found = []
    for budget in (16, 4096):
        service = ServiceClient(root=tmp_path / str(budget), device="cpu", token_budget=budget)
        client = service.create_lora_training_client("tiny-vl", rank=4)
        client.forward_backward(DATA, "cross_entropy").result()
        found.append(client.apply(lambda state: state.gradient.clone()).result())
        service.close("success")
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("error:Found missing adapter keys")  # PEFT must adapt exactly our layers
@pytest.mark.parametrize("train_vision", [False, True])
def test_the_adapter_loads_in_peft_with_the_same_logprobs(tmp_path, train_vision):
    from peft import PeftModel

    service = ServiceClient(root=tmp_path, device="cpu", train_vision=train_vision)
    client = service.create_lora_training_client("tiny-vl", rank=4)
    nudge(client, DATA)
    client.save_weights_for_sampler("adapter").result()
    folder = next(tmp_path.rglob("adapter/adapter_model.safetensors")).parent
    model = PeftModel.from_pretrained(tiny_vl_model(), str(folder)).eval()
    chunks = LAYOUTS["several"]
    output = client.forward([datum_of(chunks)], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_numpy()
    text = is_text(chunks)[1:]
    np.testing.assert_allclose(output[text], direct(model, chunks)[text], atol=1e-4)
    service.close("success")


# ---- other models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write a Qwen3-VL model folder, with other sizes than the built-in model."""
    where = tmp_path_factory.mktemp("models") / "qwen3-vl"
    config = tiny_vl_config({"num_hidden_layers": 3}, {"depth": 3, "deepstack_visual_indexes": [0, 2]})
    tiny_vl_model(1, config).save_pretrained(where)
    tiny_tokenizer().save_pretrained(where)
    their_processor(
        patch_size=16, size={"shortest_edge": 4096, "longest_edge": 262144}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(where)
    return where


def test_a_folder_without_an_image_processor_takes_text_only_and_the_log_says_so(folder, tmp_path, caplog):
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    assert load_model(str(bare), torch.device("cpu"), torch.float32).vision is None
    assert "has a vision tower, but the engine accepts only text for it: " in caplog.text


def test_a_model_from_a_folder(shared, folder):
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
# Under the name rope_scaling, transformers 4 and 5 both read the rotary parameters.
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
SMALL = {"rope_scaling": {**ROPE, "mrope_section": [2, 1, 1]}}
LARGE = {"rope_scaling": {**ROPE, "mrope_section": [4, 2, 2]}, "head_dim": 16}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
OUT = {"intermediate_size": 64, "out_hidden_size": 32}
ARCHITECTURES = {
    "qwen2_vl": (14, SMALL, {"embed_dim": 32, "mlp_ratio": 2, "patch_size": 14}),
    "qwen2_5_vl": (14, SMALL, {**OUT, "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}),
    "qwen3_vl_moe": (
        16,
        {**LARGE, **MOE},
        {**OUT, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
    ),
    "qwen3_5": (16, {**LARGE, **LINEAR}, {**OUT, "num_position_embeddings": 64}),
    "qwen3_5_moe": (16, {**LARGE, **LINEAR, **MOE}, {**OUT, "num_position_embeddings": 64}),
    "kimi_k25": (
        14,
        {**MOE, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "q_lora_rank": 16}
        | {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4}
        | {"first_k_dense_replace": 1},
        {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
        | {"pos_emb_height": 8, "pos_emb_width": 8},
    ),
}


def write_model(architecture: str, where) -> str:
    if architecture not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {architecture}")
    patch, text, tower = ARCHITECTURES[architecture]
    kimi = {"projection_hidden_size": 32, "tie_word_embeddings": False} if architecture == "kimi_k25" else {}
    config = AutoConfig.for_model(
        architecture,
        text_config=TEXT | text,
        vision_config=tower if kimi else TOWER | tower,
        image_token_id=PAD,
        video_token_id=290,
        vision_start_token_id=START,
        vision_end_token_id=260,
        **kimi,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.2)
            model.get_output_embeddings().weight[[PAD, 290]] = 0  # so that these are never sampled
    model.save_pretrained(where)
    tiny_tokenizer().save_pretrained(where)
    size = {"shortest_edge": 4096, "longest_edge": 262144}
    kind = {"media_proc_cfg": {"patch_size": 14}} if kimi else {"image_processor_type": "Qwen2VLImageProcessor"}
    (where / "preprocessor_config.json").write_text(json.dumps(kind | {"patch_size": patch, "size": size}))
    return str(where)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def other(request, tmp_path_factory):
    return write_model(request.param, tmp_path_factory.mktemp(request.param))


MIXED = [("text", 6), ("images", (70, 100), (40, 60)), ("text", 3), ("images", (90, 30))]
"""Sequences of one request: text of a length, or images of given sizes."""


@pytest.fixture
def mixed(other):
    """Return the chunks of the MIXED sequences: words, then for each size an image and words."""
    sequences = []
    for seed, (kind, *rest) in enumerate(MIXED):
        chunks: list = [words(seed, 3 if kind == "images" else rest[0])]
        for i, (height, width) in enumerate(rest if kind == "images" else []):
            pixels = np.random.default_rng([seed, i]).integers(0, 256, (height, width, 3), dtype=np.uint8)
            chunks += [text_before_image(0, 0), image_chunk(pixels, model=other), words(10 * seed + i, 4)]
        sequences.append(chunks)
    return sequences


def own_logprobs(model, vision: Vision, chunks) -> torch.Tensor:
    """Like `direct`, but with autograd, and for any of ARCHITECTURES."""
    images = [vision.read(c) for c in chunks if not isinstance(c, tinker.EncodedTextChunk)]
    extra = image_tensors(images, torch.device("cpu"))
    return logprobs_of(model, torch.tensor([flat(chunks)]), extra, vision.spatial)


def test_other_architectures_give_their_own_numbers_and_gradients(shared, other, mixed):
    """A request of sequences with and without images gives the same as the model's forward passes one by one."""
    client = shared.create_lora_training_client(other, rank=0)
    outputs = client.forward_backward([datum_of(chunks) for chunks in mixed], "cross_entropy").result()
    found = client.apply(lambda state: state.weights.layout.views(state.gradient.clone())).result()
    options = {"experts_implementation": "eager"} if hasattr(PreTrainedModel, "set_experts_implementation") else {}
    model = AutoModelForImageTextToText.from_pretrained(other, **options).eval()
    vision = vision_of(other, model)
    assert vision is not None
    for chunks, output in zip(mixed, outputs.loss_fn_outputs, strict=True):
        own, text = own_logprobs(model, vision, chunks), is_text(chunks)[1:]
        np.testing.assert_allclose(output["logprobs"].to_numpy()[text], own.detach().numpy()[text], atol=1e-4)
        (-own[torch.from_numpy(text)].sum()).backward()
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(found[name].float() / scale, expected / scale, atol=1e-3, rtol=1e-3, msg=name)


def test_other_architectures_sample_what_they_score(shared, other, mixed):
    """Sampling a batch of prompts of different lengths with a cache gives the log-probabilities of training."""
    sampler = shared.create_sampling_client(base_model=other)
    params = tinker.SamplingParams(max_tokens=4, temperature=0, stop=[])
    waiting = [sampler.sample(tinker.ModelInput(chunks=chunks), 1, params) for chunks in mixed]
    for chunks, future in zip(mixed, waiting, strict=True):
        sequence = future.result().sequences[0]
        whole = tinker.ModelInput(chunks=[*chunks, tinker.EncodedTextChunk(tokens=sequence.tokens)])
        np.testing.assert_allclose(sequence.logprobs, sampler.compute_logprobs(whole).result()[-4:], atol=1e-4)


def test_other_architectures_learn(shared, other, mixed):
    client = shared.create_lora_training_client(other, rank=4)
    data = [datum_of(chunks) for chunks in mixed]
    before = client.forward(data, "cross_entropy").result().metrics["loss:sum"]
    assert nudge(client, data) < before
    names = client.apply(lambda state: list(state.weights.named)).result()
    assert not [name for name in names if "visual" in name or "vision_tower" in name or "projector" in name]


@pytest.mark.parametrize("architecture, alone", [("qwen3_5", True), ("qwen3_vl_moe", False), ("kimi_k25", False)])
def test_sequences_that_cannot_be_packed_run_alone_and_the_log_says_so(tmp_path, caplog, architecture, alone):
    model = load_model(write_model(architecture, tmp_path), torch.device("cpu"), torch.float32)
    assert model.packs is not alone
    assert ("cannot be packed" in caplog.text) is alone


def test_an_architecture_that_gives_wrong_numbers_either_way_is_refused_by_name(tmp_path, monkeypatch):
    """A model that shifts the positions it receives gives wrong results only in the engine's forward passes."""
    modeling = pytest.importorskip("transformers.models.qwen3_5.modeling_qwen3_5")
    where = write_model("qwen3_5", tmp_path)
    forward = modeling.Qwen3_5TextModel.forward

    def moved(self, *args, position_ids=None, **kwargs):
        return forward(self, *args, position_ids=None if position_ids is None else 3 * position_ids, **kwargs)

    monkeypatch.setattr(modeling.Qwen3_5TextModel, "forward", moved)
    with pytest.raises(NotImplementedError, match=r"run wrongly.*Qwen3_5ForConditionalGeneration.*one by one"):
        load_model(where, torch.device("cpu"), torch.float32)


# ---- errors


def refused(future) -> str:
    with pytest.raises((tinker.RequestFailedError, NotImplementedError)) as caught:
        future.result()
    return str(caught.value)


def test_bad_images_are_refused_by_datum(shared):
    client = shared.create_lora_training_client("tiny-vl", rank=4)
    good = image("square")
    wrong = good.model_copy(update={"expected_tokens": 9})
    problem = refused(client.forward([DATA[0], datum_of([words(1, 2), wrong, words(2, 3)])], "cross_entropy"))
    assert "datum 1" in problem
    assert "expected 4, got 9" in problem
    broken = good.model_copy(update={"data": b"nothing"})
    assert "not an image" in refused(client.forward([datum_of([words(1, 2), broken, words(2, 3)])], "cross_entropy"))
    late = good.model_copy(update={"data": good.data[:-200]})
    assert "truncated" in refused(client.forward([datum_of([words(1, 2), late, words(2, 3)])], "cross_entropy"))
    # the client stays usable
    assert client.forward(DATA, "cross_entropy").result().metrics["loss:sum"] > 0


def test_a_picture_that_cannot_be_decoded_fails_its_own_call_alone(shared, sampler):
    good = tinker.ModelInput(chunks=[words(1, 2), image("square"), words(2, 3)])
    late = good.chunks[1].model_copy(update={"data": good.chunks[1].data[:-200]})
    bad = tinker.ModelInput(chunks=[words(1, 2), late, words(2, 3)])
    params, together = tinker.SamplingParams(max_tokens=2), threading.Event()
    shared.create_lora_training_client("tiny-vl", rank=4).apply(lambda _: together.wait())
    futures = [sampler.sample(good, 1, params), sampler.sample(bad, 1, params), sampler.compute_logprobs(good)]
    together.set()
    assert "truncated" in refused(futures[1])
    assert futures[0].result().sequences[0].tokens
    assert futures[2].result()[0] is None


def test_text_cannot_stand_for_an_image(shared, sampler):
    client = shared.create_lora_training_client("tiny-vl", rank=4)
    forged = tinker.ModelInput(chunks=[tinker.EncodedTextChunk(tokens=[1, PAD, 2])])
    assert "pass images as image chunks" in refused(client.forward([make_datum(forged, [0, 0, 1])], "cross_entropy"))
    assert "pass images as image chunks" in refused(sampler.sample(forged, 1, tinker.SamplingParams(max_tokens=1)))


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
