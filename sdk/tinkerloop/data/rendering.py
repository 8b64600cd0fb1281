"""Convert files of conversations to datums in several processes, and cache the datums on disk for later runs.

    datums = render_files("chats.jsonl", renderer, max_length=2048, cache="cache", workers=2)
    train = batches(datums, 32, epochs=3, shuffle=0)

The name of a cache entry is a hash of everything that its content depends on: the bytes of the files, the fingerprint
of the renderer, and the options. An entry consists of flat arrays that are memory-mapped. Opening an entry therefore
takes milliseconds, and only the rows in use take memory.
"""

from __future__ import annotations

import copy
import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinkerloop._lazy import tinker
from tinkerloop._version import __version__
from tinkerloop.data.adapters import get_adapter
from tinkerloop.data.conversations import OnBad, Report, Skipped, check_ignore_keys, is_hub_name, parse_conversation
from tinkerloop.data.datums import OnLong, Split, TooLong, check_choices, check_rendering, render_conversation
from tinkerloop.data.file_search import PathLike, find_files
from tinkerloop.data.files import FileSource, RawRow
from tinkerloop.errors import DataError, RenderError
from tinkerloop.number_checks import check_whole

if TYPE_CHECKING:
    from tinkerloop.renderers import Rendered, Renderer

_VERSION = 3  # of the layout of the arrays and of what makes a row bad; part of the name of every cache entry
_CHUNK = 256  # number of rows that are sent to a worker process at a time


class DatumStore(Sequence["tinker.Datum"]):
    """A sequence of datums that are stored in memory-mapped arrays.

    A datum is created when it is accessed. It equals the datum that `conversation_datums` returns for the conversation.
    """

    def __init__(self, folder: PathLike):
        self.folder = Path(folder)
        # Convert to plain arrays over the same memory: slicing a np.memmap costs as much as reading the slice.
        self._tokens, self._weights, self._ends = (
            np.asarray(np.load(self.folder / f"{name}.npy", mmap_mode="r")) for name in ("tokens", "weights", "ends")
        )
        self.conversation_numbers: list[int] = np.load(self.folder / "conversations.npy").tolist()
        about = json.loads((self.folder / "about.json").read_text())
        skipped = [Skipped(**row) for row in about["skipped"]]
        self.report = Report(about["used"], skipped, Counter(about["ignored_keys"]), about["split"])
        self.truncated: int = about["truncated"]
        self.fingerprint: str = about["fingerprint"]

    def __len__(self) -> int:
        return len(self._ends)

    def __repr__(self) -> str:
        skipped = len(self.report.skipped)
        return f"DatumStore({len(self):,} datums, {self.truncated:,} truncated, {skipped:,} skipped)"

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start, end = (0 if index == 0 else self._ends[index - 1]), self._ends[index]
        tokens, weights = self._tokens[start:end], self._weights[start:end]  # (N,) each
        # model_construct skips pydantic's validation of each token: they were checked when they were written.
        chunk = tinker.EncodedTextChunk.model_construct(tokens=tokens[:-1].tolist())
        return tinker.Datum(
            model_input=tinker.ModelInput(chunks=[chunk]),
            loss_fn_inputs={
                "target_tokens": tinker.TensorData.from_numpy(tokens[1:].astype(np.int64)),
                "weights": tinker.TensorData.from_numpy(weights[1:].copy()),
            },
        )


