"""Base classes of supervised datasets and of their builders, with the Tinker Cookbook's names."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence, Set
from functools import cached_property
from typing import Any, Literal

import chz

from tinkerloop._lazy import tinker
from tinkerloop.data import Batches, RowBatches
from tinkerloop.data.content import input_text
from tinkerloop.datum_checks import check_datum
from tinkerloop.errors import DataError, DatumError, PlanError
from tinkerloop.loop.argument_checks import datums_of
from tinkerloop.renderers import Renderer, TrainOnWhat, get_renderer
from tinkerloop.tokenizers import get_tokenizer


class SupervisedDataset:
    """The base class of supervised datasets. A subclass defines one of:

    * `__iter__`, which yields datums. All of them are held in memory. The batch size is the attribute `batch_size`, or
      is set in `train.Config`.
    * `get_batch(index)`, which returns a list of datums, and `__len__`, which returns the number of batches. The
      subclass may also define `set_epoch(seed)`, to shuffle the data for each epoch.
    """

    batch_size: Any = None

    def get_batch(self, index: int) -> list[tinker.Datum]:
        """Return the list of datums of batch `index` in the epoch that was selected with `set_epoch`."""
        raise NotImplementedError

    def set_epoch(self, seed: int = 0) -> None:
        """Prepare the data for an epoch. It is called before each epoch, with the number of the epoch as `seed`."""

    def __iter__(self) -> Iterator[tinker.Datum]:
        for index in range(len(self)):  # type: ignore[arg-type]
            yield from self.get_batch(index)

    def all_datums(self) -> list[tinker.Datum]:
        """Return all datums once and in order, as an evaluation reads test data: `drop_last` drops none of them."""
        if self._yields_datums():
            return self._checked_datums()  # which needs no batch size
        batches: Any = self.batches(seed=None)
        return [datum for batch in batches for datum in batch]

    def without(self, held_out: Set[str]) -> tuple[SupervisedDataset, int]:
        """Return the dataset without its held-out rows, and the number of these. It is unchanged if there are none.

        Args:
            held_out: the model inputs of test data, as `input_text` returns them. A row is held out if one of its
                datums is.

        Raises:
            DataError: the rows of the dataset are not all read before training.
        """
        if not self._yields_datums():
            raise DataError(
                f"the rows of a {type(self).__name__} cannot be compared with the test data of the mixture before "
                "training, so test data could be trained on",
                remedy="build the mixture without test data, and pass the test data to NLLEvaluator in "
                "evaluator_builders of train.Config; or use SupervisedDatasetFromHFDataset, which has all rows",
            )
        datums = self._checked_datums()
        kept = [datum for datum in datums if input_text(datum) not in held_out]
        left_out = len(datums) - len(kept)
        return (_Datums(kept, self.batch_size), left_out) if left_out else (self, 0)

    def batches(self, *, epochs: int | None = 1, batch_size: int | None = None, seed: int | None = 0) -> Batches:
        """Return an iterator of batches with a cursor, for the loop to train on.

        Args:
            epochs: the number of passes over the data; None repeats it without end.
            batch_size: the number of datums in a batch; None uses the batch size of the dataset.
            seed: the random seed for the order of the data, in datasets that shuffle; None keeps the order.

        Raises:
            DatumError: `__iter__` yields a datum that cannot be trained on with the loss cross_entropy.
            PlanError: `__iter__` yields something other than datums.
            DataError: there is no batch size; or `batch_size` is given, but `get_batch` sets the size of a batch; or
                the subclass defines neither `get_batch` nor `__iter__`.
        """
        if type(self).get_batch is not SupervisedDataset.get_batch:
            if batch_size is not None:
                raise DataError(
                    f"{type(self).__name__} creates its batches in get_batch, so batch_size={batch_size} has no effect",
                    remedy="set batch_size in the dataset builder",
                )
            return _IndexedBatches(self, epochs)
        datums = self._checked_datums()
        own_size = self.batch_size
        if own_size is None:
            own_size = getattr(getattr(self, "config", None), "batch_size", None)
        size = own_size if batch_size is None else batch_size
        if size is None:
            raise DataError(
                f"the dataset class {type(self).__name__} yields single datums, and there is no batch size",
                remedy="add an attribute batch_size to the class, or set batch_size in train.Config",
            )
        return RowBatches(datums, size, epochs=epochs, shuffle=seed)

    def _yields_datums(self) -> bool:
        cls = type(self)
        return cls.batches is SupervisedDataset.batches and cls.get_batch is SupervisedDataset.get_batch

    def _checked_datums(self) -> list[tinker.Datum]:
        """Return the datums that `__iter__` yields, after a check that training cannot fail on one of them later."""
        if type(self).__iter__ is SupervisedDataset.__iter__:
            raise DataError(
                f"the dataset class {type(self).__name__} has neither get_batch nor __iter__",
                remedy="define one of them",
            )
        datums = list(self)
        for number, datum in enumerate(datums):
            try:
                datums_of([datum])
                check_datum(datum, allow_zero_weight=True)
            except (DatumError, PlanError) as error:
                error.add_note(
                    f"in datum {number} of the dataset class {type(self).__name__}, whose datums are for the loss "
                    "cross_entropy; for another loss, use tinkerloop.data.batches(datums, size) and a Loop"
                )
                raise
        return datums


class _Datums(SupervisedDataset):
    """A dataset of datums in memory."""

    def __init__(self, datums: Sequence[tinker.Datum], batch_size: int | None):
        self._datums, self.batch_size = datums, batch_size

    def __iter__(self) -> Iterator[tinker.Datum]:
        return iter(self._datums)


class _IndexedBatches(RowBatches):
    """Iterator over the batches that a dataset's `get_batch` returns; here a row is a whole batch."""

    def __init__(self, dataset: Any, epochs: int | None):
        self._dataset, self._prepared = dataset, None
        super().__init__(dataset, 1, epochs=epochs)

    def _fetch(self, numbers: list[int], epoch: int) -> list[Any]:
        if self._prepared != epoch:
            self._dataset.set_epoch(seed=epoch)
            self._prepared = epoch
        return [datum for number in numbers for datum in self._dataset.get_batch(number)]


