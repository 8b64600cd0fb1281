"""Data sets over rows: Hugging Face tables, streams, conversation files, and mixtures of them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import chz

from tinkerloop.data import (
    MixedBatches,
    RowBatches,
    StreamBatches,
    conversation_datums,
    conversation_to_datum,
    load_conversations,
    mix,
    render_files,
    stream,
    train_test_split,
)
from tinkerloop.data.mixing import check_weights
from tinkerloop.errors import DataError
from tinkerloop.supervised.types import ChatDatasetBuilder, SupervisedDataset, SupervisedDatasetBuilder

if TYPE_CHECKING:
    import tinker

    MapFn = Callable[[Any], tinker.Datum]
    FlatmapFn = Callable[[Any], Iterable[tinker.Datum]]

__all__ = [
    "FromConversationFileBuilder",
    "InterleavedDataset",
    "InterleavedDatasetBuilder",
    "StreamingSupervisedDatasetFromHFDataset",
    "SupervisedDatasetFromHFDataset",
    "conversation_to_datum",
]


class SupervisedDatasetFromHFDataset(SupervisedDataset):
    """Rows of a Hugging Face dataset (or of any sequence), mapped to datums as their batch is asked for.

    Give `map_fn`, row -> datum, or `flatmap_fn`, row -> several datums or none; `batch_size` counts rows. The last
    batch of an epoch is kept when it is not full, unless `drop_last`.
    """

    def __init__(
        self,
        hf_dataset: Sequence[Any] | Any,
        batch_size: int,
        map_fn: MapFn | None = None,
        flatmap_fn: FlatmapFn | None = None,
        *,
        drop_last: bool = False,
    ):
        if (map_fn is None) == (flatmap_fn is None):
            raise DataError("a dataset needs map_fn or flatmap_fn, one of them")
        self.rows, self.drop_last = hf_dataset, drop_last
        self.batch_size: int = batch_size
        self._map_fn, self._flatmap_fn = map_fn, flatmap_fn
        self._epoch: int | None = None

    def batches(self, *, epochs: int | None = 1, batch_size: int | None = None, seed: int | None = 0) -> RowBatches:
        return RowBatches(
            self.rows,
            self.batch_size if batch_size is None else batch_size,
            epochs=epochs,
            shuffle=seed,
            map_fn=self._map_fn,
            flatmap_fn=self._flatmap_fn,
            drop_last=self.drop_last,
        )

    def __len__(self) -> int:
        return len(self.batches())

    def set_epoch(self, seed: int = 0) -> None:
        """Shuffle what `get_batch` returns; before the first call the rows are in order."""
        self._epoch = seed

    def get_batch(self, index: int) -> list[tinker.Datum]:
        batches = self.batches(epochs=None, seed=None if self._epoch is None else 0)
        batches.seek({**batches.cursor, "epoch": self._epoch or 0, "row": index * self.batch_size})
        return next(batches)


class StreamingSupervisedDatasetFromHFDataset(SupervisedDataset):
    """Rows of a Hugging Face IterableDataset (or of any source that `tinkerloop.data.stream` takes), read as they come.

    length: rows used in each epoch. buffer_size: rows held and shuffled at a time; 0 or 1 keeps their order.
    """

    def __init__(
        self,
        hf_dataset: Any,
        batch_size: int,
        length: int | None,
        map_fn: MapFn | None = None,
        flatmap_fn: FlatmapFn | None = None,
        buffer_size: int = 4096,
        *,
        drop_last: bool = False,
    ):
        if (map_fn is None) == (flatmap_fn is None):
            raise DataError("a dataset needs map_fn or flatmap_fn, one of them")
        self.source, self.length, self.buffer_size = hf_dataset, length, buffer_size
        self.batch_size: int = batch_size
        self._map_fn, self._flatmap_fn, self.drop_last = map_fn, flatmap_fn, drop_last

    def batches(self, *, epochs: int | None = 1, batch_size: int | None = None, seed: int | None = 0) -> StreamBatches:
        return stream(
            self.source,
            self.batch_size if batch_size is None else batch_size,
            epochs=epochs,
            shuffle=seed if self.buffer_size > 1 else None,
            buffer_size=max(self.buffer_size, 1),
            length=self.length,
            map_fn=self._map_fn,
            flatmap_fn=self._flatmap_fn,
            drop_last=self.drop_last,
        )

    def __iter__(self) -> Iterator[tinker.Datum]:
        for batch in self.batches(seed=None):
            yield from batch

    def __len__(self) -> int:
        return len(self.batches())


class InterleavedDataset(SupervisedDataset):
    """Several data sets in fixed proportions in every batch; each starts again, in another order, when it has ended.

    length: rows in an epoch; by default as many as it takes to see every row of every part.
    """

    def __init__(
        self,
        parts: Mapping[str, SupervisedDataset],
        weights: Mapping[str, float],
        batch_size: int,
        *,
        length: int | None = None,
    ):
        check_weights(parts, weights)
        self.parts, self.weights = dict(parts), dict(weights)
        self.batch_size: int = batch_size
        self.length = length or self._all_rows()

    def batches(self, *, epochs: int | None = 1, batch_size: int | None = None, seed: int | None = 0) -> MixedBatches:
        parts = {
            name: part.batches(epochs=None, batch_size=1, seed=None if seed is None else seed + number)
            for number, (name, part) in enumerate(self.parts.items())
        }
        length = None if epochs is None else epochs * self.length
        size = self.batch_size if batch_size is None else batch_size
        return mix(parts, self.weights, size, length=length)

    def __len__(self) -> int:
        return len(self.batches())

    def _all_rows(self) -> int:
        total = sum(self.weights.values())
        try:
            rows = {name: len(part.batches(batch_size=1)) for name, part in self.parts.items()}  # type: ignore[arg-type]
        except TypeError as error:
            raise DataError("a part does not know its length", remedy="say how long an epoch is: length=") from error
        return max(math.ceil(count * total / self.weights[name]) for name, count in rows.items())


class _Joined(SupervisedDataset):
    """Data sets one after another, for testing on all of them."""

    def __init__(self, parts: Sequence[SupervisedDataset], batch_size: int):
        self.parts, self.batch_size = parts, batch_size

    def __iter__(self) -> Iterator[tinker.Datum]:
        for part in self.parts:
            yield from (datum for batch in part.batches(seed=None) for datum in batch)  # type: ignore[attr-defined]


@chz.chz
class FromConversationFileBuilder(ChatDatasetBuilder):
    """Conversations of files: JSONL (plain, gzip, zstd), JSON, parquet; a folder, a glob, or a data set's name."""

    file_path: str = chz.field(doc="A file, a folder, a glob, or the name of a data set.")
    test_size: int | float = chz.field(
        default=0, doc="Conversations held out for the test: a number, or a fraction below 1; 0 for none."
    )
    shuffle_seed: int = chz.field(default=0, doc="Decides which conversations are held out.")
    adapter: str = chz.field(
        default="messages", doc="The shape of the rows: messages, prompt_completion, sharegpt or alpaca."
    )
    on_bad: str = chz.field(default="error", doc='What a broken row is: an "error", or a counted "skip".')
    on_long: str = chz.field(
        default="truncate", doc='What a conversation over max_length is: an "error", a "skip", or "truncate".'
    )
    drop_last: bool = chz.field(default=False, doc="Leave out the last batch of an epoch when it is not full.")

    cache: str | None = chz.field(default=None, doc="A folder that keeps what was rendered, for later runs.")
    workers: int = chz.field(default=0, doc="Processes that render into the cache; 0: this one.")

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        """All are rendered now: a conversation that cannot be trained on is found before training starts."""
        datums = self._datums()
        cut = f"; {datums.truncated:,} cut to {self.common_config.max_length} tokens" if datums.truncated else ""
        print(f"{self.file_path}: {datums.report}{cut}", file=sys.stderr)
        if not self.test_size:
            return self._dataset(datums), None
        train, test = train_test_split(datums, self.test_size, seed=self.shuffle_seed, key=_said)
        return self._dataset(train), self._dataset(test)

    def _datums(self) -> Any:
        common, options = self.common_config, {"on_bad": self.on_bad, "on_long": self.on_long}
        if self.cache is not None:
            return render_files(
                self.file_path,
                self.renderer,
                common.max_length,
                cache=self.cache,
                train_on_what=common.train_on_what,
                adapter=self.adapter,
                workers=self.workers,
                **options,  # type: ignore[arg-type]
            )
        if self.workers:
            raise DataError(f"workers={self.workers} render into a cache, and there is none", remedy="set cache")
        conversations = load_conversations(self.file_path, on_bad=self.on_bad, adapter=self.adapter)  # type: ignore[arg-type]
        return conversation_datums(
            conversations,
            self.renderer,
            common.max_length,
            train_on_what=common.train_on_what,
            report=conversations.report,
            **options,  # type: ignore[arg-type]
        )

    def _dataset(self, datums: Sequence[Any]) -> SupervisedDataset:
        return SupervisedDatasetFromHFDataset(
            datums, self.common_config.batch_size, map_fn=_itself, drop_last=self.drop_last
        )


def _itself(datum: tinker.Datum) -> tinker.Datum:
    return datum


def _said(datum: tinker.Datum) -> str:
    return str(datum.model_input.to_ints()) if not _has_images(datum) else datum.model_input.model_dump_json()


def _has_images(datum: tinker.Datum) -> bool:
    return any(chunk.type != "encoded_text" for chunk in datum.model_input.chunks)


@chz.chz
class InterleavedDatasetBuilder(SupervisedDatasetBuilder):
    """Mixes the training data of several builders; their test data is tested one after another."""

    builders: dict[str, SupervisedDatasetBuilder] = chz.field(doc="The sources by name.")
    weights: dict[str, float] = chz.field(doc="The share of each source in every batch.")
    batch_size: int = chz.field(default=32, doc="Rows in a batch, of all sources together.")

    length: int | None = chz.field(default=None, doc="Rows in an epoch; None: until every row has been seen.")

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        made = {name: builder() for name, builder in self.builders.items()}
        train = {name: parts[0] for name, parts in made.items()}
        test = [parts[1] for parts in made.values() if parts[1] is not None]
        return (
            InterleavedDataset(train, self.weights, self.batch_size, length=self.length),
            _Joined(test, self.batch_size) if test else None,
        )
