"""The dtype in which matrix products are computed.

A processor without instructions for 16-bit products takes five times as long for them as for float32 products, and 25
times in the backward pass. There, 16-bit tensors are converted to float32 for a product, and its result is converted
back. Weights and activations still take half the memory.
"""

from __future__ import annotations

from functools import cache

import torch


def product_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the dtype in which products with `x` are computed: that of `x`, or float32 where that is faster."""
    return torch.float32 if x.is_cpu and not _is_fast(x.dtype) else x.dtype


@cache
def _is_fast(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return True
