"""Gradient checkpointing: whether blocks keep their activations for the way back or compute them again.

Chen et al. 2016 (arXiv:1604.06174). Results are the same to the bit; recomputing costs about a third of a step's time.
It is decided for each micro-batch, by what its activations would take and what memory is available; the first decision
for it is logged as a warning, the first against it as information.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

SHARE = 0.8
"""Of the available memory, what activations may take."""
_TRIALS = (32, 64, 128)
"""Lengths of the sequences that are measured."""
_CGROUP = Path("/sys/fs/cgroup")
_log = logging.getLogger(__name__)


class GradientCheckpointing:
    """The choice for one model; its blocks are wrapped so that they, and their copies, follow it.

    Args:
        module: the model.
        run: the forward pass over one sequence of so many tokens.
        forced: recompute always (True) or never (False); None decides by memory.
    """

    def __init__(self, module: nn.Module, run: Callable[[int], object], forced: bool | None):
        self.recompute = bool(forced)
        self._run, self._forced = run, forced
        self._device = next(module.parameters()).device
        self._costs: dict[Hashable, np.poly1d] = {}
        self._fits = 0.0  # the most that was found to fit; memory is looked at only for more
        self._said: set[bool] = set()
        for block in module.modules():
            if isinstance(block, GradientCheckpointingLayer):
                # partial, not a closure: in a copy of the model it holds the copy of the block
                block.forward = partial(_follow, block, self)  # type: ignore[method-assign]

    def choose(self, lengths: Sequence[int], trained: Hashable) -> None:
        """Decide for a pass over sequences of these lengths; `trained` says what carries gradients."""
        if self._forced is not None:
            return
        if trained not in self._costs:
            self._costs[trained] = self._measure()
        needed = float(sum(max(0.0, self._costs[trained](length)) for length in lengths))
        if needed <= self._fits:
            self.recompute = False
            return
        available = available_memory(self._device)
        self.recompute = needed > SHARE * available
        if not self.recompute:
            self._fits = needed
        if self.recompute not in self._said:
            self._said.add(self.recompute)
            _log.log(
                logging.WARNING if self.recompute else logging.INFO,
                "gradient checkpointing %s: the activations of a micro-batch of %d tokens take about %.3g GB, %.3g GB "
                "of memory are available; ServiceClient(gradient_checkpointing=True or False) decides otherwise",
                "on" if self.recompute else "off",
                sum(lengths),
                needed / 1e9,
                available / 1e9,
            )

    def __deepcopy__(self, memo: dict[int, object]) -> GradientCheckpointing:
        return self

    def _measure(self) -> np.poly1d:
        """Bytes kept for one sequence, a polynomial of its length: attention written out keeps a square of it."""
        self.recompute = False
        kept = [saved_bytes(lambda n=n: self._run(n)) for n in _TRIALS]
        return np.poly1d([*np.polyfit(_TRIALS, kept, 2)[:2], 0.0])  # without what is kept but once


def _follow(block: nn.Module, choice: GradientCheckpointing, *args, **kwargs):
    inner = partial(type(block).forward, block)
    if not (choice.recompute and torch.is_grad_enabled()):
        return inner(*args, **kwargs)
    return checkpoint(inner, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def saved_bytes(forward: Callable[[], object]) -> int:
    """The bytes that autograd keeps for the way back from `forward`."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
        del result
    return sum(storage.nbytes() for storage in kept.values())


def available_memory(device: torch.device) -> int:
    """Bytes that can be allocated: on a GPU what is free, else what the system or its container has left."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    page = os.sysconf("SC_PAGE_SIZE")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * page // 2
    try:
        limit = int((_CGROUP / "memory.max").read_text())  # "max" where there is no limit
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        used = int((_CGROUP / "memory.current").read_text()) - int(stat["inactive_file"])
    except (OSError, ValueError, KeyError):
        return available
    return min(available, max(0, limit - used))
