"""An in-memory replacement for the service, for tests: fast, deterministic, and able to raise errors on purpose.

`OrderedService` has the methods of `tinker.ServiceClient` that training loops use. It really trains a small model: a
unigram language model (one logit per token, the same at every position), with the built-in losses and Adam. So losses
fall, gradients accumulate over calls, and training from a saved state continues exactly. It executes each operation
immediately, in the order of the calls, and appends it to the list `operations`:

    service = OrderedService()
    client = service.create_lora_training_client(base_model="unigram")
    Loop(client, batches, steps=3).run()
    assert service.operations[:2] == [("forward_backward", 8, "cross_entropy"), ("optim_step", 1e-4)]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tinkerloop._lazy import tinker
from tinkerloop.client_versions import has_field
from tinkerloop.clients import CustomLoss
from tinkerloop.errors import TinkerloopError
from tinkerloop.testing._unigram_sampling import (
    NO_TOKENIZER,
    check_sampling,
    draw,
    refuse_options,
    stop_tokens,
)
from tinkerloop.testing.ready import Ready
from tinkerloop.testing.unigram import (
    UnigramState,
    adam_update,
    gradient_of,
    log_softmax,
    loss_and_gradient,
    refuse_non_finite,
    targets_of,
)

T = TypeVar("T")
Operation = tuple[Any, ...]
"""A request as a tuple: its name, then arguments such as the number of datums, the loss, or the learning rate."""


class MissingCheckpointError(TinkerloopError, FileNotFoundError):
    """Error for a path at which the service has no checkpoint."""


@dataclass
class OrderedService:
    """A replacement for `tinker.ServiceClient` in tests. It is shared by all clients that it opens.

    Args:
        vocab_size: the number of tokens of the unigram model.
        fault: function that can raise errors on purpose. It is called with each operation before the operation is
            executed, and with `("result", operation)` before the result is returned. An error that it raises is raised
            by the request, or by the `result` method of its future. It is also called with `("sample", num_samples)`.
        reproducible: True: equal sampling requests with equal seeds get equal tokens. False: each request draws new
            tokens, because a service may ignore the seed. A request without a seed draws new tokens in both cases.
        operations: all operations of training clients executed so far, in order. Sampling is not one of them, because
            several threads may sample at the same time.
    """

    vocab_size: int = 64
    fault: Callable[[Operation], None] | None = None
    reproducible: bool = True
    operations: list[Operation] = field(default_factory=list)
    checkpoints: dict[str, UnigramState] = field(default_factory=dict)
    """Mapping from `tinker://` path to saved training state."""
    models: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Mapping from the id of each training client opened so far to its base model and rank."""
    sampling_requests: Iterator[int] = field(default_factory=itertools.count, repr=False)
    """The numbers of the next sampling requests."""
    clients: list[OrderedClient] = field(default_factory=list, repr=False)
    """All training clients opened so far, in order."""

    def create_lora_training_client(
        self, base_model: str = "unigram", *, rank: int = 32, **options: Any
    ) -> OrderedClient:
        """Open a training client with a new model.

        `base_model` and `rank` are only reported by `get_info`; the other options of the real method are ignored.
        """
        zeros = np.zeros(self.vocab_size)
        return self._client(UnigramState(zeros, zeros, zeros), (base_model, rank))

    def create_training_client_from_state_with_optimizer(self, path: str, **options: Any) -> OrderedClient:
        """Open a training client with saved weights and the saved optimizer state."""
        return self._client(self.training_state(path), self._model_at(path))

    def create_training_client_from_state(self, path: str, **options: Any) -> OrderedClient:
        """Open a training client with saved weights and a new optimizer state."""
        zeros = np.zeros(self.vocab_size)
        return self._client(UnigramState(self.training_state(path).logits, zeros, zeros), self._model_at(path))

    def create_sampling_client(
        self, model_path: str | None = None, base_model: str | None = None, **options: Any
    ) -> OrderedSampler:
        """Open a client that samples from the weights saved at `model_path`; None: the untrained model.

        Raises:
            MissingCheckpointError: there is no checkpoint at `model_path`.
            ValueError: the checkpoint is for training.
        """
        if model_path is None:
            return OrderedSampler(self, np.zeros(self.vocab_size))
        state = self.checkpoint(model_path)
        if _kind(model_path) != "sampler_weights":
            raise ValueError(
                f"{model_path} must point to a sampler weights checkpoint: it is a checkpoint for training, so save "
                "one with save_weights_for_sampler"
            )
        return OrderedSampler(self, state.logits)

    def create_rest_client(self) -> OrderedRestClient:
        """Open a client that lists and deletes checkpoints."""
        return OrderedRestClient(self)

    def delete(self, path: str) -> None:
        """Delete the checkpoint at `path`.

        Raises:
            MissingCheckpointError: there is no checkpoint at `path`.
        """
        self.checkpoint(path)
        del self.checkpoints[path]

    def close(self, status: str, detail: str | None = None) -> Ready[None]:
        """Do nothing, because there is no session to end."""
        return Ready(None)

    def __enter__(self) -> OrderedService:
        return self

    def __exit__(self, *error: object) -> None:
        self.close("success")

    def _client(self, state: UnigramState, model: tuple[str, int]) -> OrderedClient:
        model_id = f"ordered:train:{len(self.models)}"
        self.models[model_id] = model
        self.clients.append(client := OrderedClient(self, model_id, state))
        return client

    def _model_at(self, path: str) -> tuple[str, int]:
        return self.models[path.split("/")[2]]

    def checkpoint(self, path: str) -> UnigramState:
        """Return the training state saved at `path`.

        Raises:
            MissingCheckpointError: there is no checkpoint at `path`.
        """
        if path not in self.checkpoints:
            raise MissingCheckpointError(
                f"no checkpoint exists at {path}; the existing paths are {sorted(self.checkpoints)}"
            )
        return self.checkpoints[path]

    def training_state(self, path: str) -> UnigramState:
        """Return the training state saved at `path` by `save_state`.

        Raises:
            MissingCheckpointError: there is no checkpoint at `path`.
            ValueError: the checkpoint is for sampling.
        """
        state = self.checkpoint(path)
        if _kind(path) != "weights":
            raise ValueError(
                f"cannot continue training from {path}: it is a checkpoint for sampling; pass the path of a checkpoint "
                "saved with save_state"
            )
        return state


