"""An in-memory service for tests: ordered, exact, instant, and with faults where you want them.

`OrderedService` has the interface of `tinker.ServiceClient` as far as training loops use it. What it trains is real, if
small: a unigram language model (one logit per token, the same at every position) by cross-entropy and Adam, so losses
fall, gradients accumulate over calls, and saved states continue exactly. It does every operation at once and in order,
and lists what it has done in `operations`:

    service = OrderedService()
    client = service.create_lora_training_client(base_model="unigram")
    Loop(client, batches, steps=3).run()
    assert service.operations[:2] == [("forward_backward", 8, "cross_entropy"), ("optim_step", 1e-4)]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tinkerloop._lazy import tinker
from tinkerloop.clients import CustomLoss
from tinkerloop.datum import check_datum
from tinkerloop.errors import TinkerloopError

T = TypeVar("T")
Operation = tuple[Any, ...]
"""The name of a request, then what identifies it: its number of datums, its loss, a name, a learning rate."""


_NO_TOKENIZER = "the unigram model has no tokenizer: make datums and prompts of token ids below vocab_size"


class MissingCheckpointError(TinkerloopError, FileNotFoundError):
    """No checkpoint at this path."""


@dataclass(frozen=True)
class UnigramState:
    """The training state: logits (V,), Adam's moments (V,) and step count, and the pending gradient."""

    logits: NDArray[np.float64]
    first: NDArray[np.float64]
    second: NDArray[np.float64]
    updates: int = 0
    gradient: NDArray[np.float64] | None = None


@dataclass
class OrderedService:
    """A stand-in for `tinker.ServiceClient`, shared by all clients opened from it.

    Args:
        vocab_size: tokens of the unigram model.
        fault: called with each operation before it is done, and with `("result", operation)` before its result is
            handed over; an error that it raises is raised by the call, or by the result.
    """

    vocab_size: int = 64
    fault: Callable[[Operation], None] | None = None
    operations: list[Operation] = field(default_factory=list)
    checkpoints: dict[str, UnigramState] = field(default_factory=dict)
    """Saved states by path."""
    clients: int = 0
    """Training clients opened so far."""

    def create_lora_training_client(self, base_model: str = "unigram", **options: Any) -> OrderedClient:
        """Open a new client. The options of the real call are accepted and ignored."""
        zeros = np.zeros(self.vocab_size)
        return self._client(UnigramState(zeros, zeros, zeros))

    def create_training_client_from_state_with_optimizer(self, path: str, **options: Any) -> OrderedClient:
        """Open a client that continues from a saved state."""
        return self._client(self.checkpoint(path))

    def create_training_client_from_state(self, path: str, **options: Any) -> OrderedClient:
        """Open a client with saved weights and a new optimizer."""
        zeros = np.zeros(self.vocab_size)
        return self._client(UnigramState(self.checkpoint(path).logits, zeros, zeros))

    def create_sampling_client(
        self, model_path: str | None = None, base_model: str | None = None, **options: Any
    ) -> OrderedSampler:
        """Open a client that samples from a saved state, or from the model before any training."""
        return OrderedSampler(np.zeros(self.vocab_size) if model_path is None else self.checkpoint(model_path).logits)

    def create_rest_client(self) -> OrderedRestClient:
        """Open a client that lists and deletes saved states."""
        return OrderedRestClient(self)

    def delete(self, path: str) -> None:
        """Delete a checkpoint.

        Raises:
            MissingCheckpointError: there is none at `path`.
        """
        self.checkpoint(path)
        del self.checkpoints[path]

    def close(self, status: str, detail: str | None = None) -> Ready[None]:
        """Do nothing: there is no session to end."""
        return Ready(None)

    def __enter__(self) -> OrderedService:
        return self

    def __exit__(self, *error: object) -> None:
        self.close("success")

    def _client(self, state: UnigramState) -> OrderedClient:
        self.clients += 1
        return OrderedClient(self, f"ordered:train:{self.clients - 1}", state)

    def checkpoint(self, path: str) -> UnigramState:
        """Return the state saved at `path`.

        Raises:
            MissingCheckpointError: there is none.
        """
        if path not in self.checkpoints:
            raise MissingCheckpointError(f"no checkpoint at {path}; there are {sorted(self.checkpoints)}")
        return self.checkpoints[path]


