"""From hidden states to log-probabilities of targets, and back, without ever holding all logits.

Rows (positions) are taken a chunk at a time: logits, log-softmax, the loss's gradient with respect to the
log-probabilities, the gradient of the logits, and from it that of the hidden states and of the adapter. So memory does
not grow with positions x vocabulary, and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tinkerloop.local.lora import LoRALinear

CHUNK_ELEMENTS = 4 * 2**20
"""Logits held at a time (16 MB in float32), unless that is fewer than MIN_ROWS rows."""
MIN_ROWS = 64


@dataclass(frozen=True)
class Head:
    """The output projection, and what the architecture does to its logits: scale, then cap * tanh(logits / cap)."""

    layer: LoRALinear
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(T, hidden size) -> (T, vocabulary), float32, outside autograd."""
        return self._cap(self.layer.product(hidden)[0].float())

    def chunks(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return rows.split(max(MIN_ROWS, CHUNK_ELEMENTS // self.layer.out_features))

    def logprobs(self, hidden: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """log p(targets) (len(rows), K) at `rows` of hidden (T, H) and targets (T, K)."""
        found = torch.empty(len(rows), targets.shape[1], device=hidden.device)
        for part, chunk in zip(self.chunks(found), self.chunks(rows), strict=True):
            logits = self.logits(hidden[chunk])
            part.copy_(logits.gather(1, targets[chunk]) - logits.logsumexp(1, keepdim=True))
        return found

    def logprobs_and_gradient(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        rows: torch.Tensor,
        gradient_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        grad_hidden: torch.Tensor | None,
    ) -> torch.Tensor:
        """As `logprobs`; and back: `gradient_of(logprobs, rows)` gives dL/dlp (n, K) of a chunk.

        The gradient of the hidden states is written to `grad_hidden` (T, H) at `rows` (if given); those of the
        projection's adapter are added to its buffers.
        """
        found = torch.empty(len(rows), targets.shape[1], device=hidden.device)
        for part, chunk in zip(self.chunks(found), self.chunks(rows), strict=True):
            x, target = hidden[chunk], targets[chunk]
            raw, x_a = self.layer.product(x)
            logits = self._cap(raw.float())
            capped = logits.clone() if self.softcap is not None else None
            top, at = logits.max(1, keepdim=True)
            chosen = logits.gather(1, target)
            p = torch.softmax(logits, 1)
            # log z = top - log p(top): exact, because p(top) >= 1 / vocabulary never underflows
            part.copy_(chosen - top + p.gather(1, at).log())
            g = gradient_of(part, chunk)  # dL/dlp (n, K)
            # d lp_k / d logit_v = [v = target_k] - p_v
            grad = p.mul_(-g.sum(1, keepdim=True)).scatter_add_(1, target, g)
            if capped is not None and self.softcap is not None:
                grad.mul_(1 - (capped / self.softcap) ** 2)
            if self.scale != 1.0:
                grad.mul_(self.scale)
            grad_x = self.layer.product_backward(grad.to(x.dtype), x, x_a, need_x=grad_hidden is not None)
            if grad_hidden is not None and grad_x is not None:
                grad_hidden[chunk] = grad_x
        return found

    def _cap(self, logits: torch.Tensor) -> torch.Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits
