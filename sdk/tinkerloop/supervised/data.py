"""Supervised datasets over Hugging Face datasets, streams and conversation files."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import TYPE_CHECKING, Any

import chz

from tinkerloop.data import (
    RowBatches,
    StreamBatches,
    Subset,
    conversation_datums,
    conversation_to_datum,
    conversation_to_datums,
    load_conversations,
    render_files,
    stream,
    train_test_split,
)
from tinkerloop.data.content import input_text
from tinkerloop.data.streams import checked_length
from tinkerloop.errors import DataError
from tinkerloop.number_checks import check_whole
from tinkerloop.supervised.mixtures import InterleavedDataset, InterleavedDatasetBuilder
from tinkerloop.supervised.types import ChatDatasetBuilder, SupervisedDataset
from tinkerloop.terminal import printable

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
    "conversation_to_datums",
]


class SupervisedDatasetFromHFDataset(SupervisedDataset):
    """A supervised dataset over a Hugging Face dataset or any sequence of rows.

    A row is converted to datums when its batch is requested.

    Args:
        hf_dataset: the rows.
        batch_size: the number of rows in a batch.
        map_fn: a function that converts a row to a datum. Pass either this or `flatmap_fn`.
        flatmap_fn: a function that converts a row to any number of datums.
        drop_last: True drops the last batch of an epoch if it has fewer than `batch_size` rows.

    Raises:
        DataError: neither or both of `map_fn` and `flatmap_fn` are given.
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
            raise DataError(
                "a dataset needs either map_fn or flatmap_fn, got neither or both of them",
                remedy="pass exactly one of them",
            )
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

    def all_datums(self) -> list[tinker.Datum]:
        return _whole(self)

    def without(self, held_out: Set[str]) -> tuple[SupervisedDatasetFromHFDataset, int]:
        rows = enumerate(self.batches(batch_size=1, seed=None))
        kept = [number for number, datums in rows if held_out.isdisjoint(map(input_text, datums))]
        left_out = len(self.rows) - len(kept)
        if not left_out:
            return self, 0
        remaining = copy.copy(self)
        remaining.rows = Subset(self.rows, kept)
        return remaining, left_out

    def set_epoch(self, seed: int = 0) -> None:
        """Select the epoch whose batches `get_batch` returns, and shuffle the rows for it.

        Args:
            seed: the number of the epoch. Before the first call of `set_epoch`, the rows are not shuffled.
        """
        self._epoch = seed

    def get_batch(self, index: int) -> list[tinker.Datum]:
        """Return batch `index` of the epoch that was selected with `set_epoch`.

        A negative index counts from the last batch, as in a list.

        Raises:
            IndexError: there is no batch `index`.
        """
        index = range(len(self))[index]
        batches = self.batches(epochs=None, seed=None if self._epoch is None else 0)
        batches.seek({**batches.cursor, "epoch": self._epoch or 0, "row": index * self.batch_size})
        return next(batches)


