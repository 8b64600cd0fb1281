"""Fine-tune on a conversation file, configured by a class (the Cookbook's pattern 1).

    python -m recipes.class_config                                  # English to Pig Latin on the small base
    python -m recipes.class_config file_path=chats.jsonl learning_rate=1e-3
    python -m recipes.class_config --help

What you should see: test/nll falls from 4.5 to below 0.1. This takes a minute or two on one core. If you start it again
with the same log_path, it prints at once that the run is complete. With a larger num_epochs it trains further.
"""

import asyncio

import chz

from recipes.command_line import run_from_command_line
from recipes.model_defaults import dry_run_field, learning_rate_field, renderer_field
from tinkerloop.renderers import TrainOnWhat
from tinkerloop.supervised import train
from tinkerloop.supervised.data import FromConversationFileBuilder
from tinkerloop.supervised.types import ChatDatasetBuilderCommonConfig


@chz.chz
class CLIConfig:
    model_name: str = chz.field(
        default="recipes/base", doc="Base model: a folder, a hub name, or a model name of the service."
    )
    renderer_name: str = renderer_field()
    file_path: str = chz.field(
        default="recipes/data/pig_latin_train.jsonl", doc="JSONL file with `messages` in each row."
    )
    log_path: str = chz.field(default="runs/class_config", doc="Folder of the run.")
    max_length: int = chz.field(default=512, doc="Longer conversations are cut after this many tokens.")
    batch_size: int = chz.field(default=30, doc="Conversations per step.")
    test_size: int = chz.field(default=100, doc="Conversations held out for evaluation.")
    learning_rate: float = learning_rate_field(2e-3)
    num_epochs: int = chz.field(default=1, doc="Number of epochs.")
    max_steps: int | None = chz.field(default=None, doc="Stop after this many steps; None trains on all the data.")
    dry_run: bool = dry_run_field()


def build_dataset(cli_config: CLIConfig) -> FromConversationFileBuilder:
    common_config = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=cli_config.model_name,
        renderer_name=cli_config.renderer_name,
        max_length=cli_config.max_length,
        batch_size=cli_config.batch_size,
        train_on_what=TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    )
    return FromConversationFileBuilder(
        common_config=common_config, file_path=cli_config.file_path, test_size=cli_config.test_size
    )


async def train_async(cli_config: CLIConfig) -> None:
    config = train.Config(
        model_name=cli_config.model_name,
        log_path=cli_config.log_path,
        dataset_builder=build_dataset(cli_config),
        learning_rate=cli_config.learning_rate,
        num_epochs=cli_config.num_epochs,
        max_steps=cli_config.max_steps,
        dry_run=cli_config.dry_run,
        warmup_steps=5,
    )
    await train.main(config)


def main(cli_config: CLIConfig) -> None:
    asyncio.run(train_async(cli_config))


if __name__ == "__main__":
    run_from_command_line(main)