def render_files(
    path: PathLike | Sequence[PathLike],
    renderer: Renderer,
    max_length: int | None = None,
    *,
    cache: PathLike,
    train_on_what: str = "all_assistant_messages",
    adapter: str = "messages",
    on_bad: OnBad = "error",
    on_long: OnLong = "error",
    workers: int = 0,
    ignore_keys: Collection[str] = (),
    split: Split = "auto",
) -> DatumStore:
    """Convert the text conversations of files to datums, and cache the datums on disk.

    If the cache already contains the result, it is opened instead.

    Args:
        path, adapter, ignore_keys: as for `load_conversations`.
        renderer, max_length, train_on_what, on_long, split: as for `conversation_datums`.
        on_bad: "error" raises at a conversation that cannot be read, rendered or trained on; "skip" leaves it out and
            counts it in the report.
        cache: the folder of the cache. An entry for the same files, renderer and options is opened; otherwise a new
            entry is written.
        workers: the number of processes that render; 0 renders in this process. Processes take seconds to start, so
            they pay off from some tens of thousands of conversations on. With `workers` above 0, the user's main
            module must be guarded by `if __name__ == "__main__":`.

    Returns:
        The datums, with `.report` and `.truncated`.

    Raises:
        DataError: `load_conversations` or `conversation_datums` would raise it, or a conversation has images, which
            cannot be cached. No cache entry is written then.
    """
    check_choices(on_bad=(on_bad, ("error", "skip")), on_long=(on_long, ("error", "skip", "truncate")))
    check_choices(split=(split, ("auto", "never")))
    check_rendering(renderer, max_length)
    check_whole("workers", workers, 0, error=DataError)
    get_adapter(adapter)
    if is_hub_name(path):
        raise DataError(
            "only files can be cached, but this is the name of a Hugging Face dataset",
            path=path,
            remedy="use load_conversations and conversation_datums, without a cache",
        )
    files = find_files(path)
    job = _Job(renderer, max_length, str(train_on_what), adapter, on_long, check_ignore_keys(ignore_keys), split)
    name = _entry_name(files, job, on_bad)
    entry = Path(cache) / name
    if not entry.exists():
        entry.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=entry.parent))
        try:
            _write(made, name, _render(files, job, workers), on_bad, on_long)
            os.rename(made, entry)  # atomic: if two processes write the same entry, the first one's is kept
        except OSError:
            if not entry.exists():
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return DatumStore(entry)


@dataclass(frozen=True)
class _Row:
    """The token and weight arrays of one datum of a row, or the problem with the row."""

    tokens: np.ndarray | None = None  # (N,) int32
    weights: np.ndarray | None = None  # (N,) float32
    truncated: bool = False
    problem: str = ""
    remedy: str | None = None
    path: str | None = None
    line: int | None = None
    too_long: bool = False
    is_further: bool = False  # True for the second and later datums of one conversation


@dataclass(frozen=True)
class _Job:
    """Picklable function that renders rows to arrays in a worker process."""

    renderer: Renderer
    max_length: int | None
    train_on_what: str
    adapter: str
    on_long: OnLong
    ignore_keys: frozenset[str]
    split: Split

    def __call__(self, rows: Sequence[RawRow]) -> tuple[list[_Row], Counter[str]]:
        ignored: Counter[str] = Counter()
        return [made for row in rows for made in self._one(row, ignored)], ignored

    def _one(self, raw: RawRow, ignored: Counter[str]) -> list[_Row]:
        try:
            conversation = parse_conversation(raw, get_adapter(self.adapter), ignored, ignore_keys=self.ignore_keys)
            rows, truncated = render_conversation(
                conversation, self.renderer, self.max_length, self.train_on_what, self.on_long, self.split, _arrays
            )
            return [_Row(*row, truncated and not number, is_further=number > 0) for number, row in enumerate(rows)]
        except DataError as error:  # send its fields, from which the error is created again
            where = (error.path if isinstance(error.path, str) else raw.path, error.line)
            return [_Row(None, None, False, error.problem, error.remedy, *where, isinstance(error, TooLong))]