def _kind(path: str) -> str:
    """Return the kind of the checkpoint at a path `tinker://RUN/KIND/NAME`: "weights" or "sampler_weights"."""
    return path.split("/")[3]


class OrderedClient:
    """A replacement for `tinker.TrainingClient` in tests. Its training state is the public attribute `state`."""

    def __init__(self, service: OrderedService, model_id: str, state: UnigramState):
        self._service, self.model_id, self.state = service, model_id, state

    def forward(
        self, data: list[tinker.Datum], loss_fn: str, loss_fn_config: Mapping[str, float | str] | None = None
    ) -> Ready[tinker.ForwardBackwardOutput]:
        """Compute a built-in loss. The accumulated gradient is not changed."""
        return self._do(
            ("forward", len(data), loss_fn),
            lambda: loss_and_gradient(self.state.logits, data, loss_fn, loss_fn_config)[0],
        )

    def forward_backward(
        self, data: list[tinker.Datum], loss_fn: str, loss_fn_config: Mapping[str, float | str] | None = None
    ) -> Ready[tinker.ForwardBackwardOutput]:
        """Compute a built-in loss, and add its gradient to the accumulated gradient."""

        def work() -> tinker.ForwardBackwardOutput:
            output, gradient = loss_and_gradient(self.state.logits, data, loss_fn, loss_fn_config)
            self._add(gradient)
            return output

        return self._do(("forward_backward", len(data), loss_fn), work)

    def forward_backward_custom(
        self, data: list[tinker.Datum], loss_fn: CustomLoss
    ) -> Ready[tinker.ForwardBackwardOutput]:
        """Compute a custom loss from the log-probabilities, and add its gradient to the accumulated gradient.

        As in tinker, torch computes the derivative of the loss with respect to the log-probabilities, and the negative
        derivatives are the weights of a cross-entropy loss with the same gradient. A loss that fails or is not finite
        leaves the accumulated gradient as it was.
        """

        def work() -> tinker.ForwardBackwardOutput:
            import torch

            output, _ = loss_and_gradient(self.state.logits, data, "custom", None)
            logprobs = [torch.tensor(one["logprobs"].to_numpy(), requires_grad=True) for one in output.loss_fn_outputs]
            loss, metrics = loss_fn(data, logprobs)
            loss.backward()
            gradient = np.zeros_like(self.state.logits)
            for datum, one in zip(data, logprobs, strict=True):
                if one.grad is None:
                    raise ValueError(
                        "No gradient computed for logprob tensor: the custom loss must depend on the log-probabilities "
                        "of every datum"
                    )
                gradient += gradient_of(self.state.logits, targets_of(datum), -one.grad.numpy())
            total = float(loss.detach().sum())
            refuse_non_finite("the custom loss or its gradient", np.append(gradient, total))
            self._add(gradient)
            return replace(output, metrics={**metrics, "loss:sum": total})

        return self._do(("forward_backward_custom", len(data), getattr(loss_fn, "__name__", "custom")), work)

    def optim_step(self, optim_params: tinker.AdamParams) -> Ready[tinker.OptimStepResponse]:
        """Update the weights by Adam with decoupled weight decay, then clear the accumulated gradient.

        If `grad_clip_norm` is positive, the gradient is first clipped to this L2 norm.
        """

        def work() -> tinker.OptimStepResponse:
            self.state, norm = adam_update(self.state, optim_params)
            return tinker.OptimStepResponse(metrics={"unclipped_grad_l2:mean": norm})

        return self._do(("optim_step", optim_params.learning_rate), work)

    def save_state(
        self, name: str, ttl_seconds: int | None = None, overwrite: bool = False
    ) -> Ready[tinker.types.SaveWeightsResponse]:
        """Save the training state, and return its `tinker://` path."""
        return self._do(("save_state", name), lambda: self._save("weights", name, overwrite))

    def save_weights_for_sampler(
        self, name: str, ttl_seconds: int | None = None
    ) -> Ready[tinker.types.SaveWeightsForSamplerResponse]:
        """Save the weights for sampling, and return their `tinker://` path."""
        return self._do(("save_weights_for_sampler", name), lambda: self._save("sampler_weights", name, False))

    def save_weights_and_get_sampling_client(self) -> OrderedSampler:
        """Open a client that samples from the current weights. Later training does not change them."""
        self._note(("save_weights_and_get_sampling_client",))
        return OrderedSampler(self._service, self.state.logits)

    def _save(self, kind: str, name: str, overwrite: bool) -> Any:  # the response of both kinds of saves
        path = f"tinker://{self.model_id}/{kind}/{name}"
        if path in self._service.checkpoints and not overwrite:
            raise FileExistsError(
                f"checkpoint {name!r} already exists at {path}: pass overwrite=True, or use another name"
            )
        self._service.checkpoints[path] = replace(self.state, gradient=None)
        return tinker.types.SaveWeightsResponse(path=path)

    def load_state(self, path: str) -> Ready[tinker.types.LoadWeightsResponse]:
        """Load saved weights, and reset the optimizer state."""
        return self._do(("load_state", path), lambda: self._restore(path, optimizer=False))

    def load_state_with_optimizer(self, path: str) -> Ready[tinker.types.LoadWeightsResponse]:
        """Load saved weights and the saved optimizer state."""
        return self._do(("load_state_with_optimizer", path), lambda: self._restore(path, optimizer=True))

    def create_sampling_client(self, model_path: str, **options: Any) -> OrderedSampler:
        """Open a client that samples from the weights saved at `model_path`."""
        return self._service.create_sampling_client(model_path)

    def get_info(self) -> tinker.types.GetInfoResponse:
        """Return the base model and the rank that the model was created with, and the id of the training run."""
        base_model, rank = self._service.models[self.model_id]
        data = tinker.types.ModelData(model_name=base_model)
        return tinker.types.GetInfoResponse(
            model_data=data, model_id=self.model_id, model_name=base_model, is_lora=rank > 0, lora_rank=rank
        )

    def get_tokenizer(self) -> Any:
        """Raise NotImplementedError, because the unigram model has no tokenizer."""
        raise NotImplementedError(NO_TOKENIZER)

    def _restore(self, path: str, *, optimizer: bool) -> tinker.types.LoadWeightsResponse:
        state, zeros = self._service.training_state(path), np.zeros(self._service.vocab_size)
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


