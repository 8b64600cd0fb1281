"""Gradient checkpointing: blocks recompute their activations in the backward pass instead of keeping them.

Chen et al. 2016 (arXiv:1604.06174). Results are the same to the bit; recomputing costs about a third of a step's time.
The choice is made for each request, by the memory that activations would need and the memory available. The first
decision for it is logged as a warning, the first against it as information.
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
"""The share of the available memory that activations may take."""
_TRIALS = (32, 64, 128)
"""The lengths of the sequences whose activations are measured."""
_CGROUP = Path("/sys/fs/cgroup")
_log = logging.getLogger(__name__)


class GradientCheckpointing:
    """The decision for one model. Its blocks, and copies of them, are wrapped so that they follow it.

    Args:
        module: the model.
        run: runs the forward pass over one sequence of the given length.
        forced: recompute always (True) or never (False); None: decide by memory.
    """

    def __init__(self, module: nn.Module, run: Callable[[int], object], forced: bool | None):
        self.recompute = bool(forced)
        self._run, self._forced = run, forced
        self._device = next(module.parameters()).device
        self._costs: dict[Hashable, np.poly1d] = {}
        self._fits = 0.0  # the largest need that did fit; available memory is read only for a larger one
        self._logged: set[bool] = set()
        for block in module.modules():
            if isinstance(block, GradientCheckpointingLayer):
                # partial, not a closure: in a copy of the model it holds the copy of the block
                block.forward = partial(_follow, block, self)  # type: ignore[method-assign]

    def choose(self, lengths: Sequence[int], trained: Hashable) -> None:
        """Decide for sequences of these lengths in memory at once; `trained` identifies the layers with gradients."""
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
        if self.recompute not in self._logged:
            self._logged.add(self.recompute)
            _log.log(
                logging.WARNING if self.recompute else logging.INFO,
                "gradient checkpointing %s: the activations of %d tokens take about %.3g GB, and %.3g GB "
                "of memory are available; ServiceClient(gradient_checkpointing=True or False) decides otherwise",
                "on" if self.recompute else "off",
                sum(lengths),
                needed / 1e9,
                available / 1e9,
            )

    def __deepcopy__(self, memo: dict[int, object]) -> GradientCheckpointing:
        return self

    def _measure(self) -> np.poly1d:
        """Fit the bytes kept for one sequence as a polynomial of its length: unfused attention keeps length^2."""
        self.recompute = False
        kept = [saved_bytes(lambda n=n: self._run(n)) for n in _TRIALS]
        return np.poly1d(
            [*np.polyfit(_TRIALS, kept, 2)[:2], 0.0]
        )  # without the constant part, which does not grow with the number of sequences


def _follow(block: nn.Module, choice: GradientCheckpointing, *args, **kwargs):
    inner = partial(type(block).forward, block)
    if not (choice.recompute and torch.is_grad_enabled()):
        return inner(*args, **kwargs)
    return checkpoint(inner, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def saved_bytes(forward: Callable[[], object]) -> int:
    """Return the bytes that autograd keeps for the backward pass of `forward`."""
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
    """Return the bytes that can be allocated: free GPU memory, or what the system and its container have left."""
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