def _arrays(example: Rendered, max_length: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens and weights of a datum, (N,) int32 and float32. The first weight, which has no target, is 0."""
    if example.images:
        raise RenderError("a conversation with images cannot be cached")
    tokens, weights = example.cut_tokens(max_length)
    return np.fromiter(tokens, np.int32, len(tokens)), np.concatenate(([0], weights[1:]), dtype=np.float32)


def _for_workers(job: _Job) -> _Job:
    """Return a copy of the job that a process can unpickle and run without transformers, torch and tinker."""
    from tinkerloop.renderers.core import RendererCore
    from tinkerloop.tokenizers.encoders import LazyTokenizer, encoder_of

    if not isinstance(job.renderer, RendererCore):
        return job
    renderer = copy.copy(job.renderer)
    load = partial(pickle.loads, pickle.dumps(renderer.tokenizer))
    renderer.tokenizer = LazyTokenizer(encoder_of(renderer.tokenizer), load)  # type: ignore[assignment]
    return replace(job, renderer=renderer)


_job: _Job | None = None


def _start(job: _Job) -> None:
    global _job
    _job = job


def _work(rows: Sequence[RawRow]) -> tuple[list[_Row], Counter[str]]:
    assert _job is not None
    return _job(rows)


def _render(files: Sequence[str], job: _Job, workers: int) -> Iterator[tuple[list[_Row], Counter[str]]]:
    source = iter(FileSource(files, lambda raw: raw))
    chunks = iter(lambda: list(islice(source, _CHUNK)), [])
    if workers == 0:
        yield from map(job, chunks)
        return
    # Spawn instead of fork: a process that already has threads (of torch or tokenizers) must not be forked.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(_for_workers(job),)) as pool:
        waiting = [pool.submit(_work, chunk) for chunk in islice(chunks, 2 * workers)]
        while waiting:
            done = waiting.pop(0).result()
            waiting += [pool.submit(_work, chunk) for chunk in islice(chunks, 1)]
            yield done


def _write(
    folder: Path,
    name: str,
    rendered: Iterable[tuple[list[_Row], Counter[str]]],
    on_bad: OnBad,
    on_long: OnLong,
) -> None:
    report, truncated, ends = Report(), 0, [0]
    conversations: list[int] = []  # the number of the conversation of each datum
    with open(folder / "tokens", "wb") as tokens, open(folder / "weights", "wb") as weights:
        for rows, ignored in rendered:
            report.ignored_keys += ignored
            for row in rows:
                if row.tokens is None or row.weights is None:
                    error = DataError(row.problem, path=row.path, line=row.line, remedy=row.remedy)
                    if (on_long if row.too_long else on_bad) == "error":
                        raise error
                    report.skip(error)
                    continue
                tokens.write(row.tokens.tobytes())
                weights.write(row.weights.tobytes())
                ends.append(ends[-1] + len(row.tokens))
                truncated += row.truncated
                report.used += not row.is_further
                conversations.append(report.used - 1)
    report.split = sum(count > 1 for count in Counter(conversations).values())
    if not report.used:
        raise DataError(f"no conversation could be converted to a datum: {report}")
    for array, kind in (("tokens", np.int32), ("weights", np.float32)):
        np.save(folder / f"{array}.npy", np.memmap(folder / array, dtype=kind, mode="r"))
        (folder / array).unlink()
    np.save(folder / "ends.npy", np.asarray(ends[1:], np.int64))
    np.save(folder / "conversations.npy", np.asarray(conversations, np.int64))
    about = {
        "fingerprint": name,
        "truncated": truncated,
        "used": report.used,
        "split": report.split,
        "skipped": [asdict(row) for row in report.skipped],
        "ignored_keys": report.ignored_keys,
    }
    (folder / "about.json").write_text(json.dumps(about))


def _entry_name(files: Sequence[str], job: _Job, on_bad: OnBad) -> str:
    digest = hashlib.blake2b(digest_size=16)
    options = [
        [_VERSION, __version__],
        job.renderer.fingerprint(),
        job.renderer.tags_in_replies,  # changes no tokens, but which rows are bad
        job.max_length,
        job.train_on_what,
        job.adapter,
        job.on_long,
        on_bad,
        sorted(job.ignore_keys),
        job.split,
    ]
    digest.update(json.dumps(options).encode())
    for file in files:
        with open(file, "rb") as opened:
            digest.update(hashlib.file_digest(opened, "blake2b").digest())
    return digest.hexdigest()
