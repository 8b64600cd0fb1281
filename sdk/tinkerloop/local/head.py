"""From hidden states to log-probabilities of targets, and back, without ever holding all logits.

Rows (positions) are taken a chunk at a time, a chunk being whole datums or a part of one: logits, log-softmax, the
loss's gradient with respect to the log-probabilities, the gradient of the logits, and from it that of the hidden states
and of the adapter. So memory does not grow with positions x vocabulary, and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from tinkerloop.local.lora import LoRALinear

CHUNK_ELEMENTS = 4 * 2**20
"""Logits held at a time (16 MB in float32), unless that is fewer than MIN_CHUNK rows."""
MIN_CHUNK = 64


@dataclass(frozen=True)
class Head:
    """The output projection, and what the architecture does to its logits: scale, then cap * tanh(logits / cap)."""

    layer: LoRALinear
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(T, hidden size) -> (T, vocabulary), float32, outside autograd."""
        return self._cap(self.layer.product(hidden)[0].float())

    def chunks(self, counts: Sequence[int]) -> Iterator[tuple[slice, list[int]]]:
        """Cut rows, `counts` of each datum, into chunks: (which rows, how many of each datum).

        A datum is cut at fixed distances from its own start, so its results do not depend on its neighbours.
        """
        limit = max(MIN_CHUNK, CHUNK_ELEMENTS // self.layer.out_features)
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
        for chunk, _ in self.chunks([len(rows)]):
            at = rows[chunk]
            logits = self.logits(hidden[at])
            found[chunk] = logits.gather(1, targets[at]) - logits.logsumexp(1, keepdim=True)
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
        for chunk, segments in self.chunks(counts):
            part, at = found[chunk], rows[chunk]
            x, target = hidden[at], targets[at]
            raw, x_a = self.layer.product(x)
            logits = self._cap(raw.float())
            capped = logits.clone() if self.softcap is not None else None
            top, likeliest = logits.max(1, keepdim=True)
            chosen = logits.gather(1, target)
            p = torch.softmax(logits, 1)
            # log z = top - log p(top): exact, because p(top) >= 1 / vocabulary never underflows
            part.copy_(chosen - top + p.gather(1, likeliest).log())
            g = gradient_of(part, at)  # dL/dlp (n, K)
            # d lp_k / d logit_v = [v = target_k] - p_v
            grad = p.mul_(-g.sum(1, keepdim=True)).scatter_add_(1, target, g)
            if capped is not None and self.softcap is not None:
                grad.mul_(1 - (capped / self.softcap) ** 2)
            if self.scale != 1.0:
                grad.mul_(self.scale)
            grad_x = self.layer.product_backward(grad.to(x.dtype), x, x_a, segments, need_x=grad_hidden is not None)
            if grad_hidden is not None and grad_x is not None:
                grad_hidden[at] = grad_x
        return found

    def _cap(self, logits: torch.Tensor) -> torch.Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits
