"""The code of the Cookbook's patterns page, with the import root replaced and its data sets and model made local.

Where a block could not run as written (see each note) it stands as a user would have to correct it.
"""

import asyncio
import os
import sys
from pathlib import Path

import chz
import datasets
import numpy as np
import pytest
import tinker
from tinker.types import Datum, ModelInput, TensorData

import tinkerloop
from tinkerloop.data.datums import conversation_to_datum
from tinkerloop.errors import DatumError
from tinkerloop.model_info import get_recommended_renderer_name
from tinkerloop.renderers import TrainOnWhat, get_renderer
from tinkerloop.supervised import train
from tinkerloop.supervised.data import (
    FromConversationFileBuilder,
    StreamingSupervisedDatasetFromHFDataset,
    SupervisedDatasetFromHFDataset,
)
from tinkerloop.supervised.types import ChatDatasetBuilder, ChatDatasetBuilderCommonConfig, SupervisedDataset

MODEL = "tiny"


@pytest.fixture(autouse=True)
def local_datasets(monkeypatch):
    """`datasets.load_dataset` of the page's names gives small local tables of the same columns."""
    tables = {
        "HuggingFaceH4/no_robots": [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in range(40)],
        "open-thoughts/OpenThoughts3-1.2M": [{"question": f"{i}+1?", "response": f"{i + 1}"} for i in range(60)],
    }

    def load_dataset(name, split, streaming=False):
        assert split == "train"
        table = datasets.Dataset.from_list(tables[name])
        return table.to_iterable_dataset() if streaming else table

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def steps():
    return len([line for line in Path("training/metrics.jsonl").read_text().splitlines() if '"loss"' in line])


def said(datums):
    return [(d.model_input.to_ints(), {k: v.tolist() for k, v in d.loss_fn_inputs.items()}) for d in datums]


def common(batch_size=8):
    return ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=MODEL,
        renderer_name=get_recommended_renderer_name(MODEL),
        max_length=2048,
        batch_size=batch_size,
        train_on_what=TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    )


# Pattern 3 (before 1 and 2, which use its builder)


@chz.chz
class MyDatasetBuilder(ChatDatasetBuilder):
    common_config: ChatDatasetBuilderCommonConfig

    # Optional: custom parameters
    subset_name: str = "default"
    max_train_samples: int = 10000

    def __call__(self):
        hf_dataset = datasets.load_dataset("HuggingFaceH4/no_robots", split="train")
        split = hf_dataset.train_test_split(test_size=0.1, seed=42)

        def map_fn(row):
            messages = [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
            return conversation_to_datum(
                messages=messages,
                renderer=self.renderer,
                max_length=self.common_config.max_length,
                train_on_what=self.common_config.train_on_what,
            )

        train_dataset = SupervisedDatasetFromHFDataset(
            hf_dataset=split["train"],
            batch_size=self.common_config.batch_size,
            map_fn=map_fn,
        )
        test_dataset = SupervisedDatasetFromHFDataset(
            hf_dataset=split["test"],
            batch_size=self.common_config.batch_size,
            map_fn=map_fn,
        )
        return train_dataset, test_dataset


def test_pattern_3_a_builder_over_a_hugging_face_dataset():
    train_dataset, test_dataset = MyDatasetBuilder(common_config=common())()
    assert (len(train_dataset), len(test_dataset)) == (5, 1)  # 36 rows in eights, the last four as one more
    assert len(train_dataset.get_batch(0)) == 8
    assert len(train_dataset.get_batch(4)) == 4
    in_order = said(train_dataset.get_batch(0))
    assert said(train_dataset.get_batch(0)) == in_order
    train_dataset.set_epoch(seed=1)
    assert said(train_dataset.get_batch(0)) != in_order


# Pattern 1, and the first complete example. As written the page gives nested_entrypoint the class; chz wants a function
# of one annotated argument, and options written as name=value.


@chz.chz
class CLIConfig:
    model_name: str = "meta-llama/Llama-3.1-8B"
    log_path: str = "/tmp/training"
    max_length: int = 2048
    batch_size: int = 128


async def train_async(cli_config: CLIConfig):
    renderer_name = get_recommended_renderer_name(cli_config.model_name)
    common_config = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=cli_config.model_name,
        renderer_name=renderer_name,
        max_length=cli_config.max_length,
        batch_size=cli_config.batch_size,
        train_on_what=TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    )

    dataset_builder = MyDatasetBuilder(common_config=common_config)

    config = train.Config(
        model_name=cli_config.model_name,
        log_path=cli_config.log_path,
        dataset_builder=dataset_builder,
        learning_rate=2e-4,
        num_epochs=3,
        lora_rank=32,
    )

    await train.main(config)


