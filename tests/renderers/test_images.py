"""Images in conversations are placed as in the official templates, are never trained on, and are never cut."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
import tinker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.renderers.chats import (
    NAMES,
    TEXTS,
    VISION,
    conversations,
    decode,
    everyones_tokenizer,
    nfc,
    official,
    renderer,
    template_of,
)
from tinkerloop.cli.main import main
from tinkerloop.errors import ImageError, RenderError
from tinkerloop.image_processing_utils import get_image_processor
from tinkerloop.images import image_chunk
from tinkerloop.images.processors import KIMI_K25, QWEN3_VL, TINY_VL
from tinkerloop.renderers import TrainOnWhat, get_renderer
from tinkerloop.tokenizers import get_tokenizer

SIZES = [(64, 64), (150, 224), (300, 20), (33, 500)]


def png(size: tuple[int, int], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (size[0] % 256, size[1] % 256, 7)).save(buffer, kind)
    return buffer.getvalue()


FILES = [png(size) for size in SIZES]
IMAGES = st.sampled_from([{"type": "image", "image": data} for data in FILES])
PARTS = st.lists(TEXTS.map(lambda text: {"type": "text", "text": text}) | IMAGES, min_size=1, max_size=4)


def pad_of(name: str) -> str:
    return "<|media_pad|>" if name.startswith("kimi") else "<|image_pad|>"


def processor_of(name: str) -> Any:
    return KIMI_K25 if name.startswith("kimi") else QWEN3_VL


def chunks_of(model_input: tinker.ModelInput) -> list[tinker.types.ImageChunk]:
    return [chunk for chunk in model_input.chunks if isinstance(chunk, tinker.types.ImageChunk)]


def ids_of(model_input: tinker.ModelInput, name: str) -> list[int]:
    """Return all token ids. An image becomes a run of pad tokens, as the model's own processor writes it."""
    pad = everyones_tokenizer().convert_tokens_to_ids(pad_of(name))
    return [
        token
        for chunk in model_input.chunks
        for token in (chunk.tokens if isinstance(chunk, tinker.EncodedTextChunk) else [pad] * chunk.length)
    ]


def images_in(messages: list[dict[str, Any]]) -> list[bytes]:
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    return [part["image"] for part in parts if part["type"] == "image"]


def expanded(text: str, messages: list[dict[str, Any]], name: str) -> str:
    """Return a template's text, in which every image placeholder is repeated as by the model's processor."""
    pad, rule = pad_of(name), processor_of(name)
    pieces = text.split(pad)
    files = images_in(messages)
    assert len(pieces) == len(files) + 1
    counts = [rule.tokens(*Image.open(io.BytesIO(data)).size) for data in files]
    return pieces[0] + "".join(pad * n + piece for n, piece in zip(counts, pieces[1:], strict=True))


@st.composite
def with_images(draw: st.DrawFn, roles: tuple[str, ...] = ("user", "tool"), **options: Any) -> list[dict[str, Any]]:
    """Draw conversations in which at least one message of `roles` has a list of texts and images as its content."""
    messages = draw(conversations(**options))
    free = [message for message in messages if message["role"] in roles]
    for message in free:
        if message is free[-1] or draw(st.booleans()):
            message["content"] = draw(PARTS)
    free[-1]["content"].append(draw(IMAGES))
    return messages


A_CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Describe."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "First "},
            {"type": "image", "image": FILES[0]},
            {"type": "image", "image": FILES[1]},
            {"type": "text", "text": "\nthen."},
        ],
    },
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": [{"type": "image", "image": FILES[2]}]},
    {"role": "assistant", "content": "A line."},
]


# ---- parity

TEMPLATES = {
    "qwen3_vl_instruct": ("qwen3-vl/chat_template.jinja", {}),
    "qwen3_5": ("qwen3.5/chat_template.jinja", {}),
    "qwen3_5_disable_thinking": ("qwen3.5/chat_template.jinja", {"enable_thinking": False}),
    "kimi_k26": ("kimi-k2.6/chat_template.jinja", {}),
    "kimi_k26_disable_thinking": ("kimi-k2.6/chat_template.jinja", {"thinking": False}),
}


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_prompts_are_those_of_the_official_template_with_its_placeholders_expanded(name, data):
    path, options = TEMPLATES[name]
    template = template_of(path)
    messages = data.draw(with_images(tools=name.startswith("qwen3_vl"), reasoning=False))[:-1]
    ours = renderer(name).build_generation_prompt(messages)
    text = expanded(official(template, messages, add_generation_prompt=True, **options), messages, name)
    assert decode(ids_of(ours, name)) == nfc(text)
    assert [chunk.data for chunk in chunks_of(ours)] == images_in(messages)
    assert ids_of(ours, name) == everyones_tokenizer().encode(text, add_special_tokens=False)


