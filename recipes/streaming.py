"""Train on a streamed dataset (the Cookbook's pattern 5).

Memory use is constant, the first step starts after `buffer_size` rows have been read, and a killed run resumes exactly.

    python -m recipes.streaming
    python -m recipes.streaming dataset=open-thoughts/OpenThoughts3-1.2M model_name=path/to/model renderer_name=qwen3
    python -m recipes.streaming --help

Rows are shuffled within blocks of `buffer_size` rows. So three integers store the position in the stream, and a resumed
run reads only one block again.

What you should see: test/nll falls from 4.7 to 0.33 in 50 steps. This takes half a minute on one core.
"""

import asyncio
from pathlib import Path
from typing import Any

import chz
import datasets
import tinker

from recipes.command_line import run_from_command_line
from recipes.model_defaults import dry_run_field, learning_rate_of, renderer_field
from tinkerloop.data.datums import conversation_to_datum
from tinkerloop.supervised import train
from tinkerloop.supervised.data import StreamingSupervisedDatasetFromHFDataset
from tinkerloop.supervised.types import ChatDatasetBuilder, ChatDatasetBuilderCommonConfig, SupervisedDataset


@chz.chz
class StreamingDatasetBuilder(ChatDatasetBuilder):
    dataset: str = chz.field(doc="Name of a dataset, or a JSONL file.")
    max_prompts: int = chz.field(default=1600, doc="Number of rows to train on.")
    test_prompts: int = chz.field(default=64, doc="Number of rows to evaluate on, taken from the start of the stream.")
    buffer_size: int = chz.field(default=256, doc="Number of rows that are held in memory and shuffled at a time.")

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset]:
        local = {"path": "json", "data_files": self.dataset} if Path(self.dataset).exists() else {"path": self.dataset}
        rows = datasets.load_dataset(**local, split="train", streaming=True)

        def map_fn(row: dict[str, Any]) -> tinker.Datum:
            return conversation_to_datum(
                messages=row["messages"],
                renderer=self.renderer,
                max_length=self.common_config.max_length,
                train_on_what=self.common_config.train_on_what,
            )

        train_dataset = StreamingSupervisedDatasetFromHFDataset(
            hf_dataset=rows.skip(self.test_prompts),
            batch_size=self.common_config.batch_size,
            length=self.max_prompts,
            map_fn=map_fn,
            buffer_size=self.buffer_size,
        )
        test_dataset = StreamingSupervisedDatasetFromHFDataset(
            hf_dataset=rows.take(self.test_prompts),
            batch_size=self.common_config.batch_size,
            length=self.test_prompts,
            map_fn=map_fn,
        )
        return train_dataset, test_dataset


@chz.chz
class CLIConfig:
    model_name: str = chz.field(
        default="recipes/base", doc="Base model: a folder, a hub name, or a model name of the service."
    )
    renderer_name: str = renderer_field()
    dataset: str = chz.field(default="recipes/data/pig_latin_train.jsonl", doc="Name of a dataset, or a JSONL file.")
    max_prompts: int = chz.field(default=1600, doc="Number of rows to train on.")
    log_path: str = chz.field(default="runs/streaming", doc="Folder of the run.")
    batch_size: int = chz.field(default=32, doc="Conversations per step.")
    max_steps: int | None = chz.field(default=None, doc="Stop after this many steps; None trains on all the data.")
    dry_run: bool = dry_run_field()


def main(cli_config: CLIConfig) -> None:
    common_config = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=cli_config.model_name,
        renderer_name=cli_config.renderer_name,
        max_length=512,
        batch_size=cli_config.batch_size,
    )
    config = train.Config(
        model_name=cli_config.model_name,
        log_path=cli_config.log_path,
        dataset_builder=StreamingDatasetBuilder(
            common_config=common_config, dataset=cli_config.dataset, max_prompts=cli_config.max_prompts
        ),
        learning_rate=learning_rate_of(cli_config.model_name, small=2e-3),
        warmup_steps=5,
        max_steps=cli_config.max_steps,
        dry_run=cli_config.dry_run,
    )
    asyncio.run(train.main(config))


if __name__ == "__main__":
    run_from_command_line(main)
