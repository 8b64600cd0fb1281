"""Train on several conversation files with different row formats; skip bad rows and mix two sources.

This extends the Cookbook's pattern 4.

    python -m recipes.conversation_files
    python -m recipes.conversation_files file_path='chats/*.jsonl.gz' other_path=alpaca.jsonl other_adapter=alpaca
    python -m recipes.conversation_files --help

`file_path` is a file, a folder or a glob pattern. Files can be JSONL (plain, gzip or zstd), JSON or parquet. A second
source may have rows of another format. Exactly the fraction `share` of every batch comes from the second source.

What you should see: first the number of rows of each source, and which rows were skipped (file and line). Then test/nll
falls from 4.5 to below 0.1. This takes a minute or two on one core.
"""

import asyncio

import chz

from recipes.command_line import run_from_command_line
from recipes.model_defaults import dry_run_field, learning_rate_of, renderer_field
from tinkerloop.supervised import train
from tinkerloop.supervised.data import FromConversationFileBuilder, InterleavedDatasetBuilder
from tinkerloop.supervised.types import ChatDatasetBuilderCommonConfig, SupervisedDatasetBuilder


@chz.chz
class CLIConfig:
    model_name: str = chz.field(
        default="recipes/base", doc="Base model: a folder, a hub name, or a model name of the service."
    )
    renderer_name: str = renderer_field()
    file_path: str = chz.field(
        default="recipes/data/*_train.jsonl", doc="Files to train on: a file, a folder, or a glob."
    )
    other_path: str | None = chz.field(default=None, doc="Second source to mix in: a file, a folder, or a glob.")
    other_adapter: str = chz.field(
        default="messages", doc="Row format of the second source: messages, prompt_completion, sharegpt or alpaca."
    )
    share: float = chz.field(default=0.25, doc="Fraction of every batch that comes from the second source.")
    log_path: str = chz.field(default="runs/conversation_files", doc="Folder of the run.")
    max_length: int = chz.field(
        default=512, doc="Maximum number of tokens in a conversation; longer ones are skipped and counted."
    )
    batch_size: int = chz.field(default=32, doc="Conversations per step.")
    max_steps: int | None = chz.field(default=None, doc="Stop after this many steps; None trains on all the data.")
    dry_run: bool = dry_run_field()


def build_dataset(cli_config: CLIConfig) -> SupervisedDatasetBuilder:
    common_config = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=cli_config.model_name,
        renderer_name=cli_config.renderer_name,
        max_length=cli_config.max_length,
        batch_size=cli_config.batch_size,
    )

    def read(path: str, adapter: str) -> FromConversationFileBuilder:
        return FromConversationFileBuilder(
            common_config=common_config,
            file_path=path,
            adapter=adapter,
            test_size=0.05,  # a row and its duplicates are all in the same split
            on_bad="skip",
            on_long="skip",
        )

    if cli_config.other_path is None:
        return read(cli_config.file_path, "messages")
    return InterleavedDatasetBuilder(
        builders={
            "main": read(cli_config.file_path, "messages"),
            "other": read(cli_config.other_path, cli_config.other_adapter),
        },
        weights={"main": 1 - cli_config.share, "other": cli_config.share},
        batch_size=cli_config.batch_size,
    )


def main(cli_config: CLIConfig) -> None:
    config = train.Config(
        model_name=cli_config.model_name,
        log_path=cli_config.log_path,
        dataset_builder=build_dataset(cli_config),
        learning_rate=learning_rate_of(cli_config.model_name, small=2e-3),
        warmup_steps=5,
        max_steps=cli_config.max_steps,
        dry_run=cli_config.dry_run,
    )
    asyncio.run(train.main(config))


if __name__ == "__main__":
    run_from_command_line(main)
