"""The memory that a training run takes in the embedded engine, computed from the sizes of the model alone.

Nothing is loaded: `config.json` is enough. The numbers of the engine that are repeated here (its token budget, the
limits of its head) are compared with the engine's own in the tests, and the estimate with the measured peak of runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinkerloop.errors import MissingPackageError, PlanError
from tinkerloop.hyperparams import (
    EXPERT_MODELS,
    config_size,
    expert_count,
    language_model_config,
    lora_parameter_count,
)
from tinkerloop.number_checks import check_whole

TOKEN_BUDGET = {"cpu": 2048, "cuda": 16384}
"""The tokens that run through the model at the same time, by device type. A longer datum runs alone."""
LOGITS_AT_A_TIME = {"cpu": 4 * 2**20, "cuda": 2**27}
"""The largest number of logits that the head computes at a time, by device type."""
MIN_ROWS, TILE = 128, 2048
"""If fewer than `MIN_ROWS` rows of logits fit, the head computes `TILE` columns at a time."""
FOLD_LIMIT = 2 * 2**30
"""The largest size in bytes of float32 weights of which the engine keeps a second copy with the adapter added."""
MOST_REPLICAS = 4
"""The largest number of parts of a micro-batch that are computed at the same time on the CPU."""
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class RunMemory:
    """The memory of a training run in bytes, beside what Python, torch and the driver take for themselves.

    Attributes:
        device: "cpu" or "cuda".
        dtype: the dtype of the base weights.
        tokens: the largest number of tokens that run through the model at the same time.
        weights: the base weights, and their second copy with the adapter added where the engine keeps one.
        adapter: the adapter, or the trained copy of all weights, with its gradients and the moments of Adam.
        activations: what is kept of a forward pass for its backward pass.
        recomputed: the same with gradient checkpointing, which the engine turns on where memory is short.
        working: logits, gradients of activations, and what the allocator cannot use in between.
    """

    device: str
    dtype: str
    tokens: int
    weights: int
    adapter: int
    activations: int
    recomputed: int
    working: int

    @property
    def total(self) -> int:
        """The peak of the run."""
        return self.weights + self.adapter + self.activations + self.working

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "adapter and Adam": self.adapter,
            f"activations of {self.tokens:,} tokens": self.activations,
            "working memory": self.working,
        }
        smaller = self.total - self.activations + self.recomputed
        return (
            f"about {_size(self.total)} on {self.device} in {self.dtype} "
            f"({', '.join(f'{name} {_size(value)}' for name, value in parts.items())}); "
            f"{_size(smaller)} with gradient checkpointing, which starts where memory is short"
        )


def run_memory(
    model: str | Mapping[str, Any],
    lengths: Sequence[int],
    rank: int = 32,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    threads: int | None = None,
) -> RunMemory:
    """Estimate the memory of a training run in the embedded engine.

    The estimate is within a fifth of the measured peak on the CPU, for models of at least some ten million weights. For
    a GPU it is computed in the same way, and not yet compared with measured peaks. Memory for sampling comes on top.

        >>> qwen3 = {"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "vocab_size": 151936}
        >>> qwen3 |= {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
        >>> print(run_memory(qwen3, [700] * 8, rank=0, threads=1))  # doctest: +ELLIPSIS
        about 21.7 GB on cpu in float32 (weights 3.0 GB, adapter and Adam 12.0 GB, activations of 2,048 tokens 6.4 GB...

    Args:
        model: a local folder with config.json, a name on the Hugging Face hub, or the contents of config.json.
        lengths: the number of tokens of each datum of the largest batch.
        rank: the rank of the adapter; 0: all weights are trained.
        device: "cpu" or "cuda".
        dtype: the dtype of the base weights; None: float32 on the CPU, bfloat16 on a GPU.
        threads: the number of CPU threads that compute; None: as many as there are processors.

    Raises:
        NotImplementedError: the architecture has other layers than those that are counted here.
        PlanError: an option is out of range, or the model has no configuration, or one that lacks a size.
        MissingPackageError: the configuration must be read from the hub, and transformers is not installed.
    """
    kind = device.partition(":")[0]
    if kind not in TOKEN_BUDGET or (dtype is not None and dtype not in BYTES) or not lengths:
        raise PlanError(
            f"run_memory needs the lengths of at least one datum, a device of {', '.join(TOKEN_BUDGET)} and a dtype of "
            f"{', '.join(BYTES)}; got {len(lengths)} lengths, device={device!r} and dtype={dtype!r}"
        )
    check_whole("rank", rank, 0)
    for length in lengths:
        check_whole("each of the lengths", length, 1)
    if threads is not None:
        check_whole("threads", threads, 1)
    if rank == 0 or (dtype is None and kind == "cpu"):
        dtype = "float32"
    dtype = dtype or "bfloat16"
    config = language_model_config(model)
    adapter = lora_parameter_count(config, max(rank, 1))  # raises for layers that are not counted here
    hidden, heads = config_size(config, "hidden_size"), config_size(config, "num_attention_heads")
    layers = config_size(config, "num_hidden_layers")
    head = config.get("head_dim") or hidden // heads
    queries, keys = heads * head, (config.get("num_key_value_heads") or heads) * head
    has_experts = config["model_type"] in EXPERT_MODELS
    size, vocabulary = BYTES[dtype], config_size(config, "vocab_size")

    inner = config_size(config, "moe_intermediate_size" if has_experts else "intermediate_size")
    experts = 3 * hidden * inner * layers * expert_count(config) if has_experts else 0
    dense = layers * (2 * hidden * (queries + keys) + (0 if has_experts else 3 * hidden * inner))
    tables = hidden * vocabulary  # the size of the embedding, and of the output layer
    all_weights = dense + experts + tables * (1 if config.get("tie_word_embeddings") else 2)

    is_tiled = vocabulary > LOGITS_AT_A_TIME[kind] // MIN_ROWS
    folds = rank > 0 and dtype == "float32" and 4 * (dense + experts + tables) <= FOLD_LIMIT
    second = (dense + (0 if is_tiled else tables) if folds else 0) + (experts if rank else 0)
    stacking = experts  # loading keeps the experts twice while it stacks them

    replicas = 1 if rank == 0 or kind != "cpu" else min(threads or os.cpu_count() or 1, MOST_REPLICAS, len(lengths))
    longest = sorted(lengths)[-replicas:]
    tokens = max(min(sum(lengths), TOKEN_BUDGET[kind]), sum(longest))

    # Numbers that are kept for each token: the inputs of norm layers and products, queries, keys and values.
    attention = 3 * queries + 2 * keys + (queries + keys if config["model_type"].startswith("qwen3") else 0)
    if has_experts:
        mlp = config.get("num_experts_per_tok", 1) * (4 * inner + 2 * hidden)
    else:
        mlp = 4 * inner
    block = attention + 4 * hidden + mlp + (0 if folds else 7 * rank)
    if kind == "cpu" and dtype == "float32" and rank and not has_experts:  # `DecoderLayer` recomputes cheap results
        block -= 2 * hidden + 2 * inner
    width = hidden + (config.get("num_experts_per_tok", 1) if has_experts else 1) * inner
    logits = min(LOGITS_AT_A_TIME[kind], tokens * min(vocabulary, TILE if is_tiled else vocabulary))
    return RunMemory(
        kind,
        dtype,
        tokens,
        weights=size * (all_weights + second + stacking),
        adapter=all_weights * 16 if rank == 0 else adapter * (4 + 8 + 8 * (replicas + 1)),
        activations=size * tokens * (layers * block + hidden),
        recomputed=size * tokens * (layers * hidden + block + hidden),
        working=16 * logits + 8 * size * tokens * width,
    )


def memory_lines(
    model: str, lengths: Sequence[int], rank: int = 32, *, device: str | None = None, dtype: str | None = None
) -> list[str]:
    """Return a line of text about the memory of a run on each device, or the reason why it is not known.

    The arguments are those of `run_memory`; `device` None: a line for the CPU and one for a GPU.

        >>> memory_lines("tiny", [100])
        ["memory of the embedded engine: not known: no sizes are listed for the built-in model 'tiny'"]
    """
    try:
        devices = ("cpu", "cuda") if device is None else (device,)
        runs = [run_memory(model, lengths, rank, device=one, dtype=dtype) for one in devices]
    except (NotImplementedError, PlanError, MissingPackageError) as error:
        return [f"memory of the embedded engine: not known: {error}"]
    return [f"memory of the embedded engine: {run}" for run in runs]


def _size(count: int) -> str:
    """Return a number of bytes in words."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
