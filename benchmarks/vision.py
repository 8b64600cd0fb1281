"""Conversations with images rendered per CPU second: our `qwen3_vl_instruct` and the Cookbook's, on the same images.

    python benchmarks/vision.py --peers FOLDER [--model FOLDER_OR_NAME] [--conversations 24] [--rounds 5]

`--peers` is a folder into which `pip install --no-deps --target FOLDER tinker-cookbook` has installed the Cookbook.
Without it, only our figures are printed. `--model` is a tokenizer with Qwen's control tokens (such as <|im_end|>), by
default the built-in tokenizer. The Cookbook counts tokens with transformers' image processor in its PIL variant, which
needs no torchvision. Text ids and token counts are compared before anything is timed. Compare ratios, not absolute
figures.

The Cookbook decodes every image and encodes it again as JPEG of quality 75. Our renderer sends an image file unchanged.
It encodes pixels without a file as PNG, which is lossless, or as JPEG on request. Each row of the table therefore also
gives the size of the images that are sent. In the last row, both renderers do the same work. In the row before it, only
our renderer encodes without loss.
"""

from __future__ import annotations

import argparse
import base64
import io
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tinkerloop.images import image_chunk
from tinkerloop.renderers import get_renderer
from tinkerloop.tokenizers import get_tokenizer

MODEL = "Qwen/Qwen3-VL-235B-A22B-Instruct"
Messages = list[dict[str, Any]]


def photo(seed: int) -> bytes:
    """Return a JPEG file of 640 x 480 pixels with smooth areas and some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC)) + rng.normal(0, 6, (480, 640, 3))
    return saved(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), "JPEG", quality=90)


def screenshot(seed: int) -> bytes:
    """Return a PNG file of 800 x 600 pixels that is full of text."""
    rng = random.Random(seed)
    image = Image.new("RGB", (800, 600), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for row in range(36):
        line = " ".join("".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 9))) for _ in range(16))
        pen.text((8, 16 * row + 8), line, fill="black", font=font)
    return saved(image, "PNG")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def uri(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def opened(data: bytes) -> Image.Image:
    """Return the image undecoded, like `Image.open(path)`."""
    return Image.open(io.BytesIO(data))


def decoded(data: bytes) -> Image.Image:
    """Return the decoded image: pixels without a file, as after any change to an image."""
    return opened(data).copy()


def as_jpeg(messages: Messages) -> Messages:
    """Encode the images of the messages as JPEG of quality 75, like the Cookbook."""
    contents = [m["content"] if isinstance(m["content"], list) else [] for m in messages]
    for part in (part for content in contents for part in content if part["type"] == "image"):
        part["image"] = image_chunk(part["image"], model=MODEL, jpeg_quality=75)
    return messages


def chat(seed: int, source: Callable[[bytes], Any], files: list[bytes]) -> Messages:
    """Return a conversation of two turns with two images."""
    first, second = (source(data) for data in files)
    words = random.Random(seed).choices(
        ["the", "picture", "shows", "some", "more", "of", "that", "colour", "here"], k=40
    )
    return [
        {"role": "user", "content": [{"type": "image", "image": first}, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": " ".join(words)},
        {"role": "user", "content": [{"type": "text", "text": "And this?"}, {"type": "image", "image": second}]},
        {"role": "assistant", "content": " ".join(reversed(words))},
    ]


def cookbook(folder: str | None, tokenizer: Any) -> Any:
    """Return the Cookbook's renderer with Qwen3-VL's image processor, or None if it is not installed."""
    if folder:
        sys.path.append(folder)
    try:
        from tinker_cookbook.renderers import get_renderer as their_renderer
    except ImportError as error:
        print(f"(the Cookbook is absent: {error}; see --peers)")
        return None
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    size = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
    return their_renderer("qwen3_vl_instruct", tokenizer, Qwen2VLImageProcessorPil(patch_size=16, size=size))


def check_same(ours: Any, theirs: Any, chats: list[Messages]) -> None:
    same = 0
    for messages in chats:
        first, second = (flat(next(iter(renderer.build_supervised_example(messages)))) for renderer in (ours, theirs))
        same += first == second
    print(f"text ids and image tokens equal in {same} of {len(chats)} conversations")


def flat(model_input: Any) -> list[Any]:
    """Return the token ids, with ("image", number of tokens) for each image. The division into chunks is ignored."""
    ids: list[Any] = []
    for chunk in model_input.chunks:
        ids += chunk.tokens if hasattr(chunk, "tokens") else [("image", chunk.expected_tokens)]
    return ids


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--peers", help="The folder in which tinker-cookbook is installed.")
    arguments.add_argument(
        "--model", default="tiny", help="The name or the folder of a tokenizer with Qwen's control tokens."
    )
    arguments.add_argument("--conversations", type=int, default=24, help="The number of conversations.")
    arguments.add_argument("--rounds", type=int, default=5, help="The number of timed rounds.")
    given = arguments.parse_args()

    tokenizer = get_tokenizer(given.model)
    ours = get_renderer("qwen3_vl_instruct", tokenizer, model_name=MODEL)
    theirs = cookbook(given.peers, tokenizer)
    files = [[photo(2 * i), screenshot(2 * i + 1)] for i in range(given.conversations)]
    if theirs is not None:
        check_same(ours, theirs, [chat(i, uri, pair) for i, pair in enumerate(files)])

    def render(messages: Messages) -> tuple[Any, Any]:
        return tuple(ours.build_supervised_example(messages))

    def render_jpeg(messages: Messages) -> tuple[Any, Any]:
        return render(as_jpeg(messages))

    work = {
        "data URIs": (uri, render),
        "PIL images as opened": (opened, render),
        "PIL images, decoded": (decoded, render),
        "the same, ours with jpeg_quality=75": (decoded, render_jpeg),
    }
    print(f"\n| {'images as':36}| ours, conv / CPU s | kB | Cookbook | kB | ratio |\n|{'-' * 37}|{'---:|' * 5}")
    for name, (source, our_render) in work.items():
        renderers = {"ours": our_render} | ({} if theirs is None else {"theirs": theirs.build_supervised_example})
        seconds: dict[str, list[float]] = {who: [] for who in renderers}
        sent: dict[str, float] = {}
        for i in range(given.rounds):
            for who, build in random.Random(i).sample(sorted(renderers.items()), len(renderers)):
                chats = [chat(j, source, pair) for j, pair in enumerate(files)]
                start = time.process_time()
                examples = [build(messages) for messages in chats]
                seconds[who].append(time.process_time() - start)
                sent[who] = sum(size(model_input) for model_input, _ in examples) / len(examples) / 1000
        rate = {who: len(files) / statistics.median(times) for who, times in seconds.items()}
        cells = [f"{rate['ours']:.0f}", f"{sent['ours']:.0f}", "-", "-", "-"]
        if "theirs" in rate:
            cells[2:] = f"{rate['theirs']:.0f}", f"{sent['theirs']:.0f}", f"{rate['ours'] / rate['theirs']:.2f}"
        print(f"| {name:36}| {' | '.join(cells)} |")


def size(model_input: Any) -> int:
    """Return the total size of the image files of a model input, in bytes."""
    return sum(len(chunk.data) for chunk in model_input.chunks if hasattr(chunk, "data"))


if __name__ == "__main__":
    main()
