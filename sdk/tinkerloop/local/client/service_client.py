"""The service client: tinker.ServiceClient's interface, implemented with PyTorch in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import tinker
import torch

from tinkerloop.local.argument_values import true_or_false, whole_number
from tinkerloop.local.client.async_methods import in_thread
from tinkerloop.local.client.rest_client import RestClient
from tinkerloop.local.client.sampling_client import SamplingClient
from tinkerloop.local.client.training_client import TrainingClient
from tinkerloop.local.nn.layers.lora import LoraSpec
from tinkerloop.local.nn.model_loading import TINY_MODEL
from tinkerloop.local.request_errors import bad_request
from tinkerloop.local.runtime.checkpoint_record import metadata_of
from tinkerloop.local.runtime.custom_loss import loss_handles
from tinkerloop.local.runtime.engine import Engine, open_engine
from tinkerloop.local.runtime.request_future import RequestFuture
from tinkerloop.local.unsupported import refuse, refuse_option

CloseStatus = Literal["success", "errored", "interrupted"]


@refuse
class ServiceClient:
    """Client that creates training and sampling clients. The models run in this process.

    Args:
        root: folder of the checkpoints that `tinker://` paths name; ~/.tinkerloop by default.
        device: torch device of the models; by default "cuda" if there is a GPU, else "cpu".
        dtype: dtype of the frozen base weights; by default float32 on the CPU and bfloat16 on CUDA. Trained weights
            are float32.
        skip_zero_weight: if true, cross_entropy does not compute the log-probabilities of positions whose weight is 0
            and reports them as 0. This makes training faster. It is off by default, because Tinker reports every
            position.
        train_vision: if true, adapters also train the vision tower of a model that has one; by default it is frozen.
        token_budget: the largest number of tokens in one forward pass; by default `TOKEN_BUDGET` of the device type. A
            larger budget is faster on a GPU and needs more memory.
        gradient_checkpointing: True recomputes activations in the backward pass, False keeps them. None chooses for
            each request by the memory needed and available, and logs the choice. The results are the same.
        user_metadata: attached to every training run. Metadata given when a training client is created takes
            precedence.
        project_id, display_name: accepted for compatibility and ignored; projects belong to the hosted service.
        base_url, api_key, default_headers_overrides: must be None, because there is no server.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        *,
        skip_zero_weight: bool = False,
        train_vision: bool = False,
        token_budget: int | None = None,
        gradient_checkpointing: bool | None = None,
        user_metadata: dict[str, str] | None = None,
        project_id: str | None = None,
        display_name: str | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        default_headers_overrides: Mapping[str, str] | None = None,
    ):
        remote = (base_url, api_key, default_headers_overrides) != (None, None, None)
        refuse_option(remote, "ServiceClient(base_url=...), (api_key=...)")
        self._user_metadata = metadata_of(user_metadata)
        self._train_vision = true_or_false("train_vision", train_vision, ValueError)
        skip_zero_weight = true_or_false("skip_zero_weight", skip_zero_weight, ValueError)
        if gradient_checkpointing is not None:
            gradient_checkpointing = true_or_false("gradient_checkpointing", gradient_checkpointing, ValueError)
        self._engine = open_engine(
            root,
            device,
            dtype,
            token_budget=token_budget,
            skip_zero_weight=skip_zero_weight,
            gradient_checkpointing=gradient_checkpointing,
        )

    # -- training clients ----------------------------------------------------------------------------------------

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
        """Return a client that trains a new adapter. With `rank=0` it trains a copy of every weight instead.

        `base_model` is "tiny" or "tiny-vl" (built in), a folder or a hub name. `seed=None` means seed 0, so equal calls
        give equal results.
        """
        check_optimizer(optimizer)
        spec = new_lora_spec(rank, seed, train_mlp, train_attn, train_unembed, self._train_vision)
        metadata = self._merged(user_metadata)
        return self._train(lambda engine: engine.create_run(base_model, spec, metadata))

    def create_training_client_from_state(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
        optimizer: Any = None,
    ) -> TrainingClient:
        """Return a client that starts from the weights of a checkpoint, with a new optimizer state."""
        refuse_option(weights_access_token is not None, "weights_access_token")
        check_optimizer(optimizer)
        metadata = self._merged(user_metadata)
        return self._train(lambda engine: engine.create_run_from(path, base_model, False, metadata))

    def create_training_client_from_state_with_optimizer(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
    ) -> TrainingClient:
        """Return a client that continues from a checkpoint: it loads the weights, Adam's moments and the step count."""
        refuse_option(weights_access_token is not None, "weights_access_token")
        metadata = self._merged(user_metadata)
        return self._train(lambda engine: engine.create_run_from(path, base_model, True, metadata))

    def create_custom_loss(
        self, fn: Callable[..., Any], input_ranks: Mapping[str, Literal[0, 1, 2]]
    ) -> RequestFuture[Any]:
        """Trace `fn`, a loss of one datum, and return a LossHandle for `forward_backward_custom`.

        Raises:
            ValueError: the loss cannot be traced.
        """
        future: RequestFuture[Any] = RequestFuture()
        future.set_result(loss_handles().trace_loss(fn, input_ranks, self._engine.session))
        return future

    # -- sampling clients ----------------------------------------------------------------------------------------

    def create_sampling_client(
        self,
        model_path: str | None = None,
        base_model: str | None = None,
        retry_config: Any = None,
        record_stability_info: bool = False,
    ) -> SamplingClient:
        """Return a client that samples from a sampler checkpoint, or from a base model without an adapter."""
        refuse_option(record_stability_info, "record_stability_info=True")
        if model_path is None and base_model is None:
            raise ValueError("Either model_path or base_model must be provided, got neither")
        if model_path is not None and not str(model_path).startswith("tinker://"):
            raise ValueError(f"model_path must start with 'tinker://', got {model_path!r}")
        engine = self._engine
        sampler = engine.queue.submit(lambda: engine.create_sampler(model_path, base_model)).result()
        return SamplingClient(engine, sampler)

    # -- the service itself --------------------------------------------------------------------------------------

    def create_rest_client(self) -> RestClient:
        """Return a client that lists and manages the checkpoints under the root folder of this ServiceClient."""
        return RestClient(self._engine.store.root, models=self._supported_models())

    def get_server_capabilities(self) -> tinker.types.GetServerCapabilitiesResponse:
        """Return "tiny" and the models loaded so far. "tiny-vl" and any folder or hub name can be loaded too."""
        return tinker.types.GetServerCapabilitiesResponse(supported_models=self._supported_models())

    def copy_weights(
        self, path: str, *, ttl_seconds: int | None = None, weights_access_token: str | None = None
    ) -> RequestFuture[str]:
        """Copy a checkpoint into a new training run and return the path of the copy."""
        rest = self.create_rest_client()
        return rest.copy_weights(path, ttl_seconds=ttl_seconds, weights_access_token=weights_access_token)

    def get_console_url(self) -> str:
        """Return the `file://` URL of the root folder."""
        return self._engine.store.root.as_uri()

    def get_telemetry(self) -> None:
        """Return None: the embedded engine sends no telemetry."""

    def close(self, status: CloseStatus, detail: str | None = None) -> RequestFuture[None]:
        """Execute the queued requests, then end the engine's thread. The future is done after the last request."""
        return self._engine.queue.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if kind is not None and not issubclass(kind, Exception):  # e.g. KeyboardInterrupt: drop the queued requests
            self._engine.queue.abandon()
        self.close("success" if kind is None else "errored")

    create_lora_training_client_async = in_thread(create_lora_training_client)
    create_training_client_from_state_async = in_thread(create_training_client_from_state)
    create_training_client_from_state_with_optimizer_async = in_thread(create_training_client_from_state_with_optimizer)
    create_sampling_client_async = in_thread(create_sampling_client)
    get_server_capabilities_async = in_thread(get_server_capabilities)

    def _train(self, create: Callable[[Engine], Any]) -> TrainingClient:
        engine = self._engine
        return TrainingClient(engine, engine.queue.submit(lambda: create(engine)).result())

    def _merged(self, user_metadata: dict[str, str] | None) -> dict[str, str] | None:
        if self._user_metadata is None and user_metadata is None:
            return None
        return {**(self._user_metadata or {}), **(metadata_of(user_metadata) or {})}

    def _supported_models(self) -> list[tinker.types.SupportedModel]:
        lengths = {TINY_MODEL: None, **{name: model.max_length for (name, _), model in self._engine.models.items()}}
        return [
            tinker.types.SupportedModel(model_name=name, max_context_length=length, trainable=True, sampleable=True)
            for name, length in lengths.items()
        ]


