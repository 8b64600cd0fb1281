"""The embedded service: tinker.ServiceClient's interface on PyTorch, in this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tinker
import torch

from tinkerloop.local.checkpoints import Store
from tinkerloop.local.engine import Engine, default_root
from tinkerloop.local.futures import Future, bad_request
from tinkerloop.local.lora import LoraSpec
from tinkerloop.local.sampling import SamplingClient
from tinkerloop.local.training import TrainingClient
from tinkerloop.local.twins import in_thread

TOKEN_BUDGET = {"cpu": 2048, "cuda": 16384}
"""Tokens of one micro-batch by device type. Part of the arithmetic: another value changes the rounding of sums."""


class ServiceClient:
    """Training and sampling clients on models in this process.

    Args:
        root: the folder that `tinker://` paths mean; ~/.tinkerloop by default.
        device: "cuda" if there is one, else "cpu", by default.
        dtype: of the frozen base; float32 on the CPU and bfloat16 on CUDA by default. Adapters are float32.
        skip_zero_weight: do not compute the log-probabilities of cross_entropy positions whose weight is 0; they are
            reported as 0. Faster training; off by default, because Tinker reports every position.
        token_budget: the tokens of a micro-batch (TOKEN_BUDGET by default): memory against speed.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        *,
        skip_zero_weight: bool = False,
        token_budget: int | None = None,
    ):
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(device)
        if dtype is None:
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        elif isinstance(dtype, str):
            dtype = getattr(torch, dtype)
        assert isinstance(dtype, torch.dtype)
        self._engine = Engine(
            store=Store(default_root() if root is None else Path(root).expanduser().absolute()),
            device=device,
            dtype=dtype,
            token_budget=token_budget or TOKEN_BUDGET.get(device.type, TOKEN_BUDGET["cpu"]),
            skip_zero_weight=skip_zero_weight,
        )

    def create_lora_training_client(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: dict[str, str] | None = None,
        optimizer: Any = None,
    ) -> TrainingClient:
        """A client that trains a fresh adapter; `rank=0` trains a copy of every weight instead.

        `seed=None` means 0: the same calls give the same numbers.
        """
        return self._client(
            self._create_run(
                base_model, rank, seed, train_mlp, train_attn, train_unembed, user_metadata, optimizer
            ).result()
        )

    def create_training_client_from_state(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
        optimizer: Any = None,
    ) -> TrainingClient:
        """A client that starts from a checkpoint's weights with a fresh optimizer."""
        _check_optimizer(optimizer)
        return self._client(self._create_run_from(path, base_model, False, user_metadata).result())

    def create_training_client_from_state_with_optimizer(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
    ) -> TrainingClient:
        """A client that continues a checkpoint exactly: weights, Adam's moments, step count."""
        return self._client(self._create_run_from(path, base_model, True, user_metadata).result())

    def create_sampling_client(
        self,
        model_path: str | None = None,
        base_model: str | None = None,
        retry_config: Any = None,
        record_stability_info: bool = False,
    ) -> SamplingClient:
        """A client that samples from a sampler checkpoint, or from a base model as it is."""
        return SamplingClient(self._engine, self._create_sampler(model_path, base_model).result())

    create_lora_training_client_async = in_thread(create_lora_training_client)
    create_training_client_from_state_async = in_thread(create_training_client_from_state)
    create_training_client_from_state_with_optimizer_async = in_thread(create_training_client_from_state_with_optimizer)
    create_sampling_client_async = in_thread(create_sampling_client)

    def close(self) -> None:
        """Finish what is queued and end the worker thread."""
        self._engine.worker.stop()

    def _client(self, run: Any) -> TrainingClient:
        return TrainingClient(self._engine, run)

    def _create_run(
        self,
        base_model: str,
        rank: int,
        seed: int | None,
        train_mlp: bool,
        train_attn: bool,
        train_unembed: bool,
        user_metadata: Mapping[str, str] | None,
        optimizer: Any,
    ) -> Future:
        assert train_mlp or train_attn or train_unembed, "train_mlp, train_attn or train_unembed must be true"
        _check_optimizer(optimizer)
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
            raise bad_request(f"rank must be a positive integer (or 0 to train every weight), got {rank!r}")
        spec = LoraSpec(rank, 0 if seed is None else seed, train_mlp, train_attn, train_unembed)
        engine = self._engine
        return engine.worker.submit(lambda: engine.create_run(base_model, spec, user_metadata))

    def _create_run_from(
        self, path: str, base_model: str | None, optimizer: bool, user_metadata: Mapping[str, str] | None
    ) -> Future:
        engine = self._engine
        return engine.worker.submit(lambda: engine.create_run_from(path, base_model, optimizer, user_metadata))

    def _create_sampler(self, model_path: str | None, base_model: str | None) -> Future:
        if model_path is None and base_model is None:
            raise ValueError("Either model_path or base_model must be provided")
        if model_path is not None and not model_path.startswith("tinker://"):
            raise ValueError(f"model_path must start with 'tinker://', got {model_path!r}")
        engine = self._engine
        return engine.worker.submit(lambda: engine.create_sampler(model_path, base_model))


def _check_optimizer(config: Any) -> None:
    if config is not None and not isinstance(config, tinker.AdamOptimizerConfig):
        raise NotImplementedError(f"the embedded engine has no {type(config).__name__} optimizer")