class StreamingSupervisedDatasetFromHFDataset(SupervisedDataset):
    """A supervised dataset over a Hugging Face IterableDataset, or any source that `tinkerloop.data.stream` accepts.

    Args:
        hf_dataset: the source of rows.
        batch_size: the number of rows in a batch.
        length: the number of rows to use in each epoch; None uses all.
        map_fn: a function that converts a row to a datum. Pass either this or `flatmap_fn`.
        flatmap_fn: a function that converts a row to any number of datums.
        buffer_size: the number of rows that are held in memory and shuffled together; 0 or 1 disables shuffling.
        drop_last: True drops the last batch of an epoch if it has fewer than `batch_size` rows.

    Raises:
        DataError: neither or both of `map_fn` and `flatmap_fn` are given, or a number is invalid.
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
            raise DataError(
                "a dataset needs either map_fn or flatmap_fn, got neither or both of them",
                remedy="pass exactly one of them",
            )
        check_whole("buffer_size", buffer_size, 0, error=DataError)
        self.source, self.length, self.buffer_size = hf_dataset, checked_length(length), buffer_size
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

    def all_datums(self) -> list[tinker.Datum]:
        return _whole(self)

    def __iter__(self) -> Iterator[tinker.Datum]:
        for batch in self.batches(seed=None):
            yield from batch

    def __len__(self) -> int:
        return len(self.batches())


def _whole(dataset: SupervisedDatasetFromHFDataset | StreamingSupervisedDatasetFromHFDataset) -> list[tinker.Datum]:
    kept = copy.copy(dataset)
    kept.drop_last = False
    return [datum for batch in kept.batches(seed=None) for datum in batch]


@chz.chz
class FromConversationFileBuilder(ChatDatasetBuilder):
    """Builder of a dataset from conversations in files (JSONL, JSON, parquet) or in a Hugging Face dataset."""

    file_path: str = chz.field(doc="A file, a folder, a glob pattern, or the name of a Hugging Face dataset.")
    test_size: int | float = chz.field(
        default=0, doc="Number of conversations held out as test data, or a fraction below 1; 0 holds out none."
    )
    shuffle_seed: int = chz.field(default=0, doc="Random seed for the choice of the test data.")
    adapter: str = chz.field(
        default="messages", doc="Shape of the rows: messages, prompt_completion, sharegpt or alpaca."
    )
    on_bad: str = chz.field(
        default="error", doc='"error" stops at the first bad row; "skip" leaves out bad rows and counts them.'
    )
    on_long: str = chz.field(
        default="truncate",
        doc='For a conversation over max_length: "truncate" cuts its end, "skip" leaves it out, "error" stops.',
    )
    split: str = chz.field(
        default="auto",
        doc='"auto" makes several datums of a conversation where the chat format rewrites history; "never" makes one.',
    )
    ignore_keys: tuple[str, ...] = chz.field(
        default=(), doc="Keys of rows or messages that nothing reads and whose content may be lost."
    )
    image_root: str | None = chz.field(
        default=None, doc='Folder of the images; None means that of the data file, "anywhere" accepts every path.'
    )
    drop_last: bool = chz.field(default=False, doc="Leave out the last training batch of an epoch if it is not full.")

    cache: str | None = chz.field(
        default=None, doc="Folder in which rendered conversations are cached for later runs; None disables the cache."
    )
    workers: int = chz.field(
        default=0, doc="Number of processes that render into the cache; 0 renders in this process."
    )

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        """Load and render all conversations, so that a bad one is found before training starts.

        Returns:
            (training data, test data or None).

        Raises:
            DataError: a row is bad. The message gives the file, the line and a remedy.
        """
        datums = self._datums()
        cut = f"; {datums.truncated:,} cut to {self.common_config.max_length} tokens" if datums.truncated else ""
        print(f"{printable(self.file_path)}: {printable(datums.report)}{cut}", file=sys.stderr)
        if not self.test_size:
            return self._dataset(datums, self.drop_last), None
        train, test = _split_conversations(datums, self.test_size, self.shuffle_seed)
        return self._dataset(train, self.drop_last), self._dataset(test, False)

    def _datums(self) -> Any:
        common, options = self.common_config, {"on_bad": self.on_bad, "on_long": self.on_long, "split": self.split}
        if self.cache is not None:
            if self.image_root is not None:
                raise DataError(
                    f"image_root={self.image_root!r} has no effect with a cache, because images cannot be cached",
                    remedy="leave out cache or image_root",
                )
            return render_files(
                self.file_path,
                self.renderer,
                common.max_length,
                cache=self.cache,
                train_on_what=common.train_on_what,
                adapter=self.adapter,
                workers=self.workers,
                ignore_keys=self.ignore_keys,
                **options,  # type: ignore[arg-type]
            )
        if self.workers:
            raise DataError(
                f"workers={self.workers} requires a cache to render into", remedy="set cache to a folder, or workers=0"
            )
        conversations = load_conversations(
            self.file_path,
            on_bad=self.on_bad,  # type: ignore[arg-type]
            adapter=self.adapter,
            ignore_keys=self.ignore_keys,
            image_root=self.image_root,
        )
        return conversation_datums(
            conversations,
            self.renderer,
            common.max_length,
            train_on_what=common.train_on_what,
            report=conversations.report,
            **options,  # type: ignore[arg-type]
        )

    def _dataset(self, datums: Sequence[Any], drop_last: bool) -> SupervisedDataset:
        return SupervisedDatasetFromHFDataset(
            datums, self.common_config.batch_size, map_fn=_itself, drop_last=drop_last
        )


def _split_conversations(datums: Any, test_size: int | float, seed: int) -> tuple[Subset, Subset]:
    """Return the datums of training conversations, and those of `test_size` test conversations.

    The datums of one conversation stay together, so that no test datum begins like one that is trained on.
    """
    contents: dict[int, str] = {}
    for number, datum in zip(datums.conversation_numbers, datums, strict=True):
        contents[number] = contents.get(number, "") + input_text(datum)
    _, test = train_test_split(list(contents), test_size, seed=seed, key=contents.__getitem__)
    chosen = set(test)
    sides: tuple[list[int], list[int]] = ([], [])
    for index, number in enumerate(datums.conversation_numbers):
        sides[number in chosen].append(index)
    return Subset(datums, sides[0]), Subset(datums, sides[1])


def _itself(datum: tinker.Datum) -> tinker.Datum:
    return datum
