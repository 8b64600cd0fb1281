"""Data sets and their builders, as the Cookbook names them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import chz

from tinkerloop.data import Batches, RowBatches
from tinkerloop.errors import DataError
from tinkerloop.renderers import Renderer, TrainOnWhat, get_renderer
from tinkerloop.tokenizers import get_tokenizer

if TYPE_CHECKING:
    import tinker


class SupervisedDataset:
    """Training data. Subclass it and write either

    * `__iter__`, yielding datums, which are then held in memory (give it a `batch_size`, or set one in
      `train.Config`), or
    * `get_batch(index)`, returning a list of datums, and `__len__` in batches; `set_epoch(seed)` may reshuffle.
    """

    batch_size: Any = None

    def get_batch(self, index: int) -> list[tinker.Datum]:
        """Batch `index` of this epoch."""
        raise NotImplementedError

    def set_epoch(self, seed: int = 0) -> None:
        """Called before each epoch, with its number."""

    def __iter__(self) -> Iterator[tinker.Datum]:
        for index in range(len(self)):  # type: ignore[arg-type]
            yield from self.get_batch(index)

    def batches(self, *, epochs: int | None = 1, batch_size: int | None = None, seed: int | None = 0) -> Batches:
        """What the loop trains on: batches with a cursor.

        seed: the order of data sets that shuffle; None leaves every epoch as it stands.
        """
        if type(self).get_batch is not SupervisedDataset.get_batch:
            if batch_size is not None:
                raise DataError(
                    f"{type(self).__name__} makes its own batches: batch_size={batch_size} cannot be applied",
                    remedy="set it in the dataset builder",
                )
            return _IndexedBatches(self, epochs)
        if type(self).__iter__ is SupervisedDataset.__iter__:
            raise DataError(f"{type(self).__name__} has neither get_batch nor __iter__", remedy="write one of them")
        own = self.batch_size or getattr(getattr(self, "config", None), "batch_size", None)
        size = own if batch_size is None else batch_size
        if size is None:
            raise DataError(
                f"{type(self).__name__} yields datums and says no batch size",
                remedy="give it a batch_size attribute, or set batch_size in train.Config",
            )
        return RowBatches(list(self), size, epochs=epochs, shuffle=seed)


class _IndexedBatches(RowBatches):
    """The batches of `get_batch`, one row each of which is a batch."""

    def __init__(self, dataset: Any, epochs: int | None):
        self._dataset, self._prepared = dataset, None
        super().__init__(dataset, 1, epochs=epochs)

    def _fetch(self, numbers: list[int], epoch: int) -> list[Any]:
        if self._prepared != epoch:
            self._dataset.set_epoch(seed=epoch)
            self._prepared = epoch
        return [datum for number in numbers for datum in self._dataset.get_batch(number)]


@chz.chz
class SupervisedDatasetBuilder:
    """Makes the training data, and the test data or None."""

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        raise NotImplementedError


@chz.chz
class ChatDatasetBuilderCommonConfig:
    """What every builder of chat data needs to know."""

    model_name_for_tokenizer: str = chz.field(doc="The model whose tokenizer encodes the text: a name or a folder.")
    renderer_name: str = chz.field(doc="The chat format; see get_recommended_renderer_name(model).")
    max_length: int | None = chz.field(default=None, doc="Tokens a conversation is cut to at its end; None: never.")
    batch_size: int = chz.field(default=32, doc="Conversations in a batch.")
    train_on_what: TrainOnWhat = chz.field(
        default=TrainOnWhat.ALL_ASSISTANT_MESSAGES, doc="Which messages are learned."
    )


@chz.chz
class ChatDatasetBuilder(SupervisedDatasetBuilder):
    """A builder that renders conversations: subclass it and write `__call__`, using `self.renderer`."""

    common_config: ChatDatasetBuilderCommonConfig

    @cached_property
    def tokenizer(self) -> Any:
        return get_tokenizer(self.common_config.model_name_for_tokenizer)

    @cached_property
    def renderer(self) -> Renderer:
        common = self.common_config
        return get_renderer(common.renderer_name, self.tokenizer, model_name=common.model_name_for_tokenizer)
