"""Prepare batches ahead on a thread.

The cursor is the position after the last batch that was returned. It does not count the batches that the thread has
prepared since then, so a run that resumes from it gets exactly the next batch.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tinkerloop.data.batches import Batches, refuse_sampled
from tinkerloop.errors import DataError
from tinkerloop.number_checks import check_whole

if TYPE_CHECKING:
    import tinker


def prefetch(batches: Batches, n: int = 2) -> Prefetched:
    """Return an iterator over the same batches that prepares the next ones ahead, on one thread.

    Args:
        batches: any iterator of batches with a cursor.
        n: the largest number of batches that are prepared ahead.

    Returns:
        The same batches in the same order. If preparing a batch fails, its error is raised when that batch is
        requested.

    Raises:
        DataError: `n` is no whole number of at least 1, or the batches are sampled from the weights in training.
    """
    return Prefetched(batches, n)


class Prefetched:
    """Iterator over batches that are prepared ahead on a thread, returned by `prefetch`.

    The thread starts when the first batch is requested. It ends after the last batch, or when this object is deleted.
    """

    def __init__(self, batches: Batches, n: int):
        check_whole("n, the number of batches to prepare ahead,", n, 1, error=DataError)
        refuse_sampled(batches, "prefetch")
        self._inner, self._ahead = batches, n
        self._cursor = batches.cursor
        self._work: _Worker | None = None
        self._stale = False  # True if the thread must end and the inner batches must be moved back to `_cursor`

    def __len__(self) -> int:
        return len(self._inner)  # type: ignore[arg-type]  # TypeError if the inner batches have no length

    def __iter__(self) -> Iterator[Sequence[tinker.Datum]]:
        return self

    def __next__(self) -> Sequence[tinker.Datum]:
        if self._stale:
            self.close()
            self._inner.seek(self._cursor)
            self._stale = False
        if self._work is None:
            self._work = _Worker(self._inner, self._ahead)
            weakref.finalize(self, self._work.tell_to_stop)  # so that a run that ends early leaves no thread
        before = self._cursor
        try:
            batch, cursor, error = self._work.get()
            if error is None:
                self._cursor = cursor
                return batch
        except BaseException:  # such as KeyboardInterrupt: a batch may have left the queue, and is prepared again
            self._cursor, self._stale = before, True
            self._work.tell_to_stop()  # the thread is not joined here, because its batch may take long
            raise
        ended, self._work = self._work, None
        ended.stop()  # the thread has ended, and the inner batches are still at the batch that failed
        raise error

    @property
    def sources(self) -> tuple[Batches, ...]:
        """The batches that are prepared ahead. The loop finds out whether another loop has used them."""
        return (self._inner,)

    @property
    def cursor(self) -> Any:
        return self._cursor

    def seek(self, cursor: Any) -> None:
        self.close()
        self._inner.seek(cursor)
        self._cursor, self._stale = self._inner.cursor, False

    def close(self) -> None:
        """Stop the thread and drop the batches that it has prepared. The next batch is again the one at `cursor`."""
        if self._work is not None:
            self._work.stop()
            self._work, self._stale = None, True

    def __repr__(self) -> str:
        return f"Prefetched({self._inner!r}, n={self._ahead})"

    def __str__(self) -> str:
        return f"{self._inner}; {self._ahead} ahead"


class _Worker:
    def __init__(self, batches: Batches, ahead: int):
        self._batches = batches
        self._made: queue.Queue[tuple[Any, Any, BaseException | None]] = queue.Queue()
        self._room = threading.Semaphore(ahead)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="tinkerloop-prefetch", daemon=True)
        self._thread.start()

    def get(self) -> tuple[Any, Any, BaseException | None]:
        item = self._made.get()
        self._room.release()
        return item

    def tell_to_stop(self) -> None:
        self._stopped = True
        self._room.release()

    def stop(self) -> None:
        self.tell_to_stop()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._room.acquire()
            if self._stopped:
                return
            try:
                batch = next(self._batches)
                self._made.put((batch, self._batches.cursor, None))
            except BaseException as error:  # including StopIteration; the caller raises it in place of this batch
                self._made.put((None, None, error))
                return
