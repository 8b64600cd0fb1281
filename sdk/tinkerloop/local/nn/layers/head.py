"""From hidden states to log-probabilities of targets, and back, without ever holding all logits.

Rows (positions) are taken a chunk at a time, a chunk being whole datums or a part of one: logits, log-softmax, the
loss's gradient with respect to the log-probabilities, the gradient of the logits, and from it that of the hidden states
and of the adapter. So memory does not grow with positions x vocabulary.

A small vocabulary's logits are kept from the way there for the way back. Of a large one that would leave few rows to a
chunk, and the whole projection would be read again for each; it is taken a tile of columns at a time instead, twice:
once for log z, once more for the gradient. An adapter is folded into a tile when it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from tinkerloop.local.nn.layers.lora import LoRALinear

CHUNK_ELEMENTS = {"cpu": 4 * 2**20, "cuda": 2**27}
"""Logits held at a time, by device type: 16 MB in float32, what a core's caches still help with; 512 MB on a GPU."""
MIN_CHUNK = 128
"""Rows of a chunk, at least."""
TILE = 2048
"""Columns of a tile."""
LEAST = -80.0
"""The logarithm of less than this comes from logits: float32 loses digits below exp(-87)."""


@dataclass(frozen=True)
class Head:
    """The output projection, and what the architecture does to its logits: scale, then cap * tanh(logits / cap)."""

    layer: LoRALinear
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(T, hidden size) -> (T, vocabulary), float32, outside autograd."""
        return self._cap(self.layer.product(hidden)[0].float())

    @property
    def chunk_elements(self) -> int:
        return CHUNK_ELEMENTS.get(self.layer.weight.device.type, CHUNK_ELEMENTS["cpu"])

    @property
    def tiled(self) -> bool:
        return self.layer.out_features > self.chunk_elements // MIN_CHUNK

    def chunks(self, counts: Sequence[int], columns: int | None = None) -> Iterator[tuple[slice, list[int]]]:
        """Cut rows, `counts` of each datum, into chunks: (which rows, how many of each datum).

        `columns` are held of each row (None: all logits). A datum is cut at fixed distances from its own start, so its
        results do not depend on its neighbours.
        """
        limit = max(MIN_CHUNK, self.chunk_elements // (columns or self.layer.out_features))
        start, held = 0, []
        for count in counts:
            while count:
                piece = min(count, limit)
                if sum(held) + piece > limit:
                    yield slice(start, start + sum(held)), held
                    start, held = start + sum(held), []
                held.append(piece)
                count -= piece
        if held:
            yield slice(start, start + sum(held)), held

    def logprobs(self, hidden: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """log p(targets) (len(rows), K) at `rows` of hidden (T, H) and targets (T, K)."""
        found = torch.empty(len(rows), targets.shape[1], device=hidden.device)
        for chunk, _ in self.chunks([len(rows)], TILE if self.tiled else None):
            x, target = hidden[rows[chunk]], targets[rows[chunk]]
            if self.tiled:
                chosen, log_z = self._tiled_logits(x, target)
            else:
                logits = self.logits(x)
                chosen, log_z = logits.gather(1, target), logits.logsumexp(1, keepdim=True)
            found[chunk] = chosen - log_z
        return found

    def logprobs_and_gradient(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        rows: torch.Tensor,
        counts: Sequence[int],
        gradient_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        grad_hidden: torch.Tensor | None,
    ) -> torch.Tensor:
        """As `logprobs`; and back: `gradient_of(logprobs, rows)` gives dL/dlp (n, K) of a chunk.

        `counts` says how many of the rows each datum has.

        The gradient of the hidden states is written to `grad_hidden` (T, H) at `rows` (if given); those of the
        projection's adapter are added to its buffers.
        """
        found = torch.empty(len(rows), targets.shape[1], device=hidden.device)
        for chunk, segments in self.chunks(counts, TILE if self.tiled else None):
            part, at = found[chunk], rows[chunk]
            x, target = hidden[at], targets[at]
            need_x = grad_hidden is not None
            if self.tiled:
                chosen, log_z = self._tiled_logits(x, target)
                part.copy_(chosen - log_z)
                grad_x = self._tiled_backward(x, target, log_z, gradient_of(part, at), segments, need_x)
            else:
                raw, x_a = self.layer.product(x)
                logits = self._cap(raw.float())
                p = torch.softmax(logits, 1)
                part.copy_(_log(p.gather(1, target), logits, target))
                g = gradient_of(part, at)
                grad = self._grad_logits(p, logits, target, g, g.sum(1, keepdim=True))
                grad_x = self.layer.product_backward(grad.to(x.dtype), x, x_a, segments, need_x)
            if grad_hidden is not None and grad_x is not None:
                grad_hidden[at] = grad_x
        return found

    def _tiled_logits(self, x: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits of the targets (n, K), and log z (n, 1), for x (n, H)."""
        chosen = torch.empty(target.shape, device=x.device)
        top = torch.full((len(x), 1), -math.inf, device=x.device)
        total = torch.zeros(len(x), 1, device=x.device, dtype=torch.float64)  # sum of exp(logit - top)
        for start, tile in self.layer.tiles(TILE):
            logits = self._cap(tile.product(x)[0].float())
            inside, column = _columns(target, start, tile.out_features)
            chosen = torch.where(inside, logits.gather(1, column), chosen)
            higher = torch.maximum(top, logits.amax(1, keepdim=True))
            total.mul_((top - higher).exp()).add_(logits.sub_(higher).exp_().sum(1, keepdim=True))
            top = higher
            del logits  # before those of the next tile are made
        return chosen, (top + total.log()).float()

    def _tiled_backward(
        self,
        x: torch.Tensor,
        target: torch.Tensor,
        log_z: torch.Tensor,
        g: torch.Tensor,
        segments: Sequence[int],
        need_x: bool,
    ) -> torch.Tensor | None:
        """The gradient of x, given g = dL/dlp (n, K); that of the adapter is added to its buffers."""
        grad_x = torch.zeros_like(x) if need_x else None
        total = g.sum(1, keepdim=True)
        for start, tile in self.layer.tiles(TILE):
            raw, x_a = tile.product(x)
            logits = self._cap(raw.float())
            inside, column = _columns(target, start, tile.out_features)
            p = (logits.sub_(log_z) if self.softcap is None else logits - log_z).exp_()
            grad = self._grad_logits(p, logits, column, torch.where(inside, g, 0.0), total)
            found = tile.product_backward(grad.to(x.dtype), x, x_a, segments, need_x)
            if grad_x is not None and found is not None:
                grad_x += found
            del raw, logits, p, grad  # before those of the next tile are made
        return grad_x

    def _grad_logits(
        self, p: torch.Tensor, logits: torch.Tensor, target: torch.Tensor, g: torch.Tensor, total: torch.Tensor
    ) -> torch.Tensor:
        """dL/dlogits, written over p: d lp_k / d logit_v = [v = target_k] - p_v.

        `g` (n, K) is dL/dlp of the targets among these columns, `total` (n, 1) the sum over all targets.
        """
        grad = p.mul_(-total).scatter_add_(1, target, g)
        if self.softcap is not None:
            grad.mul_(1 - (logits / self.softcap) ** 2)
        if self.scale != 1.0:
            grad.mul_(self.scale)
        return grad

    def _cap(self, logits: torch.Tensor) -> torch.Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def _columns(target: torch.Tensor, start: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which targets lie among the `width` columns from `start` on, and their places there (0 for others)."""
    inside = (target >= start) & (target < start + width)
    return inside, (target - start).masked_fill(~inside, 0)


def _log(p: torch.Tensor, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """log p (n, K) of the targets, also of such a p as a float32 does not hold."""
    found = p.log()
    held = found > LEAST
    if not held.all():
        found = torch.where(held, found, logits.gather(1, target) - logits.logsumexp(1, keepdim=True))
    return found
