"""`Checkpoint`, which decides at which boundaries to save a checkpoint, and which records to keep.

A boundary is the point between two optimizer steps. A record is a line of `checkpoints.jsonl`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from tinkerloop.errors import PlanError
from tinkerloop.loop.callback import Callback
from tinkerloop.loop.checkpoints import Record
from tinkerloop.loop.events import Boundary, Requests, Retain, Save
from tinkerloop.loop.metric_names import did_you_mean
from tinkerloop.number_checks import check_positive_number, check_whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Best:
    """An option of `Checkpoint`: keep the records with the best values of a metric, for example `Best("test/nll")`.

    Attributes:
        metric: the name of the metric.
        keep: how many records to keep.
        mode: "min" if lower values are better, "max" if higher values are better.
    """

    metric: str
    keep: int = 1
    mode: str = "min"


@dataclass
class _State:
    tokens: int = 0  # `Boundary.tokens` when the last save was requested


class Checkpoint(Callback):
    """Save a checkpoint at regular intervals and at the last boundary of the run, and delete old records.

    Of several `Checkpoint` callbacks, each deletes only records that it saved itself, and a record that two of them
    saved is kept as long as one of them keeps it.

    The checkpoint of a deleted record is deleted only if `Run` or `Checkpoints` was created with `delete`; otherwise it
    stays on the service.

    Args:
        every: the number of steps between two records.
        every_tokens: the number of input positions between two records.
        every_seconds: the number of seconds between two records. Runs differ in this interval, because it depends on
            the clock.
        keep_last: how many of the newest records to keep; None: all. The newest record is always kept.
        keep_every: also keep the records whose step is a multiple of this number.
        keep_best: also keep the best records by a metric. The metric's value is the newest one when the record was
            written, which includes evaluations at the same boundary.
        ttl_seconds: how long the service keeps each checkpoint; None: until it is deleted.
        sampler: whether weights for sampling are also saved, from which a sampling client can be opened: with every
            record (True), with none (False), or only at the last boundary of the run ("final").
    """

    evaluations = MappingProxyType({})

    def __init__(
        self,
        every: int | None = None,
        *,
        every_tokens: int | None = None,
        every_seconds: float | None = None,
        keep_last: int | None = None,
        keep_every: int | None = None,
        keep_best: Best | None = None,
        ttl_seconds: int | None = None,
        sampler: bool | Literal["final"] = False,
    ):
        counts = {"every": every, "keep_last": keep_last, "keep_every": keep_every, "ttl_seconds": ttl_seconds}
        for name, value in counts.items():
            if value is not None:
                check_whole(name, value, 1)
        for name, value in {"every_tokens": every_tokens, "every_seconds": every_seconds}.items():
            if value is not None:
                check_positive_number(name, value)
        if keep_best:
            check_whole("keep of keep_best", keep_best.keep, 1)
            if keep_best.mode not in ("min", "max"):
                raise PlanError(f'keep_best must have mode "min" or "max", got {keep_best}')
        if sampler not in (True, False, "final"):
            raise PlanError(f'sampler must be True, False or "final", got {sampler!r}')
        if keep_last is None and (keep_every or keep_best):
            raise PlanError(
                "keep_every and keep_best have no effect while keep_last=None keeps all records: set keep_last too"
            )
        self._every, self._every_tokens, self._every_seconds = every, every_tokens, every_seconds
        self._keep_last, self._keep_every, self._keep_best = keep_last, keep_every, keep_best
        self._ttl_seconds, self._sampler = ttl_seconds, sampler
        self._saved_at = time.monotonic()
        self._warned = False
        self.state = _State()

    @property
    def decides_from(self) -> Mapping[str, bool]:  # type: ignore[override]
        return {self._keep_best.metric: False} if self._keep_best else {}

    def on_start(self, step: int, steps: int | None) -> Requests:
        self._saved_at = time.monotonic()

    def on_boundary(self, boundary: Boundary) -> Requests:
        if boundary.step == 0 or not (self._due(boundary) or boundary.final):
            return None
        self.state.tokens = boundary.tokens
        self._saved_at = time.monotonic()
        return Save(self._ttl_seconds, self._sampler is True or (self._sampler == "final" and boundary.final))

    def on_save(self, record: Record) -> Requests:
        best = self._keep_best
        if best and best.metric not in record.metrics and not self._warned:
            self._warned = True
            logger.warning(
                "keep_best: the record of step %d has no metric %r, and all records are kept until one has it; its "
                "metrics are %s%s",
                record.step,
                best.metric,
                sorted(record.metrics),
                did_you_mean(best.metric, record.metrics),
            )
        return None if self._keep_last is None else Retain(self.keep)

    def keep(self, records: Sequence[Record]) -> set[int]:
        """Return the steps of the records to keep: the newest, the multiples of `keep_every`, and the best.

        Of two records with the same value, the older one is kept. A record without the metric, or with NaN, is never
        among the best; as long as no record has the metric, all are kept. The result depends only on the records, not
        on where a run was interrupted.
        """
        steps = [record.step for record in records]
        kept = set(steps if self._keep_last is None else steps[-self._keep_last :])
        if self._keep_every:
            kept |= {step for step in steps if step % self._keep_every == 0}
        if best := self._keep_best:
            sign = 1 if best.mode == "min" else -1
            if not any(best.metric in record.metrics for record in records):
                return set(steps)
            measured = [record for record in records if not math.isnan(record.metrics.get(best.metric, math.nan))]
            measured.sort(key=lambda record: sign * record.metrics[best.metric])
            kept |= {record.step for record in measured[: best.keep]}
        return kept

    def _due(self, boundary: Boundary) -> bool:
        return (
            (self._every is not None and boundary.step % self._every == 0)
            or (self._every_tokens is not None and boundary.tokens - self.state.tokens >= self._every_tokens)
            or (self._every_seconds is not None and time.monotonic() - self._saved_at >= self._every_seconds)
        )
