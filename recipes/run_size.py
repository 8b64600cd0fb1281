"""The size of a run with a loop of its own, for the option `dry_run` of recipes. This is not a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tinker

from tinkerloop.data.estimation import Evaluations, Prices, estimate_datums
from tinkerloop.engine_memory import memory_lines


def print_run_size(
    config: Any,
    datums: Sequence[tinker.Datum],
    evaluations: Evaluations | None = None,
    *,
    rank: int,
    prices: Prices | None = None,
) -> None:
    """Print rows, tokens, steps, evaluations, price, and the memory of the embedded engine.

    Args:
        config: has the fields `model`, `service`, `batch_size` and `steps`, and maybe `device` and `dtype`.
        datums: the datums of one epoch, of which whole batches are used.
        evaluations: the evaluations of the run; None: there are none.
        rank: the rank of the adapter; 0: all weights are trained.
        prices: the prices of tokens; None: not known.
    """
    per_epoch = max(len(datums) // config.batch_size, 1)
    epochs = -(-config.steps // per_epoch)
    estimate = estimate_datums(
        datums,
        per_epoch,
        epochs=epochs,
        max_steps=config.steps,
        evaluations=evaluations or Evaluations(),
        prices=prices,
    )
    print(estimate)
    if config.service == "local":
        options = {name: getattr(config, name, None) for name in ("device", "dtype")}
        print("", *memory_lines(config.model, estimate.largest_batch, rank, **options), sep="\n")
