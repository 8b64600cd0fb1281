"""An estimate of a training run before it starts: rows, tokens, steps, and what the tokens cost.

>>> estimate = Estimate(lengths=(10, 30), trained=(4, 12), batches=1, epochs=3, price_per_million=0.4)
>>> estimate.steps, estimate.billed_tokens, f"{estimate.price:.6f}"
(3, 120, '0.000048')
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tinker

_BARS = 8  # rows of the histogram
_BAR_WIDTH = 40


@dataclass(frozen=True)
class Estimate:
    """The size of a training run.

    Attributes:
        lengths: the number of input tokens of each datum.
        trained: the number of tokens with a weight of each datum.
        batches: the number of batches of one epoch.
        epochs: the number of passes over the datums.
        accumulate: batches per optimizer step.
        max_steps: the largest number of steps; None: no limit.
        truncated: the number of conversations that were cut.
        rows: a text about the rows that were used and skipped.
        price_per_million: the price of a million input tokens, in the currency of the caller; None: not known.
    """

    lengths: Sequence[int]
    trained: Sequence[int]
    batches: int
    epochs: int = 1
    accumulate: int = 1
    max_steps: int | None = None
    truncated: int = 0
    rows: str = ""
    price_per_million: float | None = None

    @property
    def steps(self) -> int:
        """The number of optimizer steps."""
        steps = -(-self.batches * self.epochs // self.accumulate)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def billed_tokens(self) -> int:
        """The number of input tokens of all steps, which a service bills; an estimate if `max_steps` ends an epoch."""
        whole = sum(self.lengths) * self.epochs
        every = -(-self.batches * self.epochs // self.accumulate)
        return whole if self.steps == every else round(whole * self.steps / every)

    @property
    def price(self) -> float | None:
        """The price of all steps; None if `price_per_million` is not known."""
        return None if self.price_per_million is None else self.billed_tokens * self.price_per_million / 1e6

    def __str__(self) -> str:
        lengths, trained = np.asarray(self.lengths), np.asarray(self.trained)
        lines = {
            "rows": self.rows,
            "datums": f"{len(lengths):,}" + (f", {self.truncated:,} truncated" if self.truncated else ""),
            "tokens": f"{lengths.sum():,} (mean {lengths.mean():,.0f}, longest {lengths.max():,})",
            "trained tokens": f"{trained.sum():,} (mean {trained.mean():,.0f}, longest {trained.max():,})",
            "steps": f"{self.steps:,} ({self.batches:,} batches in each of {self.epochs:,} epochs)",
            "tokens of all steps": f"{self.billed_tokens:,}",
            "price": ""
            if self.price is None
            else f"{self.price:,.4f} at {self.price_per_million:g} per million tokens",
        }
        width = max(map(len, lines))
        table = [f"{name:<{width}}  {value}" for name, value in lines.items() if value]
        return "\n".join([*table, "", "tokens of a datum", *histogram(self.lengths)])


def estimate_datums(datums: Iterable[tinker.Datum], batches: int, **options: object) -> Estimate:
    """Return the estimate of training on these datums.

    Args:
        datums: the datums of one epoch.
        batches: the number of batches of one epoch.
        options: other attributes of `Estimate`.
    """
    lengths, trained = [], []
    for datum in datums:
        lengths.append(datum.model_input.length)
        weights = datum.loss_fn_inputs.get("weights")
        trained.append(lengths[-1] if weights is None else int(np.count_nonzero(weights.to_numpy())))
    return Estimate(tuple(lengths), tuple(trained), batches, **options)  # type: ignore[arg-type]


def histogram(values: Sequence[int]) -> list[str]:
    """Return a histogram as lines of text.

    >>> for line in histogram([1, 1, 1, 2, 8]): print(line)
    1 - 1  ######################################## 3
    2 - 2  ############# 1
    8 - 8  ############# 1
    """
    low, high = min(values), max(values)
    width = max(1, -(-(high - low + 1) // _BARS))
    counts: dict[int, int] = {}
    for value in values:
        start = low + (value - low) // width * width
        counts[start] = counts.get(start, 0) + 1
    most, digits = max(counts.values()), len(f"{high:,}")
    return [
        f"{start:>{digits},} - {min(start + width - 1, high):>{digits},}  "
        f"{'#' * max(1, _BAR_WIDTH * counts[start] // most)} {counts[start]:,}"
        for start in sorted(counts)
    ]
