"""Train on data that a class of your own generates as datums (the Cookbook's pattern 6).

    python -m recipes.custom_dataset
    python -m recipes.custom_dataset rows=500 learning_rate=1e-3
    python -m recipes.custom_dataset --help

The data of this recipe are random sums of two digits. The class only has to yield datums; they are grouped into batches
of the dataset's `batch_size`. For data that do not fit in memory, implement `get_batch(index)` and `__len__` instead.

What you should see: test/nll falls from 4.3 to about 1 in 60 steps. This takes half a minute on one core.
"""

import asyncio
import random
from collections.abc import Iterator

import chz
import tinker

import tinkerloop
from recipes.command_line import run_from_command_line
from recipes.model_defaults import dry_run_field, learning_rate_field, renderer_field
from tinkerloop.renderers import TrainOnWhat, get_renderer
from tinkerloop.supervised import train
from tinkerloop.supervised.types import SupervisedDataset


@chz.chz
class CustomDatasetConfig:
    model_name: str = chz.field(
        default="recipes/base", doc="Base model: a folder, a hub name, or a model name of the service."
    )
    renderer_name: str = renderer_field()
    log_path: str = chz.field(default="runs/custom_dataset", doc="Folder of the run.")
    rows: int = chz.field(default=1920, doc="Number of sums to train on.")
    max_length: int = chz.field(default=128, doc="Longer conversations are cut after this many tokens.")
    batch_size: int = chz.field(default=32, doc="Sums per step.")
    learning_rate: float = learning_rate_field(2e-3)
    max_steps: int | None = chz.field(default=None, doc="Stop after this many steps; None trains on all the data.")
    dry_run: bool = dry_run_field()


class CustomDataset(SupervisedDataset):
    def __init__(self, config: CustomDatasetConfig, name: str, rows: int):
        self.config = config
        self.tokenizer = tinkerloop.get_tokenizer(config.model_name)
        self.renderer = get_renderer(name=config.renderer_name, tokenizer=self.tokenizer, max_length=config.max_length)
        self.data = self._load_data(name, rows)

    def _load_data(self, name: str, rows: int) -> list[tuple[int, int]]:
        rng = random.Random(name)
        return [(rng.randrange(10), rng.randrange(10)) for _ in range(rows)]

    def __len__(self) -> int:
        return len(self.data) // self.config.batch_size

    def __iter__(self) -> Iterator[tinker.Datum]:
        for a, b in self.data:
            messages = [
                {"role": "user", "content": f"{a} + {b} ="},
                {"role": "assistant", "content": str(a + b)},
            ]
            example = self.renderer.build_supervised_example(
                messages=messages, train_on_what=TrainOnWhat.ALL_ASSISTANT_MESSAGES
            )
            yield example.to_datum()  # adds the shifted targets and the weights, and checks them


def main(config: CustomDatasetConfig) -> None:
    asyncio.run(
        train.main(
            train.Config(
                model_name=config.model_name,
                log_path=config.log_path,
                dataset_builder=lambda: (
                    CustomDataset(config, "train", config.rows),
                    CustomDataset(config, "test", 64),
                ),
                learning_rate=config.learning_rate,
                max_steps=config.max_steps,
                dry_run=config.dry_run,
                warmup_steps=5,
            )
        )
    )


if __name__ == "__main__":
    run_from_command_line(main)