class OrderedClient:
    """A stand-in for `tinker.TrainingClient`. `state` is public: it is what tests compare."""

    def __init__(self, service: OrderedService, model_id: str, state: UnigramState):
        self._service, self.model_id, self.state = service, model_id, state

    def forward(
        self, data: list[tinker.Datum], loss_fn: str, loss_fn_config: Mapping[str, float | str] | None = None
    ) -> Ready[tinker.ForwardBackwardOutput]:
        """Compute cross-entropy; the gradient stays as it is."""
        return self._do(("forward", len(data), loss_fn), lambda: self._cross_entropy(data, loss_fn)[0])

    def forward_backward(
        self, data: list[tinker.Datum], loss_fn: str, loss_fn_config: Mapping[str, float | str] | None = None
    ) -> Ready[tinker.ForwardBackwardOutput]:
        """Compute cross-entropy and add its gradient to the pending one."""

        def work() -> tinker.ForwardBackwardOutput:
            output, gradient = self._cross_entropy(data, loss_fn)
            self._add(gradient)
            return output

        return self._do(("forward_backward", len(data), loss_fn), work)

    def forward_backward_custom(
        self, data: list[tinker.Datum], loss_fn: CustomLoss
    ) -> Ready[tinker.ForwardBackwardOutput]:
        """Compute a loss of logprobs, differentiated by torch, then backpropagated as weighted cross-entropy."""

        def work() -> tinker.ForwardBackwardOutput:
            import torch

            output, _ = self._cross_entropy(data, "custom")
            logprobs = [torch.tensor(one["logprobs"].to_numpy(), requires_grad=True) for one in output.loss_fn_outputs]
            loss, metrics = loss_fn(data, logprobs)
            loss.backward()
            for datum, one in zip(data, logprobs, strict=True):
                if one.grad is None:
                    raise ValueError("No gradient computed for logprob tensor")
                self._add(self._gradient(_targets(datum), -one.grad.numpy()))
            return replace(output, metrics={**metrics, "loss:sum": float(loss)})

        return self._do(("forward_backward_custom", len(data), getattr(loss_fn, "__name__", "custom")), work)

    def optim_step(self, optim_params: tinker.AdamParams) -> Ready[tinker.OptimStepResponse]:
        """Apply Adam with decoupled weight decay and clipping by global norm; clear the pending gradient."""

        def work() -> tinker.OptimStepResponse:
            state, p = self.state, optim_params
            gradient = np.zeros(self._service.vocab_size) if state.gradient is None else state.gradient
            norm = float(np.linalg.norm(gradient))
            if p.grad_clip_norm > 0:
                gradient = gradient * min(1.0, p.grad_clip_norm / max(norm, 1e-300))
            updates = state.updates + 1
            first = p.beta1 * state.first + (1 - p.beta1) * gradient
            second = p.beta2 * state.second + (1 - p.beta2) * gradient**2
            update = (first / (1 - p.beta1**updates)) / (np.sqrt(second / (1 - p.beta2**updates)) + p.eps)
            logits = state.logits * (1 - p.learning_rate * p.weight_decay) - p.learning_rate * update
            self.state = UnigramState(logits, first, second, updates)
            return tinker.OptimStepResponse(metrics={"unclipped_grad_l2:mean": norm})

        return self._do(("optim_step", optim_params.learning_rate), work)

    def save_state(
        self, name: str, ttl_seconds: int | None = None, overwrite: bool = False
    ) -> Ready[tinker.types.SaveWeightsResponse]:
        """Save the state under a path of this client."""
        return self._do(("save_state", name), lambda: self._save("weights", name, overwrite))

    def save_weights_for_sampler(
        self, name: str, ttl_seconds: int | None = None
    ) -> Ready[tinker.types.SaveWeightsForSamplerResponse]:
        """Save the weights under a path of this client."""
        return self._do(("save_weights_for_sampler", name), lambda: self._save("sampler_weights", name, False))

    def save_weights_and_get_sampling_client(self) -> OrderedSampler:
        """Open a client that samples from the weights as they are now."""
        self._note(("save_weights_and_get_sampling_client",))
        return OrderedSampler(self.state.logits)

    def _save(self, kind: str, name: str, overwrite: bool) -> Any:  # the response of either kind of save
        path = f"tinker://{self.model_id}/{kind}/{name}"
        if path in self._service.checkpoints and not overwrite:
            raise FileExistsError(f"Checkpoint {name!r} already exists; pass overwrite=True")
        self._service.checkpoints[path] = replace(self.state, gradient=None)
        return tinker.types.SaveWeightsResponse(path=path)

    def _cross_entropy(
        self, data: Sequence[tinker.Datum], loss_fn: str
    ) -> tuple[tinker.ForwardBackwardOutput, NDArray[np.float64]]:
        if not data:
            raise ValueError("No data provided")
        if loss_fn not in ("cross_entropy", "custom"):
            raise NotImplementedError(f"the ordered service computes cross_entropy and custom losses, not {loss_fn!r}")
        total, gradient, outputs = [], np.zeros(self._service.vocab_size), []
        logprobs = _log_softmax(self.state.logits)
        for datum in data:
            check_datum(datum, loss_fn=loss_fn, vocab_size=self._service.vocab_size, allow_zero_weight=True)
            targets, one = _targets(datum), {"logprobs": logprobs[_targets(datum)]}
            if loss_fn == "cross_entropy":
                weights = datum.loss_fn_inputs["weights"].to_numpy().astype(np.float64)
                one["elementwise_loss"] = -one["logprobs"] * weights
                total.append(float(one["elementwise_loss"].sum()))
                gradient += self._gradient(targets, weights)
            outputs.append({name: tinker.TensorData.from_numpy(v.astype(np.float32)) for name, v in one.items()})
        output = tinker.ForwardBackwardOutput(
            loss_fn_output_type="ArrayRecord", loss_fn_outputs=outputs, metrics={"loss:sum": math.fsum(total)}
        )
        return output, gradient

    def _gradient(self, targets: NDArray[np.int64], weights: NDArray[Any]) -> NDArray[np.float64]:
        """d/dlogits of sum(-w * logp[target]) = sum(w) * softmax - sum of w at each target."""
        at_targets = np.bincount(targets.ravel(), weights.ravel(), minlength=self._service.vocab_size)
        return weights.sum(dtype=np.float64) * np.exp(_log_softmax(self.state.logits)) - at_targets

    def load_state(self, path: str) -> Ready[tinker.types.LoadWeightsResponse]:
        """Load a saved state's weights, with a new optimizer."""
        return self._do(("load_state", path), lambda: self._restore(path, optimizer=False))

    def load_state_with_optimizer(self, path: str) -> Ready[tinker.types.LoadWeightsResponse]:
        """Load a saved state."""
        return self._do(("load_state_with_optimizer", path), lambda: self._restore(path, optimizer=True))

    def create_sampling_client(self, model_path: str, **options: Any) -> OrderedSampler:
        """Open a client that samples from a saved state."""
        return self._service.create_sampling_client(model_path)

    def get_info(self) -> tinker.types.GetInfoResponse:
        """Return the name of the model."""
        data = tinker.types.ModelData(model_name="unigram")
        return tinker.types.GetInfoResponse(model_data=data, model_id=self.model_id, model_name="unigram")

    def get_tokenizer(self) -> Any:
        """Raise NotImplementedError: the unigram model knows no text."""
        raise NotImplementedError(_NO_TOKENIZER)

    def _restore(self, path: str, *, optimizer: bool) -> tinker.types.LoadWeightsResponse:
        state, zeros = self._service.checkpoint(path), np.zeros(self._service.vocab_size)
        self.state = state if optimizer else UnigramState(state.logits, zeros, zeros)
        return tinker.types.LoadWeightsResponse(path=path)

    def _add(self, gradient: NDArray[np.float64]) -> None:
        pending = self.state.gradient
        self.state = replace(self.state, gradient=gradient if pending is None else pending + gradient)

    def _note(self, operation: Operation) -> None:
        if self._service.fault is not None:
            self._service.fault(operation)
        self._service.operations.append(operation)

    def _do(self, operation: Operation, work: Callable[[], T]) -> Ready[T]:
        self._note(operation)
        try:
            return Ready(work(), asked=lambda: self._note(("result", operation)))
        except Exception as error:
            return Ready(error=error, asked=lambda: self._note(("result", operation)))


