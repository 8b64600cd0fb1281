"""The training client: tinker.TrainingClient's interface on the embedded engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import tinker
from transformers import PreTrainedTokenizerBase

from tinkerloop.local import losses
from tinkerloop.local.engine import Engine, Run, Sampler
from tinkerloop.local.futures import Future, failed
from tinkerloop.local.inputs import read_datum
from tinkerloop.local.parameters import TrainState
from tinkerloop.local.passes import Pass
from tinkerloop.local.resolved import Resolved
from tinkerloop.local.sampling import SamplingClient
from tinkerloop.local.twins import in_thread, queued

LossConfig = Mapping[str, float | str] | None


class TrainingClient(Resolved):
    """Trains one adapter. Requests are executed strictly in the order of the calls, whether or not anyone waits."""

    def __init__(self, engine: Engine, run: Run):
        self._engine, self._run = engine, run
        self.model_id = run.id

    # -- gradients -----------------------------------------------------------------------------------------------

    def forward(
        self, data: list[tinker.Datum], loss_fn: str, loss_fn_config: LossConfig = None
    ) -> Future[tinker.ForwardBackwardOutput]:
        """Log-probabilities and loss; the gradient is neither added to nor cleared."""
        return self._pass(data, loss_fn, loss_fn_config, backward=False)

    def forward_backward(
        self, data: list[tinker.Datum], loss_fn: str, loss_fn_config: LossConfig = None
    ) -> Future[tinker.ForwardBackwardOutput]:
        """As `forward`, and add the gradient of the summed loss to what `optim_step` will apply."""
        return self._pass(data, loss_fn, loss_fn_config, backward=True)

    def optim_step(
        self, optim_params: tinker.AdamParams | None = None, *, adam_params: tinker.AdamParams | None = None
    ) -> Future[tinker.OptimStepResponse]:
        """Apply the accumulated gradient with AdamW, then clear it."""
        if optim_params is not None and adam_params is not None:
            raise ValueError("give optim_params or adam_params, not both")
        params = optim_params if optim_params is not None else adam_params
        if isinstance(params, tinker.DimuonParams):
            raise NotImplementedError("the embedded engine has no Dimuon optimizer: use AdamParams")
        if not isinstance(params, tinker.AdamParams):
            raise TypeError(f"Expected AdamParams or OptimParamsBase, got {type(params).__name__}")
        return self._submit(lambda engine, run: engine.optim_step(run, params))

    forward_async = queued(forward)
    forward_backward_async = queued(forward_backward)
    optim_step_async = queued(optim_step)

    def _pass(
        self, data: list[tinker.Datum], loss_fn: str, config: LossConfig, backward: bool
    ) -> Future[tinker.ForwardBackwardOutput]:
        if not data:
            raise ValueError("No data provided")
        model = self._run.model
        try:
            loss, complete = losses.resolve(loss_fn, config)
            examples = [
                read_datum(datum, loss_fn, model.vocab_size, model.max_length, index)
                for index, datum in enumerate(data)
            ]
        except (tinker.TinkerError, NotImplementedError) as error:
            return failed(error)
        work = Pass(loss_fn, loss, complete, backward, self._engine.token_budget, self._engine.skip_zero_weight)
        return self._submit(lambda engine, run: engine.run_pass(run, examples, work))

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save_state(
        self,
        name: str,
        ttl_seconds: int | None = None,
        overwrite: bool = False,
        user_metadata: dict[str, str] | None = None,
    ) -> Future[tinker.types.SaveWeightsResponse]:
        """Save weights and optimizer, to train on from here. A pending gradient is not saved (with a warning)."""

        def save(engine: Engine, run: Run) -> tinker.types.SaveWeightsResponse:
            path = engine.save(run, "weights", name, ttl_seconds, overwrite, user_metadata)
            return tinker.types.SaveWeightsResponse(path=path)

        return self._submit(save)

    def save_weights_for_sampler(
        self, name: str, ttl_seconds: int | None = None, user_metadata: dict[str, str] | None = None
    ) -> Future[tinker.types.SaveWeightsForSamplerResponse]:
        """Save the weights alone, to sample from."""

        def save(engine: Engine, run: Run) -> tinker.types.SaveWeightsForSamplerResponse:
            path = engine.save(run, "sampler_weights", name, ttl_seconds, False, user_metadata)
            return tinker.types.SaveWeightsForSamplerResponse(path=path)

        return self._submit(save)

    def load_state(
        self, path: str, weights_access_token: str | None = None
    ) -> Future[tinker.types.LoadWeightsResponse]:
        """Load weights alone; only as the client's first request."""
        return self._submit(lambda engine, run: engine.load_state(run, path, optimizer=False))

    def load_state_with_optimizer(
        self, path: str, weights_access_token: str | None = None
    ) -> Future[tinker.types.LoadWeightsResponse]:
        """Load weights and optimizer; only as the client's first request."""
        return self._submit(lambda engine, run: engine.load_state(run, path, optimizer=True))

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
        """A client that samples from the weights as they are after everything submitted before; never listed."""
        if kind != "snapshot":
            raise NotImplementedError(f"the embedded engine has no sampling clients of kind={kind!r}")
        sampler = Sampler(self._run.model, self._run.spec)
        self._submit(lambda engine, run: engine.snapshot(run, sampler))
        return SamplingClient(self._engine, sampler)

    def create_sampling_client(
        self, model_path: str, retry_config: Any = None, record_stability_info: bool = False
    ) -> SamplingClient:
        """A client that samples from a saved checkpoint."""
        engine = self._engine
        if not model_path.startswith("tinker://"):
            raise ValueError(f"model_path must start with 'tinker://', got {model_path!r}")
        sampler = engine.worker.submit(lambda: engine.create_sampler(model_path, None)).result()
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

    # -- the hood: local only ------------------------------------------------------------------------------------

    def apply(self, function: Callable[[TrainState], Any]) -> Future[Any]:
        """Queue `function(state)`: read or change weights, gradient and moments between two requests.

        Local only. The state's tensors are live; clone what you return.
        """
        return self._submit(lambda engine, run: engine.apply(run, function))

    def _submit(self, operation: Callable[[Engine, Run], Any]) -> Future:
        engine, run = self._engine, self._run
        return engine.worker.submit(lambda: operation(engine, run))