def test_qwen3_vl_supervised_examples_are_the_official_template():
    template = template_of(TEMPLATES["qwen3_vl_instruct"][0])
    example = renderer("qwen3_vl_instruct").build_supervised_example(A_CHAT)
    text = expanded(official(template, A_CHAT), A_CHAT, "qwen3_vl_instruct")
    assert decode(ids_of(example.model_input, "qwen3_vl_instruct")) == nfc(text).removesuffix("\n")


# ---- in every format that has images


@pytest.mark.parametrize("name", VISION)
@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_prompt_is_the_beginning_of_its_example_and_the_rest_is_trained(name, data):
    messages = data.draw(with_images(("system", "user", "tool"), reasoning=False))
    ours = renderer(name)
    example = ours.build_supervised_example(messages)
    prompt = ours.build_generation_prompt(messages[:-1])
    n = prompt.length
    assert ids_of(prompt, name) == ids_of(example.model_input, name)[:n]
    assert chunks_of(prompt) == chunks_of(example.model_input)
    assert not example.weights[:n].any()  # nor what the format prefills
    assert (example.weights[n:] == 1).all()
    assert len(example.weights) == example.model_input.length == len(example)


@pytest.mark.parametrize("mode", [mode for mode in TrainOnWhat if mode is not TrainOnWhat.CUSTOMIZED])
@pytest.mark.parametrize("name", VISION)
def test_no_mode_trains_an_image(name, mode):
    example = renderer(name).build_supervised_example(A_CHAT, mode)
    at = 0
    for chunk in example.model_input.chunks:
        if isinstance(chunk, tinker.types.ImageChunk):
            assert not example.weights[at : at + chunk.length].any()
            assert set(example.tokens[at : at + chunk.length]) == {0}
        at += chunk.length
    assert example.weights.any()


@pytest.mark.parametrize("name", VISION)
def test_truncation_keeps_an_image_whole_or_drops_it(name):
    example = renderer(name).build_supervised_example(A_CHAT, "all_tokens")
    whole = example.model_input.chunks
    longest = max(chunk.length for chunk in whole if isinstance(chunk, tinker.types.ImageChunk))
    seen = set()
    for limit in range(longest + 1, len(example) + 1, 3):
        chunks = example.to_datum(max_length=limit).model_input.chunks
        assert sum(chunk.length for chunk in chunks) < limit
        for kept, original in zip(chunks[:-1], whole, strict=False):
            assert kept == original
        images = chunks_of(tinker.ModelInput(chunks=list(chunks)))
        assert images == chunks_of(example.model_input)[: len(images)]
        seen.add(len(images))
    assert seen == {0, 1, 2, 3} or seen == {1, 2, 3}


@pytest.mark.parametrize("name", VISION)
def test_a_prefill_follows_the_images(name):
    ours = renderer(name)
    prompt = ours.build_generation_prompt(A_CHAT[:-1])
    filled = ours.build_generation_prompt(A_CHAT[:-1], prefill="Well, ")
    n = prompt.length
    assert ids_of(filled, name)[:n] == ids_of(prompt, name)
    assert decode(ids_of(filled, name)[n:]) in ("Well, ", "<think>\n\n</think>\n\nWell, ")


@pytest.mark.parametrize("name", VISION)
def test_files_reach_the_model_unchanged_and_counted(name):
    rule = processor_of(name)
    files = [*FILES, png((120, 80), "JPEG")]
    messages = [{"role": "user", "content": [{"type": "image", "image": data} for data in files]}]
    found = chunks_of(renderer(name).build_generation_prompt(messages))
    assert [chunk.data for chunk in found] == files
    assert [chunk.format for chunk in found] == ["png"] * 4 + ["jpeg"]
    assert [chunk.expected_tokens for chunk in found] == [rule.tokens(*size) for size in [*SIZES, (120, 80)]]