class Ready(Generic[T]):
    """A future whose work is done. `asked` is called each time its value is asked for."""

    def __init__(self, value: Any = None, *, error: Exception | None = None, asked: Callable[[], None] = lambda: None):
        self._value, self._error, self._asked = value, error, asked

    def result(self, timeout: float | None = None) -> T:
        """Return the value, or raise the error."""
        self._asked()
        if self._error is not None:
            raise self._error
        return self._value

    def done(self) -> bool:
        """Return true: the work is done."""
        return True

    async def result_async(self, timeout: float | None = None) -> T:
        """Return the value, or raise the error."""
        return self.result()

    def __await__(self) -> Generator[Any, Any, T]:
        return self.result_async().__await__()


class OrderedSampler:
    """A stand-in for `tinker.SamplingClient`: draws tokens from the unigram model's weights at its creation."""

    def __init__(self, logits: NDArray[np.float64]):
        self.logits = logits

    def sample(
        self, prompt: tinker.ModelInput, num_samples: int, sampling_params: tinker.SamplingParams, **options: Any
    ) -> Ready[tinker.SampleResponse]:
        """Draw `max_tokens` tokens each; greedy at temperature 0, else by `seed`."""
        logprobs = _log_softmax(self.logits)
        rng = np.random.default_rng(sampling_params.seed or 0)
        length = sampling_params.max_tokens or 16
        sequences = []
        for index in range(num_samples):
            if sampling_params.temperature == 0:
                tokens = np.full(length, int(np.argmax(logprobs)))
            else:
                tokens = rng.choice(len(logprobs), size=length, p=np.exp(logprobs))
            sequences.append(
                tinker.SampledSequence(
                    stop_reason="length",
                    sequence_id=str(index),
                    tokens_np=tokens.astype(np.int32),
                    logprobs_np=logprobs[tokens].astype(np.float32),
                )
            )
        return Ready(tinker.SampleResponse(sequences=sequences))

    def compute_logprobs(self, prompt: tinker.ModelInput, **options: Any) -> Ready[list[float | None]]:
        """Compute the log-probability of each token of `prompt`; None for the first."""
        logprobs = _log_softmax(self.logits)[prompt.to_ints()].tolist()
        return Ready([None, *logprobs[1:]])

    def get_tokenizer(self) -> Any:
        """Raise NotImplementedError: the unigram model knows no text."""
        raise NotImplementedError(_NO_TOKENIZER)

    def get_base_model(self) -> str:
        """Return the name of the model."""
        return "unigram"