def test_pattern_1_a_class_and_the_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", f"model_name={MODEL}", "log_path=training", "batch_size=9"])

    def main(cli_config: CLIConfig):
        asyncio.run(train_async(cli_config))

    chz.nested_entrypoint(main)
    assert steps() == 12  # 36 rows in nines, three epochs


# Pattern 2. As written the page throws away what make_from_argv returns, and the overrides with it.


def build_config_blueprint() -> chz.Blueprint[train.Config]:
    model_name = MODEL

    dataset_builder = MyDatasetBuilder(common_config=common(batch_size=12))

    return chz.Blueprint(train.Config).apply(
        {
            "log_path": "training",
            "model_name": model_name,
            "dataset_builder": dataset_builder,
            "learning_rate": 2e-4,
            "lr_schedule": "cosine",
            "num_epochs": 3,
            "lora_rank": 32,
            "save_every": 100,
            "eval_every": 50,
        }
    )


def test_pattern_2_a_blueprint_and_overrides():
    config = build_config_blueprint().make_from_argv(["num_epochs=2", "learning_rate=1e-4"])
    assert (config.num_epochs, config.learning_rate, config.lr_schedule) == (2, 1e-4, "cosine")
    asyncio.run(train.main(config))
    assert steps() == 6


# Pattern 4, and the second complete example


@chz.chz
class FileConfig:
    model_name: str
    file_path: str
    max_length: int = 2048
    batch_size: int = 128


def build_dataset(cli_config: FileConfig):
    if not os.path.exists(cli_config.file_path):
        raise FileNotFoundError(f"Data file not found: {cli_config.file_path}")

    common_config = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=cli_config.model_name,
        renderer_name=get_recommended_renderer_name(cli_config.model_name),
        max_length=cli_config.max_length,
        batch_size=cli_config.batch_size,
        train_on_what=TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    )

    return FromConversationFileBuilder(
        common_config=common_config,
        file_path=cli_config.file_path,
    )


def test_pattern_4_a_conversation_file(conversations_file):
    dataset_builder = build_dataset(FileConfig(model_name=MODEL, file_path="conversations.jsonl", batch_size=8))
    blueprint = chz.Blueprint(train.Config).apply(
        {
            "log_path": "training",
            "model_name": MODEL,
            "dataset_builder": dataset_builder,
            "learning_rate": 2e-4,
            "num_epochs": 3,
            "lora_rank": 32,
        }
    )
    asyncio.run(train.main(blueprint.make()))
    assert steps() == 9
    with pytest.raises(FileNotFoundError):
        build_dataset(FileConfig(model_name=MODEL, file_path="missing.jsonl"))


# Pattern 5


@chz.chz
class StreamingDatasetBuilder(ChatDatasetBuilder):
    common_config: ChatDatasetBuilderCommonConfig
    max_prompts: int = 100000
    buffer_size: int = 10000

    def __call__(self):
        ds = datasets.load_dataset(
            "open-thoughts/OpenThoughts3-1.2M",
            split="train",
            streaming=True,
        )

        def map_fn(row):
            messages = [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["response"]},
            ]
            return conversation_to_datum(
                messages=messages,
                renderer=self.renderer,
                max_length=self.common_config.max_length,
                train_on_what=self.common_config.train_on_what,
            )

        train_dataset = StreamingSupervisedDatasetFromHFDataset(
            hf_dataset=ds,
            batch_size=self.common_config.batch_size,
            length=self.max_prompts,
            map_fn=map_fn,
            buffer_size=self.buffer_size,
        )

        test_ds = ds.take(10)
        test_dataset = StreamingSupervisedDatasetFromHFDataset(
            hf_dataset=test_ds,
            batch_size=self.common_config.batch_size,
            length=10,
            map_fn=map_fn,
            buffer_size=10,
        )

        return train_dataset, test_dataset


def test_pattern_5_a_stream():
    builder = StreamingDatasetBuilder(common_config=common(), max_prompts=40, buffer_size=16)
    config = train.Config(model_name=MODEL, log_path="training", dataset_builder=builder, num_epochs=2)
    asyncio.run(train.main(config))
    assert steps() == 10


