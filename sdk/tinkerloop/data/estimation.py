"""An estimate of a training run before it starts: rows, tokens, steps, evaluations, and what the tokens cost.

>>> evaluations = Evaluations(evaluation_count(3, every=2), prefill_tokens=100, sampled_tokens=20)
>>> prices = Prices(train=0.4, prefill=0.1, sample=0.4)
>>> estimate = Estimate((10, 30), (4, 12), batches=1, epochs=3, evaluations=evaluations, prices=prices)
>>> estimate.steps, estimate.billed_tokens, evaluations.count, f"{estimate.price:.6f}"
(3, 120, 3, '0.000102')
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tinkerloop.datum_values import trained_positions
from tinkerloop.errors import PlanError
from tinkerloop.number_checks import check_finite_number, check_whole
from tinkerloop.strict_json import STRICT_JSON

if TYPE_CHECKING:
    import tinker

_UNKNOWN = "not known without the prices of all their tokens"
_BARS = 8  # rows of the histogram
_BAR_WIDTH = 40


@dataclass(frozen=True)
class Prices:
    """The prices of a million tokens, in the currency of the caller. None: not known.

    Attributes:
        train: of a token in a training step, also of one that is not trained.
        prefill: of a token that is only read: a prompt, or held-out data.
        sample: of a sampled token.

    Raises:
        PlanError: a price is negative or not finite.
    """

    train: float
    prefill: float | None = None
    sample: float | None = None

    def __post_init__(self) -> None:
        for name in ("train", "prefill", "sample"):
            price = getattr(self, name)
            if price is not None:
                check_finite_number(f"the price of {name} tokens", price, 0)

    def __str__(self) -> str:
        known = {"train": self.train, "prefill": self.prefill, "sample": self.sample}
        return ", ".join(f"{name} {value:g}" for name, value in known.items() if value is not None)


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of a training run.

    Attributes:
        count: the number of evaluations.
        prefill_tokens: the number of tokens that each evaluation reads: held-out datums and prompts.
        sampled_tokens: the largest number of tokens that each evaluation samples.
    """

    count: int = 0
    prefill_tokens: int = 0
    sampled_tokens: int = 0

    def __post_init__(self) -> None:
        for name in ("count", "prefill_tokens", "sampled_tokens"):
            check_whole(name, getattr(self, name), 0)

    def __str__(self) -> str:
        sampled = f", at most {self.sampled_tokens:,} sampled tokens" if self.sampled_tokens else ""
        return f"{self.count:,}, each of {self.prefill_tokens:,} tokens{sampled}"

    def price(self, prices: Prices) -> float | None:
        """Return the price of all evaluations; None if a price that they need is not known."""
        parts = [(self.prefill_tokens, prices.prefill), (self.sampled_tokens, prices.sample)]
        if any(tokens and price is None for tokens, price in parts):
            return None
        return self.count * sum(tokens * (price or 0.0) for tokens, price in parts) / 1e6


