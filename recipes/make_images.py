"""Draw the images of the vision recipes: shapes, digits and bar charts, as PNG and JPEG files with labels.

    python -m recipes.make_images                        # all three, into runs/images
    python -m recipes.make_images folder=images seed=1

    shapes/  labels.csv: file,split,label,caption          e.g. train/0007.jpg,train,star,a small red star
    digits/  labels.csv: file,split,label,caption
    charts/  questions.jsonl: {"file", "split", "turns": [[question, answer], ...]}

The random generator of every image is seeded with the seed, kind, split and number of the image. So training and test
images differ.
"""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import chz
from PIL import Image, ImageDraw, ImageFont

from recipes.command_line import run_from_command_line

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {"red": (205, 40, 40), "green": (40, 150, 60), "blue": (50, 70, 210), "black": (25, 25, 25)}
SIZES = {"small": 0.3, "large": 0.46}
SIDE = 64


@chz.chz
class Config:
    folder: str = chz.field(default="runs/images", doc="Folder to write.")
    train: int = chz.field(default=3000, doc="Training images of each kind.")
    test: int = chz.field(default=200, doc="Test images of each kind.")
    seed: int = chz.field(default=0, doc="Random seed for all images.")


def canvas(rng: random.Random) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Return a pale background image of twice the final size. `save` scales it down, which gives smooth edges."""
    image = Image.new("RGB", (2 * SIDE, 2 * SIDE), tuple(rng.randint(205, 255) for _ in range(3)))
    return image, ImageDraw.Draw(image)


def draw_shape(rng: random.Random, number: int) -> tuple[Image.Image, dict[str, str]]:
    shape, colour, size = SHAPES[number % len(SHAPES)], rng.choice(list(COLOURS)), rng.choice(list(SIZES))
    image, pen = canvas(rng)
    r = SIZES[size] * 2 * SIDE * rng.uniform(0.9, 1.05)
    x, y = (rng.uniform(r, 2 * SIDE - r) for _ in range(2))
    turn, fill = rng.uniform(-0.2, 0.2), tuple(c + rng.randint(-20, 20) for c in COLOURS[colour])

    def corner(angle: float, reach: float = 1.0) -> tuple[float, float]:
        return x + reach * r * math.sin(angle + turn), y - reach * r * math.cos(angle + turn)

    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif shape == "ring":
        pen.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=round(0.3 * r))
    elif shape == "cross":
        for angle in (0.0, math.pi / 2):
            pen.line([corner(angle), corner(angle + math.pi)], fill=fill, width=round(0.4 * r))
    elif shape == "star":
        pen.polygon([corner(k * math.pi / 5, 1.0 if k % 2 == 0 else 0.4) for k in range(10)], fill=fill)
    else:
        n = {"triangle": 3, "square": 4}[shape]
        pen.polygon([corner((k + (n == 4) / 2) * 2 * math.pi / n) for k in range(n)], fill=fill)
    return image, {"label": shape, "caption": f"a {size} {colour} {shape}"}


def draw_digit(rng: random.Random, number: int) -> tuple[Image.Image, dict[str, str]]:
    digit, colour = str(number % 10), rng.choice(list(COLOURS))
    image, pen = canvas(rng)
    font = ImageFont.load_default(rng.randint(80, 110))
    position = (SIDE + rng.uniform(-16, 16), SIDE + rng.uniform(-10, 10))
    pen.text(position, digit, fill=COLOURS[colour], font=font, anchor="mm")
    return image.rotate(rng.uniform(-8, 8), fillcolor=image.getpixel((0, 0))), {  # type: ignore[arg-type]
        "label": digit,
        "caption": f"the digit {digit} in {colour}",
    }


def draw_chart(rng: random.Random, number: int) -> tuple[Image.Image, list[tuple[str, str]]]:
    """Return an image of a bar chart, and questions about it: [(question, answer), ...]."""
    count = 2 + number % 3
    heights = rng.sample([0.2, 0.45, 0.7, 0.95], count)
    colours = rng.sample(list(COLOURS), count)
    image, pen = canvas(rng)
    width = 2 * SIDE / (count + 0.5)
    for i, (height, colour) in enumerate(zip(heights, colours, strict=True)):
        left = (i + 0.4) * width
        pen.rectangle((left, 2 * SIDE * (1 - height), left + 0.7 * width, 2 * SIDE), fill=COLOURS[colour])
    tallest, lowest = heights.index(max(heights)), heights.index(min(heights))
    return image, [
        ("How many bars?", str(count)),
        ("Which is the tallest?", colours[tallest]),
        ("And the lowest?", colours[lowest]),
    ]


def save(image: Image.Image, folder: Path, split: str, number: int) -> str:
    """Save the image, every third one as JPEG and the others as PNG. Return the file's path relative to `folder`."""
    small = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = Path(split) / f"{number:05d}.{'jpg' if number % 3 == 0 else 'png'}"
    (folder / split).mkdir(parents=True, exist_ok=True)
    small.save(folder / file, quality=92)
    return str(file)


def main(config: Config) -> None:
    for kind, draw in (("shapes", draw_shape), ("digits", draw_digit), ("charts", draw_chart)):
        folder = Path(config.folder) / kind
        rows: list[dict[str, Any]] = []
        for split, count in (("train", config.train), ("test", config.test)):
            for number in range(count):
                image, label = draw(random.Random(f"{config.seed}/{kind}/{split}/{number}"), number)
                row = {"file": save(image, folder, split, number), "split": split}
                rows.append(row | (label if isinstance(label, dict) else {"turns": label}))
        if kind == "charts":
            lines = [json.dumps(row) for row in rows]
            (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
        else:
            with (folder / "labels.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, ["file", "split", "label", "caption"])
                writer.writeheader()
                writer.writerows(rows)
        print(f"{folder}: {len(rows)} images")


if __name__ == "__main__":
    run_from_command_line(main)