def new_lora_spec(
    rank: int,
    seed: int | None = None,
    train_mlp: bool = True,
    train_attn: bool = True,
    train_unembed: bool = True,
    train_vision: bool = False,
) -> LoraSpec:
    """Return the options of a new adapter.

    Raises:
        AssertionError: nothing would be trained.
        tinker.BadRequestError: an option is not valid.
    """
    given = {"train_mlp": train_mlp, "train_attn": train_attn, "train_unembed": train_unembed}
    flags = {name: true_or_false(name, value) for name, value in given.items()}
    assert any(flags.values()), "nothing to train: at least one of train_mlp, train_attn and train_unembed must be true"
    rank = whole_number("rank", rank, expected="a positive integer, or 0 to train every weight", least=0)
    if rank == 0 and not all(flags.values()):
        off = next(name for name, value in flags.items() if not value)
        raise bad_request(f"rank=0 trains every weight, so {off}=False has no effect; omit it, or pass a rank above 0")
    seed = 0 if seed is None else whole_number("seed", seed, expected="a whole number or None")
    return LoraSpec(rank, seed, **flags, train_vision=true_or_false("train_vision", train_vision))


def check_optimizer(config: Any) -> None:
    """Raise an error if a training client cannot be created with this optimizer."""
    dimuon, adam = (getattr(tinker, f"{name}OptimizerConfig", ()) for name in ("Dimuon", "Adam"))  # tinker >= 0.29
    refuse_option(isinstance(config, dimuon), "DimuonParams, DimuonOptimizerConfig")
    if config is not None and not isinstance(config, adam):
        raise TypeError(f"optimizer must be a tinker.AdamOptimizerConfig or None, got {type(config).__name__}")
