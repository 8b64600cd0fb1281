"""The training client: tinker.TrainingClient's interface, implemented on the embedded engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import tinker
from transformers import PreTrainedTokenizerBase

from tinkerloop.clients import CustomLoss
from tinkerloop.local.argument_values import true_or_false
from tinkerloop.local.client.async_methods import in_thread, queued
from tinkerloop.local.client.awaitable_client import AwaitableClient
from tinkerloop.local.client.sampling_client import SamplingClient
from tinkerloop.local.nn import losses
from tinkerloop.local.nn.parameters import TrainState
from tinkerloop.local.runtime.checkpoint_paths import CheckpointKind
from tinkerloop.local.runtime.checkpoint_record import metadata_of
from tinkerloop.local.runtime.custom_loss import as_function
from tinkerloop.local.runtime.engine import Engine, EngineRun, Sampler
from tinkerloop.local.runtime.forward_backward import ForwardBackward
from tinkerloop.local.runtime.request_future import RequestFuture, failed
from tinkerloop.local.runtime.request_reading import DatumArrays, read_datum
from tinkerloop.local.unsupported import refuse, refuse_option, refuse_without_field

LossFnConfig = Mapping[str, float | str] | None


@refuse
class TrainingClient(AwaitableClient):
    """Client that trains one adapter, or every weight. Requests run in the order of the calls, awaited or not."""

    def __init__(self, engine: Engine, run: EngineRun):
        self._engine, self._run = engine, run
        self.model_id = run.id

    # -- gradients -----------------------------------------------------------------------------------------------

    def forward(
        self, data: list[tinker.Datum], loss_fn: str, loss_fn_config: LossFnConfig = None
    ) -> RequestFuture[tinker.ForwardBackwardOutput]:
        """Compute log-probabilities and the loss. The accumulated gradient does not change."""
        return self._queue_forward_backward(data, loss_fn, loss_fn_config, backward=False)

    def forward_backward(
        self, data: list[tinker.Datum], loss_fn: str, loss_fn_config: LossFnConfig = None
    ) -> RequestFuture[tinker.ForwardBackwardOutput]:
        """Like `forward`, and also add the gradient of the summed loss to the accumulated gradient."""
        return self._queue_forward_backward(data, loss_fn, loss_fn_config, backward=True)

    def optim_step(
        self, optim_params: tinker.AdamParams | None = None, *, adam_params: tinker.AdamParams | None = None
    ) -> RequestFuture[tinker.OptimStepResponse]:
        """Apply the accumulated gradient with AdamW, then clear it."""
        if optim_params is not None and adam_params is not None:
            raise ValueError("both optim_params and adam_params were given; they mean the same, so pass only one")
        params = optim_params if optim_params is not None else adam_params
        refuse_option(isinstance(params, getattr(tinker, "DimuonParams", ())), "DimuonParams, DimuonOptimizerConfig")
        if not isinstance(params, tinker.AdamParams):
            raise TypeError(
                f"Expected AdamParams or OptimParamsBase, got {type(params).__name__}; pass tinker.AdamParams(...)"
            )
        return self._submit(lambda engine, run: engine.optim_step(run, params))

    def forward_backward_custom(
        self,
        data: list[tinker.Datum],
        loss_fn: CustomLoss | Any,
        *,
        loss_type_input: Literal["logprobs"] | None = None,
    ) -> RequestFuture[tinker.ForwardBackwardOutput]:
        """Like `forward_backward`, with the caller's own loss, a function or a LossHandle.

        A function is called as `loss_fn(data, logprobs)` on the engine's thread and returns the loss (a scalar tensor)
        and a dict of metrics. The loss must depend on the log-probabilities of every datum. If the function raises,
        every later request of this client raises too, because otherwise training would continue without the gradient.
        """
        if loss_type_input not in (None, "logprobs"):
            raise ValueError(f"loss_type_input must be None or 'logprobs', got {loss_type_input!r}")
        data = list(data or ())  # A copy, because the caller may change the list before the request runs.
        if not data:
            raise ValueError("No data provided: data must contain at least one datum")
        if any(isinstance(datum, tinker.Datum) and "target_tokens" not in datum.loss_fn_inputs for datum in data):
            raise ValueError(
                "target_tokens must be provided when using cross_entropy, on which custom losses are based: "
                "add target_tokens to the loss_fn_inputs of every datum"
            )
        function = as_function(loss_fn, data, self._engine.session)
        _check_callable("loss_fn", function, "a function of (data, logprobs), or a LossHandle of create_custom_loss")
        try:
            datums = [
                replace(arrays, inputs={"weights": np.zeros(arrays.targets.shape, np.float32)})
                for arrays in self._read(data, "custom")
            ]
        except (tinker.TinkerError, NotImplementedError) as error:
            return failed(error)
        # skip_zero_weight is False, because the caller's loss uses the log-probability of every position.
        work = ForwardBackward(
            "cross_entropy", losses.LOSSES["cross_entropy"], {}, True, self._engine.token_budget, False
        )
        return self._submit(lambda engine, run: engine.run_custom(run, data, datums, work, function))

    forward_async = queued(forward)
    forward_backward_custom_async = queued(forward_backward_custom)
    forward_backward_async = queued(forward_backward)
    optim_step_async = queued(optim_step)

    def _queue_forward_backward(
        self, data: list[tinker.Datum], loss_fn: str, config: LossFnConfig, backward: bool
    ) -> RequestFuture[tinker.ForwardBackwardOutput]:
        data = list(data or ())
        if not data:
            raise ValueError("No data provided: data must contain at least one datum")
        try:
            loss, complete = losses.resolve_loss(loss_fn, config)
            datums = self._read(data, loss_fn)
        except (tinker.TinkerError, NotImplementedError) as error:
            return failed(error)
        work = ForwardBackward(
            loss_fn, loss, complete, backward, self._engine.token_budget, self._engine.skip_zero_weight
        )
        return self._submit(lambda engine, run: engine.run_forward_backward(run, datums, work))

    def _read(self, data: list[tinker.Datum], loss_fn: str) -> list[DatumArrays]:
        model = self._run.model
        return [read_datum(d, loss_fn, model.vocab_size, model.max_length, i, model.vision) for i, d in enumerate(data)]

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save_state(
        self,
        name: str,
        ttl_seconds: int | None = None,
        overwrite: bool = False,
        user_metadata: dict[str, str] | None = None,
    ) -> RequestFuture[tinker.types.SaveWeightsResponse]:
        """Save the weights and the optimizer state, to continue training later.

        A gradient that `optim_step` has not applied yet is not saved; a warning is given.
        """
        return self._save("weights", tinker.types.SaveWeightsResponse, name, ttl_seconds, overwrite, user_metadata)

    def save_weights_for_sampler(
        self, name: str, ttl_seconds: int | None = None, user_metadata: dict[str, str] | None = None
    ) -> RequestFuture[tinker.types.SaveWeightsForSamplerResponse]:
        """Save only the weights, as a checkpoint for sampling."""
        response = tinker.types.SaveWeightsForSamplerResponse
        return self._save("sampler_weights", response, name, ttl_seconds, False, user_metadata)

    def load_state(
        self, path: str, weights_access_token: str | None = None
    ) -> RequestFuture[tinker.types.LoadWeightsResponse]:
        """Load only the weights of a checkpoint. This must be the client's first request."""
        refuse_option(weights_access_token is not None, "weights_access_token")
        return self._submit(lambda engine, run: engine.load_state(run, path, optimizer=False))

    def load_state_with_optimizer(
        self, path: str, weights_access_token: str | None = None
    ) -> RequestFuture[tinker.types.LoadWeightsResponse]:
        """Load the weights and the optimizer state of a checkpoint. This must be the client's first request."""
        refuse_option(weights_access_token is not None, "weights_access_token")
        return self._submit(lambda engine, run: engine.load_state(run, path, optimizer=True))

    def _save(
        self,
        kind: CheckpointKind,
        response: Callable[..., Any],
        name: str,
        ttl_seconds: int | None,
        overwrite: bool,
        user_metadata: dict[str, str] | None,
    ) -> RequestFuture[Any]:
        option = "user_metadata of a checkpoint with tinker < 0.26"
        refuse_without_field(user_metadata is not None, tinker.Checkpoint, "user_metadata", option)
        try:
            overwrite = true_or_false("overwrite", overwrite)
            metadata = metadata_of(user_metadata)  # A copy, because the caller may change the dict later.
        except tinker.BadRequestError as error:
            return failed(error)
        return self._submit(
            lambda engine, run: response(path=engine.save(run, kind, name, ttl_seconds, overwrite, metadata))
        )

    save_state_async = queued(save_state)
    save_weights_for_sampler_async = queued(save_weights_for_sampler)
    load_state_async = queued(load_state)
    load_state_with_optimizer_async = queued(load_state_with_optimizer)

    # -- sampling ------------------------------------------------------------------------------------------------

    def save_weights_and_get_sampling_client(
        self,
        name: str | None = None,
        retry_config: Any = None,
        record_stability_info: bool = False,
        kind: Literal["snapshot", "inflight"] = "snapshot",
    ) -> SamplingClient:
        """Return a client that samples from a snapshot of the weights, taken after all requests submitted so far.

        The snapshot is only kept in memory. RestClient does not list it.
        """
        refuse_option(kind != "snapshot", "kind='inflight'")
        refuse_option(record_stability_info, "record_stability_info=True")
        sampler = Sampler(self._run.model, self._run.spec, lane=self._run.lane)
        sampler.snapshot_future = self._submit(lambda engine, run: engine.snapshot(run, sampler))
        return SamplingClient(self._engine, sampler)

    def create_sampling_client(
        self, model_path: str, retry_config: Any = None, record_stability_info: bool = False
    ) -> SamplingClient:
        """Return a client that samples from the sampler checkpoint `model_path`."""
        engine = self._engine
        refuse_option(record_stability_info, "record_stability_info=True")
        if not str(model_path).startswith("tinker://"):
            raise ValueError(f"model_path must start with 'tinker://', got {model_path!r}")
        sampler = engine.queue.submit(lambda: engine.create_sampler(model_path, None)).result()
        return SamplingClient(engine, sampler)

    save_weights_and_get_sampling_client_async = queued(save_weights_and_get_sampling_client)
    create_sampling_client_async = in_thread(create_sampling_client)

    # -- information ---------------------------------------------------------------------------------------------

    def get_info(self) -> tinker.types.GetInfoResponse:
        run = self._run
        return tinker.types.GetInfoResponse(
            type="get_info",
            model_data=tinker.types.ModelData(
                arch=run.model.module.config.model_type,
                model_name=run.model.name,
                tokenizer_id=run.model.name,
            ),
            model_id=run.id,
            is_lora=run.spec.rank > 0,
            lora_rank=run.spec.rank,
            model_name=run.model.name,
        )

    get_info_async = queued(get_info)

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        return self._run.model.tokenizer

    def get_console_url(self) -> str:
        """Return the `file://` URL of the folder with this training run's checkpoints."""
        return self._engine.store.run_folder(self._run.id).as_uri()

    def get_telemetry(self) -> None:
        """Return None: the embedded engine sends no telemetry."""

    # -- access to weights: local only -----------------------------------------------------------------------------

    def apply(self, function: Callable[[TrainState], Any]) -> RequestFuture[Any]:
        """Queue a call of `function(state)`, which can read and change weights, gradients and Adam's moments.

        Only the embedded engine has this method. `state.weights.named`, `state.gradients` and `state.moments` map
        names to the tensors that training uses. Change them in place, and clone tensors before returning them. If the
        function raises, every later request of this client raises too.
        """
        _check_callable("function", function, "a function of the TrainState")
        return self._submit(lambda engine, run: engine.apply(run, function))

    def _submit(self, operation: Callable[[Engine, EngineRun], Any]) -> RequestFuture:
        engine, run = self._engine, self._run
        return engine.queue.submit(lambda: operation(engine, run), run.lane)


def _check_callable(name: str, value: Any, expected: str) -> None:
    """Raise TypeError at the call. On the engine's thread the error would end the client, as one of the function."""
    if not callable(value):
        raise TypeError(f"{name} must be {expected}; got {value!r}")
