"""The output projection: log-probabilities of targets and their gradient, without holding all logits at once.

Rows (positions) are processed in chunks. A chunk consists of whole datums or of a part of one. For each chunk, the code
computes the logits, the log-softmax and the loss's gradient with respect to the log-probabilities. From this it
computes the gradients with respect to the logits, the hidden states and the adapter. Memory therefore does not grow
with positions x vocabulary.

If the vocabulary is small, the logits of a chunk are kept for the backward pass. With a large vocabulary, the same
memory would hold the logits of only a few rows, and each such small chunk would read the whole weight matrix. To avoid
this, a large vocabulary is split into tiles of columns. Every tile is computed twice: once for log z, which is
log(sum(exp(logits))), and once for the gradient. A chunk of few rows keeps the logits of all tiles instead. With
`Fold.PARTS`, an adapter is added to the weights of a tile ("folded") when the tile is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from tinkerloop.local.nn.layers.lora import LoRALinear

CHUNK_ELEMENTS = {"cpu": 4 * 2**20, "cuda": 2**27}
"""The maximum number of logits held at a time, by device type.

In float32 they take 16 MB on the CPU (more would not fit a core's caches) and 512 MB on a GPU.
"""
MIN_CHUNK = 128
"""A chunk may always have this many rows, even if their logits exceed `CHUNK_ELEMENTS`."""
TILE = 2048
"""The number of columns (tokens of the vocabulary) in a tile."""
MIN_LOG_P = -80.0
"""Log-probabilities below this are computed from logits, not as log p: float32 loses digits of p below exp(-87)."""

Tile = tuple[int, LoRALinear, torch.Tensor | None, torch.Tensor]
"""The index of a tile's first column, its layer, the hidden states times A^T (None if A is folded), and its logits."""


@dataclass(frozen=True)
class Head:
    """The output projection. Logits are multiplied by `scale`, then capped: softcap * tanh(logits / softcap)."""

    layer: LoRALinear
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute float32 logits (T, vocabulary) from hidden states (T, hidden size), without support for autograd."""
        return self._cap(self.layer.product(hidden)[0].float())

    @property
    def chunk_elements(self) -> int:
        return CHUNK_ELEMENTS.get(self.layer.weight.device.type, CHUNK_ELEMENTS["cpu"])

    @property
    def tiled(self) -> bool:
        return self.layer.out_features > self.chunk_elements // MIN_CHUNK

    def chunks(self, counts: Sequence[int], columns: int | None = None) -> Iterator[tuple[slice, list[int]]]:
        """Split the rows (positions) of several datums into chunks.

        A datum is split at fixed distances from its own start, so its results do not depend on the other datums.

        Args:
            counts: the number of rows of each datum.
            columns: the number of logits that are held for each row; None: the whole vocabulary.

        Yields: for each chunk, the slice of its rows, and the number of rows of each datum in it.
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
        """Return log p (len(rows), K) of the targets (T, K), given the hidden states (T, H), at these rows only."""
        logprobs = torch.empty(len(rows), targets.shape[1], device=hidden.device)
        for chunk, _ in self.chunks([len(rows)], TILE if self.tiled else None):
            x, target = hidden[rows[chunk]], targets[rows[chunk]]
            if self.tiled:
                chosen, log_z = self._tiled_logits(x, target)
            else:
                logits = self.logits(x)
                chosen, log_z = logits.gather(1, target), logits.logsumexp(1, keepdim=True)
            logprobs[chunk] = chosen - log_z
        return logprobs

    def logprobs_and_gradient(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        rows: torch.Tensor,
        counts: Sequence[int],
        gradient_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        grad_hidden: torch.Tensor | None,
    ) -> torch.Tensor:
        """Like `logprobs`, but also computes the gradient of a loss L.

        The gradients of the adapter are added to its buffers.

        Args:
            counts: the number of rows of each datum.
            gradient_of: a function of a chunk's log-probabilities lp (n, K) and row indices (n,). It returns dL/dlp
                (n, K).
            grad_hidden: a buffer (T, H), to which the gradient with respect to `hidden` is written at `rows`. None:
                this gradient is not computed.
        """
        logprobs = torch.empty(len(rows), targets.shape[1], device=hidden.device)
        for chunk, segments in self.chunks(counts, TILE if self.tiled else None):
            part, chunk_rows = logprobs[chunk], rows[chunk]
            x, target = hidden[chunk_rows], targets[chunk_rows]
            need_x = grad_hidden is not None
            if self.tiled:
                kept = [] if self._keeps_tiles(len(x)) else None
                chosen, log_z = self._tiled_logits(x, target, kept)
                part.copy_(chosen - log_z)
                grad_x = self._tiled_backward(x, target, log_z, gradient_of(part, chunk_rows), segments, need_x, kept)
            else:
                raw, x_a = self.layer.product(x)
                logits = self._cap(raw.float())
                p = torch.softmax(logits, 1)
                part.copy_(_log(p.gather(1, target), logits, target))
                g = gradient_of(part, chunk_rows)
                grad = self._grad_logits(p, logits, target, g, g.sum(1, keepdim=True))
                grad_x = self.layer.product_backward(grad.to(x.dtype), x, x_a, segments, need_x)
            if grad_hidden is not None and grad_x is not None:
                grad_hidden[chunk_rows] = grad_x
        return logprobs

    def _keeps_tiles(self, rows: int) -> bool:
        """Return True if the logits of this number of rows may be kept for all tiles.

        Tiles that are folded when they are used are not kept: together, they would be a copy of the weights.
        """
        adapter = self.layer.adapter
        return rows * self.layer.out_features <= self.chunk_elements and not (adapter and adapter.fold_parts)

    def _tiles(self, x: torch.Tensor) -> Iterator[Tile]:
        """Yield the tiles of the vocabulary, with their logits for the hidden states x (n, H)."""
        for start, layer in self.layer.tiles(TILE):
            raw, x_a = layer.product(x)
            logits = self._cap(raw.float())
            del raw
            yield start, layer, x_a, logits
            del logits  # before the next tile allocates its own

    def _tiled_logits(
        self, x: torch.Tensor, target: torch.Tensor, kept: list[Tile] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the targets' logits (n, K), and log z (n, 1) = log(sum(exp(logits))), for hidden states x (n, H).

        If `kept` is given, the tiles are appended to it.
        """
        chosen = torch.empty(target.shape, device=x.device)
        top = torch.full((len(x), 1), -math.inf, device=x.device)
        total = torch.zeros(len(x), 1, device=x.device, dtype=torch.float64)  # sum of exp(logit - top)
        for tile in self._tiles(x):
            start, layer, _, logits = tile
            inside, column = _columns(target, start, layer.out_features)
            chosen = torch.where(inside, logits.gather(1, column), chosen)
            higher = torch.maximum(top, logits.amax(1, keepdim=True))
            if kept is not None:
                kept.append(tile)
                logits = logits.clone()
            total.mul_((top - higher).exp()).add_(logits.sub_(higher).exp_().sum(1, keepdim=True))
            top = higher
            del tile, logits
        return chosen, (top + total.log()).float()

    def _tiled_backward(
        self,
        x: torch.Tensor,
        target: torch.Tensor,
        log_z: torch.Tensor,
        g: torch.Tensor,
        segments: Sequence[int],
        need_x: bool,
        kept: list[Tile] | None,
    ) -> torch.Tensor | None:
        """Return dL/dx, given g = dL/dlp (n, K). Also add the gradients of the adapter to its buffers.

        The tiles in `kept` are not computed again, and their logits are overwritten.
        """
        grad_x = torch.zeros_like(x) if need_x else None
        total = g.sum(1, keepdim=True)
        for start, layer, x_a, logits in self._tiles(x) if kept is None else kept:
            inside, column = _columns(target, start, layer.out_features)
            p = (logits.sub_(log_z) if self.softcap is None else logits - log_z).exp_()
            grad = self._grad_logits(p, logits, column, torch.where(inside, g, 0.0), total)
            tile_grad_x = layer.product_backward(grad.to(x.dtype), x, x_a, segments, need_x)
            if grad_x is not None and tile_grad_x is not None:
                grad_x += tile_grad_x
            del logits, p, grad
        return grad_x

    def _grad_logits(
        self, p: torch.Tensor, logits: torch.Tensor, target: torch.Tensor, g: torch.Tensor, total: torch.Tensor
    ) -> torch.Tensor:
        """Compute dL/dlogits for a set of columns of the vocabulary, and overwrite `p` with it.

        The formula is d lp_k / d logit_v = [v = target_k] - p_v.

        Args:
            g: dL/dlp (n, K), with 0 for targets that are not among these columns.
            total: (n, 1), the sum of dL/dlp over all targets.
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
    """Return a mask of the targets in the `width` columns from `start` on, and their indices there (else 0)."""
    inside = (target >= start) & (target < start + width)
    return inside, (target - start).masked_fill(~inside, 0)


def _log(p: torch.Tensor, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities (n, K) of the targets, accurate even where p is too small for float32."""
    log_p = p.log()
    accurate = log_p > MIN_LOG_P
    if not accurate.all():
        log_p = torch.where(accurate, log_p, logits.gather(1, target) - logits.logsumexp(1, keepdim=True))
    return log_p
