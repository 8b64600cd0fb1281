r"""Fine-tune a vision-language model to classify the images in a folder, with labels from a CSV file.

    python -m recipes.vision_classifier                            # six shapes, drawn on first use
    python -m recipes.vision_classifier folder=runs/images/digits  # ten digits
    python -m recipes.vision_classifier shots=8                    # few-shot: 8 images per class
    python -m recipes.vision_classifier folder=my/images service=tinker model=Qwen/Qwen3-VL-235B-A22B-Instruct \
        lora_rank=32

The folder contains `labels.csv` with the columns file, label and, optionally, split (train or test). Without the column
split, a fifth of the images is held out.

What you should see with the defaults: the fraction of unseen shapes with a right answer rises from 0 % to 97 % in 300
steps (chance is 17 %). This takes about a minute on one core. With 8 images of each shape it is 58 % after 100 steps.
All weights of tiny-vl are random at the start, so all are trained. For a pretrained model use an adapter
(lora_rank=32). `predictions.png` in the run's folder shows the answers.
"""

from __future__ import annotations

import csv
import random
from collections import defaultdict
from pathlib import Path

import chz

from recipes.command_line import run_from_command_line
from recipes.vision_training import Config as TrainingConfig
from recipes.vision_training import Messages, ask, image_folder, reply, train


@chz.chz
class Config(TrainingConfig):
    run: str = chz.field(default="runs/vision_classifier", doc="Folder of the run.")
    folder: str = chz.field(
        default="", doc="Folder of images with a labels.csv; by default the shapes of recipes.make_images."
    )
    question: str = chz.field(default="What is this?", doc="The user message that accompanies each image.")
    shots: int = chz.field(default=0, doc="Number of training images per class; 0: all.")


def read_labels(folder: Path, seed: int) -> dict[str, list[tuple[Path, str]]]:
    """Read `labels.csv` and return, for each split, a list of (image file, label)."""
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not all("split" in row for row in rows):
        random.Random(f"{seed}/split").shuffle(rows)
        rows = [row | {"split": "test" if i < len(rows) // 5 else "train"} for i, row in enumerate(rows)]
    splits: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    for row in rows:
        splits[row["split"]].append((folder / row["file"], row["label"]))
    return splits


def few(labelled: list[tuple[Path, str]], shots: int) -> list[tuple[Path, str]]:
    """Return the first `shots` labelled images of each class, or all images if `shots` is 0."""
    counts: dict[str, int] = defaultdict(int)
    kept = []
    for file, label in labelled:
        counts[label] += 1
        if not shots or counts[label] <= shots:
            kept.append((file, label))
    return kept


def main(config: Config) -> float:
    splits = read_labels(image_folder(config.folder, "shapes"), config.seed)

    def conversation(file: Path, label: str) -> Messages:
        return [ask(str(file), config.question), reply(label)]

    labelled = few(splits["train"], config.shots)
    test = splits["test"][: config.test_size]
    return train(config, [conversation(*one) for one in labelled], [conversation(*one) for one in test])


if __name__ == "__main__":
    run_from_command_line(main)