class OrderedRestClient:
    """A stand-in for `tinker.RestClient`, as far as checkpoints go. Its calls are not in `operations`."""

    def __init__(self, service: OrderedService):
        self._service = service

    def list_checkpoints(self, training_run_id: str) -> Ready[tinker.types.CheckpointsListResponse]:
        """List the checkpoints of one training client, the newest first."""
        paths = [path for path in self._service.checkpoints if path.startswith(f"tinker://{training_run_id}/")]
        return self._listed(paths[::-1])

    def list_user_checkpoints(self, limit: int = 100, offset: int = 0) -> Ready[tinker.types.CheckpointsListResponse]:
        """List all checkpoints, the newest first."""
        return self._listed(list(self._service.checkpoints)[::-1][offset : offset + limit])

    def delete_checkpoint(self, training_run_id: str, checkpoint_id: str) -> Ready[None]:
        """Delete a checkpoint by its id, such as "weights/000010"."""
        return self.delete_checkpoint_from_tinker_path(f"tinker://{training_run_id}/{checkpoint_id}")

    def delete_checkpoint_from_tinker_path(self, tinker_path: str) -> Ready[None]:
        """Delete a checkpoint."""
        return self._answer(lambda: self._service.delete(tinker_path))

    def set_checkpoint_ttl_from_tinker_path(self, tinker_path: str, ttl_seconds: int | None) -> Ready[None]:
        """Do nothing if there is such a checkpoint: nothing expires here."""
        return self._answer(lambda: self._service.checkpoint(tinker_path) and None)

    def _answer(self, work: Callable[[], None]) -> Ready[None]:
        try:
            return Ready(work())
        except MissingCheckpointError as error:
            return Ready(error=error)

    def _listed(self, paths: Sequence[str]) -> Ready[tinker.types.CheckpointsListResponse]:
        checkpoints = []
        for path in paths:
            parsed = tinker.types.ParsedCheckpointTinkerPath.from_tinker_path(path)
            checkpoints.append(
                tinker.Checkpoint(
                    checkpoint_id=parsed.checkpoint_id,
                    checkpoint_type=parsed.checkpoint_type,
                    time=datetime.fromtimestamp(0, UTC),  # an arbitrary time, so that equal runs give equal answers
                    tinker_path=path,
                )
            )
        return Ready(tinker.types.CheckpointsListResponse(checkpoints=checkpoints))


def _targets(datum: tinker.Datum) -> NDArray[np.int64]:
    return datum.loss_fn_inputs["target_tokens"].to_numpy()


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())