class OrderedSampler:
    """A replacement for `tinker.SamplingClient` in tests. It samples from the unigram model with logits `logits`."""

    def __init__(self, service: OrderedService, logits: NDArray[np.float64]):
        self._service, self.logits = service, logits

    def sample(
        self, prompt: tinker.ModelInput, num_samples: int, sampling_params: tinker.SamplingParams, **options: Any
    ) -> Ready[tinker.SampleResponse]:
        """Sample `num_samples` sequences of `max_tokens` tokens (16 if None), or up to a stop token.

        At temperature 0 the most likely token is repeated. At another temperature the tokens are drawn with the random
        seed `sampling_params.seed`. A request without a seed draws new tokens each time, as does every request if the
        service is not `reproducible`. The log-probabilities are those at temperature 1, without top-k and top-p.

        Raises:
            ValueError: a parameter is out of range.
            NotImplementedError: an option such as `include_prompt_logprobs` or a stop text is not supported.
        """
        if self._service.fault is not None:
            self._service.fault(("sample", num_samples))
        check_sampling(sampling_params, num_samples, options)
        logprobs, stops = log_softmax(self.logits), stop_tokens(sampling_params)
        number, seed = next(self._service.sampling_requests), sampling_params.seed
        is_seeded = seed is not None and self._service.reproducible
        rng = np.random.default_rng(seed if is_seeded else (seed or 0, number + 1))  # (0, 0) would be the seed 0
        sequences = []
        for index in range(num_samples):
            tokens = draw(self.logits, sampling_params, rng)
            name: dict[str, Any] = {"sequence_id": str(index)}
            sequences.append(
                tinker.SampledSequence(
                    stop_reason="stop" if tokens[-1] in stops else "length",
                    **(name if has_field(tinker.SampledSequence, "sequence_id") else {}),
                    tokens_np=tokens.astype(np.int32),
                    logprobs_np=logprobs[tokens].astype(np.float32),
                )
            )
        return Ready(tinker.SampleResponse(sequences=sequences))

    def compute_logprobs(self, prompt: tinker.ModelInput, **options: Any) -> Ready[list[float | None]]:
        """Compute the log-probability of each token of `prompt`; None for the first token."""
        refuse_options(options)
        logprobs = log_softmax(self.logits)[prompt.to_ints()].tolist()
        return Ready([None, *logprobs[1:]])

    def get_tokenizer(self) -> Any:
        """Raise NotImplementedError, because the unigram model has no tokenizer."""
        raise NotImplementedError(NO_TOKENIZER)

    def get_base_model(self) -> str:
        """Return the name of the base model, "unigram"."""
        return "unigram"


