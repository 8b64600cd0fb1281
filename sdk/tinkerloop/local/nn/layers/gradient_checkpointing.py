"""Gradient checkpointing: decoder blocks recompute their activations in the backward pass instead of storing them.

The method is from Chen et al. 2016 (arXiv:1604.06174). Results are bit-identical. Recomputing costs about a third of a
step's time. Each request decides whether to recompute: it compares the memory that the activations would need with the
available memory. The first decision to recompute is logged as a warning, the first decision not to as information.
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
"""The fraction of the available memory that activations may use."""
_TRIALS = (32, 64, 128)
"""The sequence lengths at which the memory of activations is measured."""
_CGROUP = Path("/sys/fs/cgroup")
_log = logging.getLogger(__name__)


class GradientCheckpointing:
    """Decides whether the blocks of one model recompute their activations.

    The constructor wraps the blocks of the model so that they follow the decision. Copies of the model follow it, too.

    Args:
        module: the model.
        run: a function that runs the forward pass on one sequence of the given length.
        forced: True: always recompute. False: never. None: decide by the available memory.
    """

    def __init__(self, module: nn.Module, run: Callable[[int], object], forced: bool | None):
        self.recompute = bool(forced)
        self._run, self._forced = run, forced
        self._device = next(module.parameters()).device
        self._costs: dict[Hashable, np.poly1d] = {}
        self._fits = 0.0  # the most bytes that fitted; available memory is read only for more
        self._logged: set[bool] = set()
        for block in module.modules():
            if isinstance(block, GradientCheckpointingLayer):
                # A partial, not a closure: when the model is copied, the copied partial holds the copied block.
                block.forward = partial(_follow, block, self)  # type: ignore[method-assign]

    def choose(self, lengths: Sequence[int], trained: Hashable) -> None:
        """Decide whether to recompute, for sequences of these lengths that are in memory at the same time.

        `trained` identifies the set of layers that compute gradients. Memory is measured once for each such set.
        """
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
                "of memory are available; to override this, pass gradient_checkpointing=True or False to ServiceClient",
                "on" if self.recompute else "off",
                sum(lengths),
                needed / 1e9,
                available / 1e9,
            )

    def __deepcopy__(self, memo: dict[int, object]) -> GradientCheckpointing:
        return self

    def _measure(self) -> np.poly1d:
        """Return a polynomial that estimates, from the length of a sequence, the bytes that autograd keeps for it.

        Its degree is 2, because unfused attention keeps a matrix of size length^2. Where it computes medium lengths in
        blocks (torch 2.8 on a CPU, with grouped queries), it keeps less than the estimate, down to half of the matrix.
        """
        self.recompute = False
        kept = [saved_bytes(lambda n=n: self._run(n)) for n in _TRIALS]
        return np.poly1d(
            [*np.polyfit(_TRIALS, kept, 2)[:2], 0.0]
        )  # no constant term: what it stands for does not grow with the number of sequences


def _follow(block: nn.Module, choice: GradientCheckpointing, *args, **kwargs):
    inner = partial(type(block).forward, block)
    if not (choice.recompute and torch.is_grad_enabled()):
        return inner(*args, **kwargs)
    return checkpoint(inner, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def saved_bytes(forward: Callable[[], object]) -> int:
    """Return the number of bytes that autograd stores for the backward pass of `forward`."""
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
    """Return the number of bytes that can be allocated: free GPU memory, or what system and container limits leave."""
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
