"""Threads that share a request: a lane is a replica of the model with a thread, and datums of its own.

A core is kept busy by operations on a few hundred rows; two cores that divide such operations mostly wait for each
other. So lanes run different datums side by side, and divide operations only among the threads that are left over.

What a datum contributes does not depend on its neighbours, and gradients are float32 numbers summed in float64: neither
the number of lanes nor the cut into micro-batches shows in the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")

REPLICA_TOKENS = 512
"""A micro-batch of fewer tokens wastes more in overhead than another lane gains."""


def replica_count(lengths: Sequence[int], token_budget: int) -> int:
    """How many lanes to use: each of a thread, and with its part of `token_budget`, a datum and work enough."""
    return max(
        1, min(torch.get_num_threads(), token_budget // REPLICA_TOKENS, sum(lengths) // REPLICA_TOKENS, len(lengths))
    )


def deal_datums(costs: Sequence[float], lanes: int) -> list[list[int]]:
    """Indices for each lane, in order, of about equal cost: dearest first, to the lane that has least."""
    dealt: list[list[int]] = [[] for _ in range(lanes)]
    totals = [0.0] * lanes
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        lane = totals.index(min(totals))
        dealt[lane].append(index)
        totals[lane] += costs[index]
    return [sorted(indices) for indices in dealt]


def run_replicas(lanes: int, run: Callable[[int], T]) -> list[T]:
    """`run(lane)` for every lane at the same time; raises the first lane's error once all have ended.

    The first runs on the calling thread: what that thread's heap has free, another's could not use.
    """
    if lanes == 1:
        return [run(0)]
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(lanes - 1, "tinkerloop-lane", torch.set_num_threads, (threads // lanes,)) as pool:
            others = [pool.submit(run, lane) for lane in range(1, lanes)]
            torch.set_num_threads(threads // lanes)
            first = run(0)
    finally:
        torch.set_num_threads(threads)  # what a lane sets is its own, but also what threads yet to come begin with
    return [first, *(other.result() for other in others)]
