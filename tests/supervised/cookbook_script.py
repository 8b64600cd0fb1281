# A supervised fine-tuning script as a Cookbook user has it. Only the imports differ from the Cookbook's.
import asyncio
import json
import sys

import chz
import datasets

from tinkerloop.data.datums import conversation_to_datum
from tinkerloop.renderers import TrainOnWhat
from tinkerloop.supervised import train
from tinkerloop.supervised.data import SupervisedDatasetFromHFDataset
from tinkerloop.supervised.types import ChatDatasetBuilder, ChatDatasetBuilderCommonConfig, SupervisedDataset


@chz.chz
class QADatasetBuilder(ChatDatasetBuilder):
    file_path: str
    test_fraction: float = 0.25
    seed: int = 0

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset]:
        with open(self.file_path) as file:
            rows = [json.loads(line) for line in file]
        dataset = datasets.Dataset.from_list([{"messages": row["messages"]} for row in rows])
        split = dataset.train_test_split(test_size=self.test_fraction, seed=self.seed)
        train_on_what = (
            TrainOnWhat(self.common_config.train_on_what)
            if self.common_config.train_on_what
            else TrainOnWhat.ALL_ASSISTANT_MESSAGES
        )

        def map_fn(row: dict):
            return conversation_to_datum(row["messages"], self.renderer, self.common_config.max_length, train_on_what)

        return (
            SupervisedDatasetFromHFDataset(split["train"], batch_size=self.common_config.batch_size, map_fn=map_fn),
            SupervisedDatasetFromHFDataset(split["test"], batch_size=self.common_config.batch_size, map_fn=map_fn),
        )


@chz.chz
class CLIConfig:
    model_name: str
    file_path: str
    log_path: str
    renderer_name: str = "role_colon"
    learning_rate: float = 1e-3
    num_epochs: int = 1
    batch_size: int = 6
    max_length: int = 256
    lora_rank: int = 8
    eval_every: int = 2
    save_every: int = 2


def cli_main(cli_config: CLIConfig) -> None:
    common_config = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=cli_config.model_name,
        renderer_name=cli_config.renderer_name,
        max_length=cli_config.max_length,
        batch_size=cli_config.batch_size,
        train_on_what=TrainOnWhat.LAST_ASSISTANT_MESSAGE,
    )
    config = train.Config(
        log_path=cli_config.log_path,
        model_name=cli_config.model_name,
        recipe_name="qa_sft",
        renderer_name=cli_config.renderer_name,
        dataset_builder=QADatasetBuilder(common_config=common_config, file_path=cli_config.file_path),
        learning_rate=cli_config.learning_rate,
        lr_schedule="linear",
        num_epochs=cli_config.num_epochs,
        lora_rank=cli_config.lora_rank,
        eval_every=cli_config.eval_every,
        save_every=cli_config.save_every,
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_eps=1e-8,
    )
    asyncio.run(train.main(config))


if __name__ == "__main__":
    cli_main(chz.Blueprint(CLIConfig).make_from_argv(sys.argv[1:]))
