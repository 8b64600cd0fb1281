"""The engine, which all clients created by one ServiceClient share. It implements the operations of the clients.

Every method that takes an `EngineRun` or a `Sampler` runs on the queue's thread, one at a time, in submission order.
"""

from __future__ import annotations

import os
import uuid
import warnings
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tinker
import torch

from tinkerloop.clients import CustomLoss
from tinkerloop.local.argument_values import check_unicode, whole_number
from tinkerloop.local.nn.adam import adam_step
from tinkerloop.local.nn.coverage import check_coverage
from tinkerloop.local.nn.layers.lora import LoraSpec
from tinkerloop.local.nn.model import Model
from tinkerloop.local.nn.model_loading import load_model
from tinkerloop.local.nn.parameters import TrainState, Weights
from tinkerloop.local.request_errors import CallerError, bad_request, user_error
from tinkerloop.local.runtime.allocator import keep_freed_memory
from tinkerloop.local.runtime.checkpoint_paths import CheckpointKind, parse_path
from tinkerloop.local.runtime.checkpoint_record import CheckpointInfo, expiry
from tinkerloop.local.runtime.checkpoint_store import CheckpointContents, CheckpointStore, default_root
from tinkerloop.local.runtime.custom_loss import custom_weights
from tinkerloop.local.runtime.device import usable_device
from tinkerloop.local.runtime.forward_backward import ForwardBackward, run_forward_backward
from tinkerloop.local.runtime.peft_format import adapted_modules, tensor_names
from tinkerloop.local.runtime.replica_threads import replica_count
from tinkerloop.local.runtime.request_future import RequestFuture
from tinkerloop.local.runtime.request_queue import RequestQueue
from tinkerloop.local.runtime.request_reading import DatumArrays
from tinkerloop.tokenizers.loading import absolute_name

_PURPOSES = {"weights": "training", "sampler_weights": "sampling", "external_weights": "other programs"}
"""The use of each kind of checkpoint."""
TOKEN_BUDGET = {"cpu": 2048, "cuda": 16384}
"""Mapping from device type to the default `token_budget` of `ServiceClient`."""

TensorPair = tuple[torch.Tensor, torch.Tensor]
"""A tensor of a client, and the tensor of a checkpoint to copy into it."""


@dataclass
class EngineRun:
    """State of one training client in the engine."""

    id: str
    model: Model
    spec: LoraSpec
    state: TrainState
    user_metadata: dict[str, str] | None = None
    lane: Hashable = None
    """Lane of the run's requests in the queue."""
    requests: int = 0
    """Number of executed requests. load_state is only allowed while it is 0."""
    poisoned: bool = False
    """True after the caller's own code has failed inside a request. Later requests must then not be executed."""

    def begin(self) -> None:
        """Count one request.

        Raises:
            CallerError: the caller's own code failed in an earlier request (`poisoned` is true).
        """
        if self.poisoned:
            raise CallerError(
                RuntimeError(
                    "A previous request failed in the caller's own function; this TrainingClient is poisoned and "
                    "executes no more requests. Create a new one"
                )
            )
        self.requests += 1


@dataclass
class Sampler:
    """Model and weights of one sampling client. `spec` and `weights` are None for a base model without an adapter."""

    model: Model
    spec: LoraSpec | None = None
    weights: Weights | None = None
    path: str | None = None
    snapshot_future: RequestFuture | None = None
    """Future of the request that sets `weights` to a snapshot. None for weights of a checkpoint or a base model."""
    lane: Hashable = None
    """Lane of the sampler's requests in the queue."""

    @property
    def group(self) -> Hashable:
        """Value that is equal for samplers with the same weights, whose calls can be computed together."""
        if self.snapshot_future is not None:  # the weights may not be there yet
            return id(self)
        return id(self.model), None if self.weights is None else self.weights.version


