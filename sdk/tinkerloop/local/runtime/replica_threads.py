"""Threads that share a request: each runs a replica of the model on its own part of the datums.

An operation on a few hundred rows keeps one core busy; two cores that share it mostly wait for each other. So replicas
compute different datums at the same time, and threads share one operation only if there are more threads than replicas.

A datum's gradient does not depend on the other datums, and float32 gradients are summed in float64, so neither the
number of replicas nor the packing changes the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")

REPLICA_TOKENS = 512
"""With fewer tokens than this for each replica, another replica costs more in overhead than it gains."""


def replica_count(lengths: Sequence[int], token_budget: int) -> int:
    """Return how many replicas to use: each needs a thread, a datum, and REPLICA_TOKENS of budget and of data."""
    return max(
        1, min(torch.get_num_threads(), token_budget // REPLICA_TOKENS, sum(lengths) // REPLICA_TOKENS, len(lengths))
    )


def deal_datums(costs: Sequence[float], replicas: int) -> list[list[int]]:
    """Distribute datums, by index, over replicas of about equal total cost.

    The most expensive datum goes first, each to the replica with the lowest total so far.
    `deal_datums([5, 1, 4, 2], 2)` -> `[[0, 1], [2, 3]]`.
    """
    shares: list[list[int]] = [[] for _ in range(replicas)]
    totals = [0.0] * replicas
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        replica = totals.index(min(totals))
        shares[replica].append(index)
        totals[replica] += costs[index]
    return [sorted(indices) for indices in shares]


def run_replicas(replicas: int, run: Callable[[int], T]) -> list[T]:
    """Call `run(i)` for every replica i at the same time; once all have ended, raise the first error, if any.

    Replica 0 runs on the calling thread, because memory that is free in that thread's heap serves no other thread.
    """
    if replicas == 1:
        return [run(0)]
    threads = torch.get_num_threads()
    try:
        share = threads // replicas
        with ThreadPoolExecutor(replicas - 1, "tinkerloop-replica", torch.set_num_threads, (share,)) as pool:
            others = [pool.submit(run, replica) for replica in range(1, replicas)]
            torch.set_num_threads(share)
            first = run(0)
    finally:
        torch.set_num_threads(threads)  # new threads start with the number that was set last
    return [first, *(other.result() for other in others)]