class _BuilderSignature:
    """The signature of a builder object, without names that only the module of its class can resolve.

    When a Blueprint holds a builder object and a value for one of its fields, chz evaluates the return annotation of
    the object, outside the module of its class. With this signature chz reports the contradiction instead.
    """

    def __get__(self, builder: Any, cls: type) -> inspect.Signature:
        if builder is None:  # the class has the signature of its fields
            raise AttributeError("__signature__")
        return inspect.Signature(return_annotation=tuple)


@chz.chz
class SupervisedDatasetBuilder:
    """The base class of dataset builders. Calling a builder returns (training data, test data or None)."""

    __signature__ = _BuilderSignature()

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        raise NotImplementedError


@chz.chz
class ChatDatasetBuilderCommonConfig:
    """Options that all builders of chat datasets share."""

    model_name_for_tokenizer: str = chz.field(doc="Name or folder of the model whose tokenizer encodes the text.")
    renderer_name: str = chz.field(doc="Chat format; get_recommended_renderer_name(model) returns the one for a model.")
    max_length: int | None = chz.field(
        default=None, doc="Largest number of tokens of a conversation; later tokens are cut. None cuts nothing."
    )
    batch_size: int = chz.field(default=32, doc="Number of conversations in a batch.")
    train_on_what: TrainOnWhat = chz.field(
        default=TrainOnWhat.ALL_ASSISTANT_MESSAGES, doc="Messages whose tokens are trained; see TrainOnWhat."
    )
    tags_in_replies: Literal["refuse", "text"] | None = chz.field(
        default=None,
        doc='For a trained reply whose text spells a tag of the format, such as <tool_call>: "refuse" stops, "text" '
        "trains ordinary text. None keeps the choice of the renderer, which refuses by default.",
    )


@chz.chz
class ChatDatasetBuilder(SupervisedDatasetBuilder):
    """The base class of builders that render conversations. A subclass defines `__call__` and uses `self.renderer`."""

    common_config: ChatDatasetBuilderCommonConfig = chz.field(doc="Options that all builders of chat datasets share.")

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the model `common_config.model_name_for_tokenizer`."""
        return get_tokenizer(self.common_config.model_name_for_tokenizer)

    @cached_property
    def renderer(self) -> Renderer:
        """The renderer of the chat format `common_config.renderer_name`."""
        common = self.common_config
        return get_renderer(
            common.renderer_name,
            self.tokenizer,
            model_name=common.model_name_for_tokenizer,
            tags_in_replies=common.tags_in_replies,
        )