class OrderedRestClient:
    """A replacement for the checkpoint methods of `tinker.RestClient` in tests.

    Its calls are not appended to `OrderedService.operations`.
    """

    def __init__(self, service: OrderedService):
        self._service = service

    def list_checkpoints(self, training_run_id: str) -> Ready[tinker.types.CheckpointsListResponse]:
        """List the checkpoints of one training client, given by its `model_id`, newest first."""
        paths = [path for path in self._service.checkpoints if path.startswith(f"tinker://{training_run_id}/")]
        return self._listed(paths[::-1])

    def list_user_checkpoints(self, limit: int = 100, offset: int = 0) -> Ready[tinker.types.CheckpointsListResponse]:
        """List the checkpoints of all training clients, newest first."""
        return self._listed(list(self._service.checkpoints)[::-1][offset : offset + limit])

    def delete_checkpoint(self, training_run_id: str, checkpoint_id: str) -> Ready[None]:
        """Delete a checkpoint, given by the id of its training run and its own id, such as "weights/000010"."""
        return self.delete_checkpoint_from_tinker_path(f"tinker://{training_run_id}/{checkpoint_id}")

    def delete_checkpoint_from_tinker_path(self, tinker_path: str) -> Ready[None]:
        """Delete the checkpoint at a `tinker://` path."""
        return self._answer(lambda: self._service.delete(tinker_path))

    def set_checkpoint_ttl_from_tinker_path(self, tinker_path: str, ttl_seconds: int | None) -> Ready[None]:
        """Check that the checkpoint exists. Nothing else is done, because checkpoints never expire here."""
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
                    time=datetime.fromtimestamp(0, UTC),  # a fixed time, so that equal runs give equal results
                    tinker_path=path,
                )
            )
        return Ready(tinker.types.CheckpointsListResponse(checkpoints=checkpoints))