@dataclass(eq=False)
class Engine:
    """Loaded models, checkpoint store, request queue and options of one ServiceClient, or of a server."""

    store: CheckpointStore
    device: torch.device
    dtype: torch.dtype
    token_budget: int = 2048
    skip_zero_weight: bool = False
    gradient_checkpointing: bool | None = None
    folders: Mapping[str, str] | None = None
    """The only base models that can be opened: a mapping from name to folder. None: any name, folder or hub name."""
    queue: RequestQueue = field(default_factory=lambda: RequestQueue("tinkerloop-engine"))
    session: str = field(default_factory=lambda: str(uuid.uuid4()))
    run_count: int = 0
    models: dict[tuple[str, torch.dtype], Model] = field(default_factory=dict)
    _sampled: weakref.WeakValueDictionary[tuple[str, str], Weights] = field(default_factory=weakref.WeakValueDictionary)
    """Weights of the checkpoints that are sampled from, by path and time, so that several samplers share them."""

    def __post_init__(self) -> None:
        weakref.finalize(self, self.queue.abandon)  # finalize also runs at interpreter exit
        if self.device.type == "cpu":
            keep_freed_memory()

    def model(self, name: str, spec: LoraSpec | None = None) -> Model:
        """Return the base model `name`. It is loaded on first use.

        If `spec` has rank 0 (every weight is trained), the model is loaded in float32, otherwise in the engine's dtype.
        """
        name = self._absolute(name)
        if self.folders is not None and name not in self.folders:
            raise bad_request(
                f"this server has no base model {name!r}; it has {', '.join(map(repr, self.folders)) or 'none'}. Start "
                "it with --model NAME=FOLDER to add a model"
            )
        dtype = torch.float32 if spec is not None and spec.rank == 0 else self.dtype
        if (name, dtype) not in self.models:
            folder = None if self.folders is None else self.folders[name]
            self.models[name, dtype] = load_model(name, self.device, dtype, self.gradient_checkpointing, folder)
        return self.models[name, dtype]

    def create_run(
        self,
        base_model: str,
        spec: LoraSpec,
        user_metadata: dict[str, str] | None = None,
        *,
        run_id: str | None = None,
        lane: Hashable = None,
    ) -> EngineRun:
        """Return a new run. By default its id is made from the engine's session and a counter."""
        base = self.model(base_model, spec)
        check_unicode("base_model", base.name)  # a checkpoint records it
        check_coverage(base, spec)
        state = TrainState(base.new_weights(spec), torch.float32 if spec.rank == 0 else torch.float64)
        run = EngineRun(run_id or f"{self.session}:train:{self.run_count}", base, spec, state, user_metadata, lane=lane)
        self.run_count += 1
        return run

    def create_run_from(
        self,
        path: str,
        base_model: str | None,
        optimizer: bool,
        user_metadata: dict[str, str] | None,
        *,
        run_id: str | None = None,
        lane: Hashable = None,
    ) -> EngineRun:
        """Return a new run that starts with the weights of a training checkpoint.

        If `optimizer` is true, it also starts with the checkpoint's moments and step count.
        """
        record = self._training_record(path)
        if base_model is not None and self._absolute(base_model) != record.base_model:
            raise bad_request(
                f"base_model={base_model!r} does not match {path}: the checkpoint was trained on "
                f"{record.base_model!r}; pass this name or omit base_model"
            )
        run = self.create_run(record.base_model, record.lora, user_metadata, run_id=run_id, lane=lane)
        self._load(run, record, optimizer)
        return run

    def load_state(self, run: EngineRun, path: str, optimizer: bool) -> tinker.types.LoadWeightsResponse:
        if run.requests:
            raise bad_request(
                f"LoadWeights is not permitted with seq_id {run.requests}: it must be a client's first request; "
                "to load weights, create a new client with create_training_client_from_state"
            )
        record = self._training_record(path)
        if record.base_model != run.model.name or record.lora != _like(run.spec, record.lora):
            raise bad_request(
                f"cannot load {path}: it was trained on {record.base_model!r} with {record.lora}, "
                f"but this client trains {run.model.name!r} with {run.spec}"
            )
        self._load(run, record, optimizer)
        run.begin()
        return tinker.types.LoadWeightsResponse(path=path, model_id=run.id, type="load_weights")

    def run_forward_backward(
        self, run: EngineRun, datums: Sequence[DatumArrays], work: ForwardBackward
    ) -> tinker.ForwardBackwardOutput:
        run.begin()
        return self._forward_backward_or_nothing(run, datums, work)

    def optim_step(self, run: EngineRun, params: tinker.AdamParams) -> tinker.OptimStepResponse:
        run.begin()
        if not run.state.pending and run.state.gradient_is_zero:
            warnings.warn(
                "optim_step without a forward_backward since the last optim_step: Adam uses a gradient of zeros",
                stacklevel=2,
            )
        return tinker.OptimStepResponse(metrics=adam_step(run.state, params))

    def save(
        self,
        run: EngineRun,
        kind: CheckpointKind,
        name: str,
        ttl_seconds: int | None,
        overwrite: bool,
        user_metadata: dict[str, str] | None,
    ) -> str:
        run.begin()
        if not isinstance(name, str):
            raise bad_request(f"the name of a checkpoint must be a str, got {name!r}")
        path = f"tinker://{run.id}/{kind}/{name}"
        try:
            parse_path(path)
        except ValueError as error:
            raise bad_request(str(error)) from error
        state, layout = run.state, run.state.weights.layout
        moments = None
        if kind == "weights":
            if state.pending:
                warnings.warn(
                    f"the gradient of {state.pending} forward_backward calls is not saved in {path}: "
                    "optim_step has not applied it yet",
                    stacklevel=2,
                )
            moments = {"exp_avg": layout.views(state.exp_avg), "exp_avg_sq": layout.views(state.exp_avg_sq)}
        record = CheckpointInfo(
            path=path,
            base_model=run.model.name,
            lora=run.spec,
            step=state.step,
            step_tokens=state.step_tokens,
            time=datetime.now(UTC).isoformat(),
            expires_at=expiry(ttl_seconds),
            user_metadata=user_metadata,
            run_metadata=run.user_metadata,
        )
        names = tensor_names(run.model, run.spec)
        weights = {names[name]: tensor for name, tensor in state.weights.named.items()}
        targets = adapted_modules(run.model, run.spec)
        self.store.save(record, CheckpointContents(weights, moments, targets), overwrite=overwrite)
        return path

    def snapshot(self, run: EngineRun, sampler: Sampler) -> None:
        """Set the weights of `sampler` to a snapshot of the run's current weights."""
        run.begin()
        sampler.weights = run.state.weights.snapshot()

    def create_sampler(self, path: str | None, base_model: str | None, lane: Hashable = None) -> Sampler:
        if path is None:
            assert base_model is not None
            return Sampler(self.model(base_model), lane=lane)
        record = self._named(self.store.read(path))
        if parse_path(path)[1] != "sampler_weights":
            raise bad_request(
                f"{path} must point to a sampler weights checkpoint: it is a checkpoint for "
                f"{_PURPOSES[parse_path(path)[1]]}, so save one with save_weights_for_sampler"
            )
        if base_model is not None and self._absolute(base_model) != record.base_model:
            raise bad_request(
                f"base_model={base_model!r} does not match {path}: the checkpoint was trained on "
                f"{record.base_model!r}; pass this name or omit base_model"
            )
        base = self.model(record.base_model, record.lora)
        weights = self._sampled.get((path, record.time))
        if weights is None:
            weights = base.new_weights(record.lora)
            loaded = self._read_tensors(base, weights, record)
            self.store.confirm(record)
            _fill(loaded)
            weights.touch()
            self._sampled[path, record.time] = weights
        return Sampler(base, record.lora, weights, path, lane=lane)

    def apply(self, run: EngineRun, function: Callable[[TrainState], Any]) -> Any:
        """Return `function(run.state)`. Later requests use the weights, gradients and moments as `function` left them.

        Raises:
            CallerError: `function` raised; the run is then poisoned.
        """
        run.begin()
        try:
            return function(run.state)
        except BaseException as error:
            run.poisoned = True
            raise CallerError(error) from error
        finally:
            run.state.touch()

    def run_custom(
        self,
        run: EngineRun,
        data: Sequence[tinker.Datum],
        datums: Sequence[DatumArrays],
        work: ForwardBackward,
        function: CustomLoss,
    ) -> tinker.ForwardBackwardOutput:
        """Execute forward_backward with the caller's loss function L.

        A forward pass gives the log-probabilities for L. Then cross_entropy runs with the weights -dL/dlogprob.
        """
        run.begin()
        outputs = self._forward_backward(run, datums, replace(work, backward=False)).loss_fn_outputs
        try:
            total, metrics, weights = custom_weights(function, data, [output["logprobs"] for output in outputs])
        except BaseException as error:
            run.poisoned = True
            raise CallerError(error) from error
        weighted = [replace(d, inputs={"weights": w}) for d, w in zip(datums, weights, strict=True)]
        output = self._forward_backward_or_nothing(run, weighted, work)
        surrogate = output.metrics["loss:sum"]
        output.metrics.update({**metrics, "loss:sum": total, "surrogate_loss:sum": surrogate})
        return output

    def _forward_backward_or_nothing(
        self, run: EngineRun, datums: Sequence[DatumArrays], work: ForwardBackward
    ) -> tinker.ForwardBackwardOutput:
        """Execute `work` and add its gradient to the run's gradient. If `work` fails, the run's is unchanged."""
        try:
            output = self._forward_backward(run, datums, work)
        except BaseException:
            run.state.discard_scratch()
            raise
        if work.backward and not run.state.commit_scratch(sum(map(len, datums))):
            raise user_error(
                f"NonFiniteInTensor: the gradient of the {work.name} loss contains NaN or infinity; "
                "it was not added to the accumulated gradient"
            )
        return output

    def _forward_backward(
        self, run: EngineRun, datums: Sequence[DatumArrays], work: ForwardBackward
    ) -> tinker.ForwardBackwardOutput:
        """Execute `work` and write its gradients to the run's scratch buffers."""
        # Only one replica with rank 0: a parameter has one gradient tensor, and two threads cannot both add to it.
        replicas = (
            1
            if run.spec.rank == 0 or self.device.type != "cpu"
            else replica_count([len(d) for d in datums], work.token_budget)
        )
        gradients = run.state.scratch(replicas) if work.backward else [None] * replicas
        run.model.bind(run.spec, run.state.weights, gradients, run.state.step_tokens)
        return run_forward_backward(run.model, datums, work, replicas)

    def _absolute(self, name: str) -> str:
        """Return the name of a base model; for a folder that a program names, its absolute path.

        A relative path would be the key and the record of another model after a change of the working directory.
        """
        if not isinstance(name, str):
            raise bad_request(f"base_model must be a str, the name of a model or of a folder; got {name!r}")
        return name if self.folders is not None else absolute_name(name)

    def _named(self, record: CheckpointInfo) -> CheckpointInfo:
        """Return `record`, with the name in `folders` instead of a folder that has a name there.

        So a server can open a checkpoint that a program trained from the folder itself. Without `folders`, a relative
        path in a record of an older version becomes absolute.
        """
        for name, folder in (self.folders or {}).items():
            if absolute_name(folder) == absolute_name(record.base_model):
                return replace(record, base_model=name)
        return replace(record, base_model=self._absolute(record.base_model))

    def _training_record(self, path: str) -> CheckpointInfo:
        record = self._named(self.store.read(path))
        if parse_path(path)[1] != "weights":
            raise bad_request(
                f"cannot continue training from {path}: it is a checkpoint for {_PURPOSES[parse_path(path)[1]]}; "
                "pass the path of a checkpoint saved with save_state"
            )
        return record

    def _read_tensors(self, base: Model, weights: Weights, record: CheckpointInfo) -> list[TensorPair]:
        names = tensor_names(base, record.lora)
        expected = {names[name]: tensor for name, tensor in weights.named.items()}
        return _paired(expected, self.store.load_weights(record.path), record.path)

    def _load(self, run: EngineRun, record: CheckpointInfo, optimizer: bool) -> None:
        """Set the run's weights to those of a checkpoint, and with `optimizer` its moments and step count.

        All tensors are read and checked before the first is copied, so that a failure changes nothing.
        """
        state, layout = run.state, run.state.weights.layout
        loaded = self._read_tensors(run.model, state.weights, record)
        if optimizer:
            moments = self.store.load_moments(record.path)
            loaded += _paired(layout.views(state.exp_avg), moments["exp_avg"], record.path)
            loaded += _paired(layout.views(state.exp_avg_sq), moments["exp_avg_sq"], record.path)
        self.store.confirm(record)
        _fill(loaded)
        state.weights.touch()
        if optimizer:
            state.step, state.step_tokens = record.step, record.step_tokens