@dataclass(frozen=True)
class Estimate:
    """The size of a training run.

    Attributes:
        lengths: the number of input tokens of each datum.
        trained: the number of tokens with a weight of each datum; a token with several targets counts once.
        batches: the number of batches of one epoch.
        epochs: the number of passes over the datums.
        accumulate: batches per optimizer step.
        max_steps: the largest number of steps; None: no limit.
        truncated: the number of conversations that were cut.
        rows: a text about the rows that were used and skipped.
        evaluations: the evaluations of the run.
        prices: the prices of tokens; None: not known.
    """

    lengths: Sequence[int]
    trained: Sequence[int]
    batches: int
    epochs: int = 1
    accumulate: int = 1
    max_steps: int | None = None
    truncated: int = 0
    rows: str = ""
    evaluations: Evaluations = Evaluations()
    prices: Prices | None = None

    def __post_init__(self) -> None:
        _check_counts(batches=self.batches, epochs=self.epochs, accumulate=self.accumulate, max_steps=self.max_steps)

    @property
    def steps(self) -> int:
        """The number of optimizer steps."""
        return step_count(self.batches, self.epochs, self.accumulate, self.max_steps)

    @property
    def billed_tokens(self) -> int:
        """The number of input tokens of all steps, which a service bills; an estimate if `max_steps` ends an epoch."""
        whole = sum(self.lengths) * self.epochs
        every = step_count(self.batches, self.epochs, self.accumulate)
        return whole if self.steps == every else round(whole * self.steps / every)

    @property
    def largest_batch(self) -> Sequence[int]:
        """The lengths of the longest datums, as many as a batch has."""
        size = -(-len(self.lengths) // self.batches)
        return sorted(self.lengths)[-size:]

    @property
    def price(self) -> float | None:
        """The price of all steps, and of the evaluations where `prices` has what they need; None without `prices`."""
        if self.prices is None:
            return None
        return self._price_of_steps(self.prices) + (self.evaluations.price(self.prices) or 0.0)

    def _price_of_steps(self, prices: Prices) -> float:
        return self.billed_tokens * prices.train / 1e6

    def __str__(self) -> str:
        lengths, trained = np.asarray(self.lengths), np.asarray(self.trained)
        lines = {
            "rows": self.rows,
            "datums": f"{len(lengths):,}" + (f", {self.truncated:,} truncated" if self.truncated else ""),
            "tokens": f"{lengths.sum():,} (mean {lengths.mean():,.0f}, longest {lengths.max():,})",
            "trained tokens": f"{trained.sum():,} (mean {trained.mean():,.0f}, longest {trained.max():,})",
            "steps": f"{self.steps:,} ({self.batches:,} batches in each of {self.epochs:,} epochs)",
            "tokens of all steps": f"{self.billed_tokens:,}",
            "evaluations": str(self.evaluations) if self.evaluations.count else "",
            "price": "" if self.prices is None else self._price_text(self.prices),
        }
        width = max(map(len, lines))
        table = [f"{name:<{width}}  {value}" for name, value in lines.items() if value]
        return "\n".join([*table, "", "tokens of a datum", *histogram(self.lengths)])

    def _price_text(self, prices: Prices) -> str:
        parts = [f"steps {self._price_of_steps(prices):,.4f}"]
        if self.evaluations.count:
            evaluations = self.evaluations.price(prices)
            parts.append("evaluations " + (_UNKNOWN if evaluations is None else f"{evaluations:,.4f}"))
        return f"{self.price:,.4f} ({', '.join(parts)}) at {prices} per million tokens"


def estimate_datums(datums: Iterable[tinker.Datum], batches: int, **options: Any) -> Estimate:
    """Return the estimate of training on these datums.

    Args:
        datums: the datums of one epoch.
        batches: the number of batches of one epoch.
        options: other attributes of `Estimate`.

    Raises:
        PlanError: there are no datums or no batches.
    """
    lengths, trained = [], []
    for datum in datums:
        lengths.append(datum.model_input.length)
        trained.append(trained_positions(datum))
    if not lengths or batches < 1:
        raise PlanError(f"an estimate needs at least one datum and one batch, got {len(lengths)} and {batches}")
    return Estimate(tuple(lengths), tuple(trained), batches, **options)


def evaluation_count(steps: int, every: int | None) -> int:
    """Return how often a run of `steps` steps is evaluated: at its start, each `every` steps and at its end.

    >>> evaluation_count(100, 50), evaluation_count(101, 50), evaluation_count(100, None)
    (3, 4, 2)
    """
    _check_counts(every=every)
    return 1 + (1 if every is None else -(-steps // every))


def step_count(batches: int, epochs: int = 1, accumulate: int = 1, max_steps: int | None = None) -> int:
    """Return the number of optimizer steps of a run.

    >>> step_count(5, epochs=3, accumulate=2), step_count(5, max_steps=2)
    (8, 2)
    """
    _check_counts(epochs=epochs, accumulate=accumulate, max_steps=max_steps)
    steps = -(-batches * epochs // accumulate)
    return steps if max_steps is None else min(steps, max_steps)


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None:
            check_whole(name, count, 1)


def input_tokens(datums: Iterable[tinker.Datum]) -> int:
    """Return the number of input tokens of all datums."""
    return sum(datum.model_input.length for datum in datums)


def read_prices(file: str | Path, model: str) -> Prices:
    """Read the prices of a model from a TOML or JSON file, by the end of the name of the file.

    The file maps the name of each model to a price of training, or to a table with `train` and, if known, `prefill`
    and `sample`, each for a million tokens:

        ["Qwen/Qwen3-8B"]
        train = 0.4
        prefill = 0.13
        sample = 0.4

    Raises:
        PlanError: the file cannot be read, or has no such prices for the model.
    """
    path = Path(file)
    expected = f'expected a table for {model!r} with prices per million tokens, such as ["{model}"] and train = 0.4'
    try:
        text = path.read_text(encoding="utf-8")
        known = STRICT_JSON.decode(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise PlanError(f"cannot read the prices in {path}: {error}; {expected}") from error
    given = known.get(model) if isinstance(known, Mapping) else None
    prices = given if isinstance(given, Mapping) else {"train": given}
    names = Prices.__dataclass_fields__
    if "train" not in prices or not set(prices) <= set(names) or not all(map(_is_price, prices.values())):
        raise PlanError(f"{path} has {given!r} for {model!r}; {expected}, and optionally prefill and sample")
    return Prices(**cast("Mapping[str, float]", prices))


def _is_price(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


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
