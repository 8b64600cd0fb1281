"""Train a vision-language model to answer questions about images in several turns: three questions per bar chart.

    python -m recipes.vision_vqa
    python -m recipes.vision_vqa per_conversation=2        # two charts in one conversation

The folder contains `questions.jsonl` with lines {"file", "split", "turns": [[question, answer], ...]}. The image is
placed before its first question; later questions refer to it. All answers of a conversation are trained. In tests, each
question is asked after the expected answers to the earlier ones.

What you should see with the defaults: the fraction of right answers about unseen charts rises from 0 % to 90 % in 300
steps (chance is 28 %). This takes a minute and a half on one core. All weights are trained, as in vision_classifier.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import chz

from recipes.command_line import run_from_command_line
from recipes.vision_training import Config as TrainingConfig
from recipes.vision_training import Messages, ask, image_folder, reply, train


@chz.chz
class Config(TrainingConfig):
    run: str = chz.field(default="runs/vision_vqa", doc="Folder of the run.")
    folder: str = chz.field(
        default="", doc="Folder of images with a questions.jsonl; by default the charts of recipes.make_images."
    )
    per_conversation: int = chz.field(
        default=1, doc="Number of images per conversation, each followed by its questions."
    )


def conversation(folder: Path, rows: list[dict[str, Any]]) -> Messages:
    messages: Messages = []
    for row in rows:
        for i, (question, answer) in enumerate(row["turns"]):
            message = ask(str(folder / row["file"]), question) if i == 0 else {"role": "user", "content": question}
            messages += [message, reply(answer)]
    return messages


def main(config: Config) -> float:
    folder = image_folder(config.folder, "charts")
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]

    def conversations(split: str) -> list[Messages]:
        chosen = [row for row in rows if row["split"] == split]
        starts = range(0, len(chosen), config.per_conversation)
        return [conversation(folder, chosen[start : start + config.per_conversation]) for start in starts]

    return train(config, conversations("train"), conversations("test")[: config.test_size])


if __name__ == "__main__":
    run_from_command_line(main)