def open_engine(
    root: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    token_budget: int | None = None,
    **options: Any,
) -> Engine:
    """Return an engine with these options, or with the defaults that `ServiceClient` documents.

    Raises:
        TinkerloopError: torch cannot use `device`.
        ValueError: `dtype` or `token_budget` is not valid.
    """
    device = usable_device(device)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    elif isinstance(dtype, str):
        dtype = getattr(torch, dtype, dtype)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point torch dtype or its name, got {dtype!r}")
    if token_budget is None:
        token_budget = TOKEN_BUDGET.get(device.type, TOKEN_BUDGET["cpu"])
    token_budget = whole_number("token_budget", token_budget, ValueError, expected="an integer >= 1", least=1)
    store = CheckpointStore(default_root() if root is None else Path(root).expanduser().absolute())
    return Engine(store, device, dtype, token_budget, **options)


def _like(spec: LoraSpec, other: LoraSpec) -> LoraSpec:
    """Return `spec` with the seed of `other`.

    It makes two specs comparable: if they differ only in the seed, they have the same trainable tensors.
    """
    return replace(spec, seed=other.seed)


def _paired(named: Mapping[str, torch.Tensor], loaded: Mapping[str, torch.Tensor], path: str) -> list[TensorPair]:
    """Return each tensor of `named` with the tensor of `loaded` of the same name. Nothing is copied yet.

    Raises:
        tinker.BadRequestError: the names or the shapes in `named` and `loaded` differ.
    """
    if named.keys() != loaded.keys():
        differing = sorted(named.keys() ^ loaded.keys())
        raise bad_request(
            f"checkpoint {path} does not fit this base model: {len(differing)} tensors exist only in one of the two, "
            f"among them {differing[0]!r}"
        )
    for name, tensor in named.items():
        if tensor.shape != loaded[name].shape:
            shapes = f"{tuple(loaded[name].shape)}, expected {tuple(tensor.shape)}"
            raise bad_request(f"checkpoint {path} does not fit this base model: tensor {name!r} has shape {shapes}")
    return [(tensor, loaded[name]) for name, tensor in named.items()]


def _fill(pairs: Sequence[TensorPair]) -> None:
    for tensor, loaded in pairs:
        tensor.copy_(loaded)
