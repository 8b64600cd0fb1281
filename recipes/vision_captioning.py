"""Caption pictures: a vision-language model learns to say size, colour and shape.

    python -m recipes.vision_captioning
    python -m recipes.vision_captioning folder=my/pictures

The folder holds `labels.csv` with the columns file, split (train or test) and caption. Only a caption that is right in
every letter counts.

What you should see, with nothing changed: from 0 % (chance is 1.5 %) to 83 % of unseen pictures captioned without a
mistake in 300 steps, about a minute of one core. Every weight is trained, as in vision_classifier.
"""

from __future__ import annotations

import csv

import chz

from recipes.vision_training import Config as TrainingConfig
from recipes.vision_training import Messages, ask, pictures, reply, train


@chz.chz
class Config(TrainingConfig):
    run: str = chz.field(default="runs/vision_captioning", doc="The run's folder.")
    folder: str = chz.field(default="", doc="Pictures with a labels.csv; by default the shapes of recipes.make_images.")
    question: str = chz.field(default="Describe the picture.", doc="What the model is asked about each picture.")


def main(config: Config) -> float:
    folder = pictures(config.folder, "shapes")
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    def conversations(split: str) -> list[Messages]:
        kept = [row for row in rows if row["split"] == split]
        return [[ask(str(folder / row["file"]), config.question), reply(row["caption"])] for row in kept]

    return train(config, conversations("train"), conversations("test")[: config.test_size])


if __name__ == "__main__":
    main(chz.entrypoint(Config))
