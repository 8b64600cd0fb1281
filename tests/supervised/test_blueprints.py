"""Blueprints of `train.Config` whose dataset builder is changed field by field."""

from __future__ import annotations  # so that chz finds annotations that are strings, as in the modules of users

import chz
import pytest

from tinkerloop.supervised import train
from tinkerloop.supervised.data import FromConversationFileBuilder, InterleavedDatasetBuilder
from tinkerloop.supervised.types import ChatDatasetBuilderCommonConfig, SupervisedDataset, SupervisedDatasetBuilder

FILE = FromConversationFileBuilder(
    common_config=ChatDatasetBuilderCommonConfig(model_name_for_tokenizer="tiny", renderer_name="qwen3"), file_path="a"
)


@chz.chz
class Bins:
    edges: int
    width: int = 2


@chz.chz
class SumsOfTwo(SupervisedDatasetBuilder):
    bins: Bins = Bins(edges=1)
    batch_size: int = 8

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        raise NotImplementedError


def blueprint(builder):
    values = {"model_name": "tiny", "log_path": "run", "dataset_builder": builder}
    return chz.Blueprint(train.Config).apply(chz.beta_to_blueprint_values(values))


@pytest.mark.parametrize(
    ("builder", "path", "value"),
    [
        (FILE, "test_size", 4),
        (FILE, "common_config.batch_size", 4),
        (SumsOfTwo(), "batch_size", 4),
        (SumsOfTwo(bins=Bins(edges=5)), "bins.width", 3),
        (InterleavedDatasetBuilder(builders={"a": FILE}, weights={"a": 1.0}), "batch_size", 4),
        (InterleavedDatasetBuilder(builders={"a": FILE, "b": SumsOfTwo()}, weights={}), "builders.b.bins.edges", 7),
    ],
)
@pytest.mark.parametrize("from_argv", [True, False], ids=["command line", "apply"])
def test_one_field_of_a_builder_is_overridden_and_the_others_are_kept(builder, path, value, from_argv):
    name = f"dataset_builder.{path}"
    if from_argv:
        config = blueprint(builder).make_from_argv([f"{name}={value}"])
    else:
        config = blueprint(builder).apply({name: value}).make()
    assert fields(config.dataset_builder) == fields(builder) | {path: value}


def fields(builder):
    return chz.beta_to_blueprint_values(builder)


def test_a_builder_is_chosen_by_the_name_of_its_class_on_the_command_line():
    values = chz.Blueprint(train.Config).apply({"model_name": "tiny", "log_path": "run"})
    config = values.make_from_argv(["dataset_builder=SumsOfTwo", "dataset_builder.bins.edges=4"])
    assert config.dataset_builder == SumsOfTwo(bins=Bins(edges=4))


@pytest.mark.parametrize("name", ["SumsOfTwo", f"{__name__}:SumsOfTwo"])
def test_a_builder_class_without_required_fields_is_instantiated(name):
    values = chz.Blueprint(train.Config).apply({"model_name": "tiny", "log_path": "run"})
    assert values.make_from_argv([f"dataset_builder={name}"]).dataset_builder == SumsOfTwo()


@pytest.mark.parametrize("builder", [FILE, SumsOfTwo()])
def test_overriding_a_field_of_a_builder_object_says_that_the_object_is_a_value(builder):
    values = chz.Blueprint(train.Config).apply({"model_name": "a", "log_path": "b", "dataset_builder": builder})
    with pytest.raises(chz.blueprint.InvalidBlueprintArg, match="as a value, since subparameters were provided"):
        values.make_from_argv(["dataset_builder.batch_size=4"])