@pytest.mark.parametrize("name", VISION)
@pytest.mark.parametrize("role", ["system", "user", "tool"])
def test_every_role_that_is_read_may_hold_images(name, role):
    image = [{"type": "text", "text": "see "}, {"type": "image", "image": FILES[0]}, {"type": "text", "text": " there"}]
    call = {"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": {}}}
    messages = {
        "system": [{"role": "system", "content": image}, {"role": "user", "content": "Hi"}],
        "user": [{"role": "user", "content": image}],
        "tool": [
            {"role": "user", "content": "Look"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": image, "tool_call_id": "functions.f:0"},
        ],
    }[role]
    prompt = renderer(name).build_generation_prompt(messages)
    before, after = decode(ids_of(prompt, name)).split(pad_of(name) * chunks_of(prompt)[0].length)
    assert "see " in before
    assert " there" in after


@pytest.mark.parametrize("name", VISION)
def test_sources_of_every_kind_are_one_image(name, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(FILES[1])
    chunk = image_chunk(FILES[1], processor=processor_of(name))
    parts = [{"type": "image", "image": source} for source in (FILES[1], str(path), path, Image.open(path), chunk)]
    parts.append({"type": "image", "image": np.asarray(Image.open(path))})
    found = chunks_of(renderer(name).build_generation_prompt([{"role": "user", "content": parts}]))
    assert found[:5] == [chunk] * 5
    assert found[5].expected_tokens == chunk.expected_tokens


def test_urls_in_messages_are_not_fetched():
    part = {"type": "image_url", "image_url": {"url": "https://127.0.0.1:9/x.png"}}
    with pytest.raises(ImageError, match="not fetched by default"):
        renderer("qwen3_vl").build_generation_prompt([{"role": "user", "content": [part]}])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in VISION])
def test_text_formats_refuse_images(name):
    messages = [{"role": "user", "content": [{"type": "image", "image": FILES[0]}]}]
    with pytest.raises(RenderError, match=r"image|text alone"):
        renderer(name).build_generation_prompt(messages)


def test_the_model_or_its_processor_decides_the_count():
    messages = [{"role": "user", "content": [{"type": "image", "image": FILES[0]}]}]

    def count(**options: Any) -> int:
        ours = get_renderer("qwen3_vl_instruct", everyones_tokenizer(), **options)
        return chunks_of(ours.build_generation_prompt(messages))[0].length

    assert count() == count(model_name="Qwen/Qwen3-VL-30B-A3B-Instruct") == QWEN3_VL.tokens(64, 64) == 64
    assert count(model_name="tiny-vl") == TINY_VL.tokens(64, 64) == 4
    assert count(image_processor=get_image_processor("tiny-vl"), model_name="Qwen/Qwen3-VL-8B-Instruct") == 4
    with pytest.raises(ImageError, match="no image processor"):
        count(model_name="Qwen/Qwen3-8B")


@pytest.fixture
def file_of_chats(tmp_path):
    def as_uri(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] != "image":
            return part
        return part | {"image": "data:image/png;base64," + base64.b64encode(part["image"]).decode()}

    messages = [
        m | {"content": m["content"] if isinstance(m["content"], str) else [*map(as_uri, m["content"])]} for m in A_CHAT
    ]
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps({"messages": messages}) + "\n")
    return file


@pytest.mark.parametrize("max_length", [None, 90])
def test_inspect_shows_images_with_size_and_tokens(file_of_chats, tmp_path, max_length):
    page = tmp_path / "page.html"
    options = [] if max_length is None else ["--max-length", str(max_length)]
    renderer_options = ["--renderer", "qwen3_vl_instruct", "--model", "tiny-vl"]
    assert main(["inspect", str(file_of_chats), *renderer_options, "--html", str(page), *options]) == 0
    written = page.read_text()
    counts = [TINY_VL.tokens(*size) for size in SIZES[:3]]
    for (width, height), count in zip(SIZES, counts, strict=False):
        assert f"image {width} × {height}, {count} tokens" in written
    sources = [part.split('"')[0] for part in written.split('src="data:image/png;base64,')[1:]]
    thumbnails = [Image.open(io.BytesIO(base64.b64decode(source))) for source in sources]
    assert [max(thumbnail.size) <= 160 for thumbnail in thumbnails] == [True] * 3
    assert thumbnails[0].getpixel((5, 5)) == (64, 64, 7)
    total = len(
        get_renderer("qwen3_vl_instruct", get_tokenizer("tiny-vl"), model_name="tiny-vl").build_supervised_example(
            A_CHAT
        )
    )
    assert f"{total} tokens" in written
    assert ('<figure class="cut"' in written) == (max_length is not None)


def test_an_example_with_images_trains_on_the_embedded_engine(tmp_path):
    pytest.importorskip("torch")
    from tinkerloop.local import ServiceClient

    service = ServiceClient(root=tmp_path, device="cpu")
    client = service.create_lora_training_client("tiny-vl", rank=4)
    ours = get_renderer("qwen3_vl_instruct", client.get_tokenizer(), model_name="tiny-vl")
    datum = ours.build_supervised_example(A_CHAT).to_datum()
    assert client.forward_backward([datum], "cross_entropy").result().metrics["loss:sum"] > 0
    sampler = client.save_weights_and_get_sampling_client()
    params = tinker.SamplingParams(max_tokens=3, stop=ours.get_stop_sequences())
    assert sampler.sample(ours.build_generation_prompt(A_CHAT[:-1]), 1, params).result().sequences[0].tokens
    service.close("success")