# Pattern 6. As written the page passes ModelInput a list, and loss inputs that are not shifted.


@chz.chz
class CustomDatasetConfig:
    model_name: str
    renderer_name: str
    data_path: str
    max_length: int = 2048
    batch_size: int = 128


class CustomDataset(SupervisedDataset):
    def __init__(self, config: CustomDatasetConfig):
        self.config = config
        self.tokenizer = tinkerloop.get_tokenizer(config.model_name)
        self.renderer = get_renderer(
            name=config.renderer_name,
            tokenizer=self.tokenizer,
            max_length=config.max_length,
        )
        self.data = self._load_data()

    def _load_data(self):
        return Path(self.config.data_path).read_text().splitlines()

    def __len__(self):
        return len(self.data) // self.config.batch_size

    def __iter__(self):
        for item in self.data:
            messages = self._preprocess_item(item)
            example = self.renderer.build_supervised_example(
                messages=messages,
                train_on_what=TrainOnWhat.ALL_ASSISTANT_MESSAGES,
            )
            yield Datum(
                model_input=ModelInput(chunks=[example.chunk]),
                loss_fn_inputs={
                    "target_tokens": TensorData.from_numpy(np.array(example.target_tokens, dtype=np.int64)),
                    "weights": TensorData.from_numpy(np.array(example.target_weights, dtype=np.float32)),
                },
            )

    def _preprocess_item(self, item):
        return [{"role": "user", "content": "Repeat."}, {"role": "assistant", "content": item}]


def test_pattern_6_with_weights_that_are_not_shifted_names_the_shifted_ones_before_training():
    example = get_renderer("role_colon", tinkerloop.get_tokenizer(MODEL)).build_supervised_example(
        [{"role": "user", "content": "Repeat."}, {"role": "assistant", "content": "line"}]
    )
    inputs = {"target_tokens": example.target_tokens, "weights": example.weights}  # as the page writes it
    datum = Datum(model_input=ModelInput(chunks=[example.chunk]), loss_fn_inputs=inputs)
    config = train.Config(
        model_name=MODEL, log_path="training", dataset_builder=lambda: ([datum], None), batch_size=1, service="local"
    )
    with pytest.raises(DatumError, match=r"use its \.target_weights"):
        asyncio.run(train.main(config))
    assert not Path("training").exists()


def test_pattern_6_a_data_set_of_ones_own():
    Path("lines.txt").write_text("\n".join(f"line {i}" for i in range(20)))
    dataset_config = CustomDatasetConfig(
        model_name=MODEL, renderer_name="role_colon", data_path="lines.txt", batch_size=5
    )
    dataset = CustomDataset(dataset_config)
    made = next(iter(dataset))
    by_renderer = conversation_to_datum(
        dataset._preprocess_item("line 0"), dataset.renderer, 2048, TrainOnWhat.ALL_ASSISTANT_MESSAGES
    )
    assert said([made]) == said([by_renderer])
    config = train.Config(
        model_name=MODEL, log_path="training", dataset_builder=lambda: (dataset, None), gradient_accumulation_steps=2
    )
    asyncio.run(train.main(config))
    assert steps() == 2  # twenty rows in fives, two batches to a step


def test_a_data_set_of_ones_own_may_make_its_batches_itself():
    class Indexed(SupervisedDataset):
        epochs: list[int] = []  # noqa: RUF012

        def __len__(self):
            return 3

        def get_batch(self, index):
            renderer = get_renderer("role_colon", tinkerloop.get_tokenizer(MODEL))
            return [conversation_to_datum([{"role": "assistant", "content": f"batch {index}"}], renderer)] * 2

        def set_epoch(self, seed=0):
            self.epochs.append(seed)

    config = train.Config(
        model_name=MODEL, log_path="training", dataset_builder=lambda: (Indexed(), None), num_epochs=2
    )
    asyncio.run(train.main(config))
    assert steps() == 6
    assert Indexed.epochs == [0, 1]


def test_the_imports_of_the_page_name_what_tinker_names():
    assert tinker.types.Datum is Datum
    assert {TrainOnWhat.ALL_ASSISTANT_MESSAGES, TrainOnWhat.LAST_ASSISTANT_MESSAGE} < set(TrainOnWhat)
