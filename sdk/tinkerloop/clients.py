"""The interfaces of the service, training, sampling and REST clients, as Protocols for type checkers.

Three groups of classes have these interfaces: `tinker.ServiceClient` and its clients (for the hosted service, or a
server at a URL), `tinkerloop.local.ServiceClient` and its clients (for the embedded engine), and the clients of
`tinkerloop.testing`. They have no common base class, so their interface is defined by Protocols. The names of the
Protocols end in "Like", as in `os.PathLike`: a `TrainingClientLike` is any object with the methods of a
`TrainingClient`.

The Protocols contain the methods that this SDK and its users call and that every supported version of tinker has. They
omit rarely used methods, and the `_async` methods, which tinker deprecated in 0.38. A program that needs an omitted
method can create the client directly, so that type checkers see all methods of its class:

    service = tinker.ServiceClient()

Since tinker 0.38, `create_*` and `save_weights_and_get_sampling_client` return a future, which can also be used as the
client, but with a warning. `tinkerloop.loop.resolve` returns the client in every version. `open_training_client` calls
`resolve`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeAlias, TypedDict, TypeVar

if TYPE_CHECKING:
    import tinker
    import torch

    from tinkerloop.tokenizers.loading import Tokenizer

T_co = TypeVar("T_co", covariant=True)

CustomLoss: TypeAlias = "Callable[[list[tinker.Datum], list[torch.Tensor]], tuple[torch.Tensor, dict[str, float]]]"
"""Loss function `(datums, logprobs) -> (scalar loss, metrics)`; `logprobs` has an (N,) or (N, K) tensor per datum."""


class Future(Protocol[T_co]):
    """A value that may not be available yet.

    It can be tinker's `APIFuture`, a `concurrent.futures.Future`, or any other object with a `result` method.
    """

    def result(self, timeout: float | None = None) -> T_co:
        """Wait for the operation, and return its value or raise its error."""
        ...


class AwaitableFuture(Future[T_co], Protocol[T_co]):
    """The future that a client's request returns. It can also be awaited, any number of times.

    Before tinker 0.38, `sample` and `compute_logprobs` returned a plain `concurrent.futures.Future`, which cannot be
    awaited. Code for these versions calls `result` or `asyncio.wrap_future` instead.
    """

    async def result_async(self, timeout: float | None = None) -> T_co:
        """Await the operation, and return its value or raise its error."""
        ...

    def __await__(self) -> Generator[Any, Any, T_co]: ...


class SamplingClientLike(Protocol):
    """A client that samples from a model whose weights do not change."""

    def sample(
        self,
        prompt: tinker.ModelInput,
        num_samples: int,
        sampling_params: tinker.SamplingParams,
        *,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
    ) -> AwaitableFuture[tinker.SampleResponse]:
        """Sample `num_samples` continuations of `prompt`."""
        ...

    def compute_logprobs(self, prompt: tinker.ModelInput) -> AwaitableFuture[list[float | None]]:
        """Compute the log-probability of each token of `prompt` given the previous tokens; None for the first token."""
        ...

    def get_tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer."""
        ...

    def get_base_model(self) -> str:
        """Return the name of the base model."""
        ...


class TrainingClientLike(Protocol):
    """A client that trains one LoRA adapter. Its requests are executed in the order of the calls."""

    @property
    def model_id(self) -> str:
        """The id of the training run. The paths of its checkpoints contain this id."""
        ...

    def forward(
        self,
        data: list[tinker.Datum],
        loss_fn: tinker.types.LossFnType,
        loss_fn_config: Mapping[str, float | str] | None = None,
    ) -> AwaitableFuture[tinker.ForwardBackwardOutput]:
        """Compute the log-probabilities and the loss. The accumulated gradient is not changed."""
        ...

    def forward_backward(
        self,
        data: list[tinker.Datum],
        loss_fn: tinker.types.LossFnType,
        loss_fn_config: Mapping[str, float | str] | None = None,
    ) -> AwaitableFuture[tinker.ForwardBackwardOutput]:
        """Compute the loss, and add its gradient to the accumulated gradient, which `optim_step` applies."""
        ...

    def forward_backward_custom(
        self, data: list[tinker.Datum], loss_fn: CustomLoss
    ) -> AwaitableFuture[tinker.ForwardBackwardOutput]:
        """Compute a custom loss from the log-probabilities, and add its gradient to the accumulated gradient."""
        ...

    def optim_step(self, optim_params: tinker.AdamParams, /) -> AwaitableFuture[tinker.OptimStepResponse]:
        """Update the weights with the accumulated gradient, then clear the gradient.

        The parameter is positional-only, because its name changed in tinker 0.29.
        """
        ...

    def save_state(
        self,
        name: str,
        ttl_seconds: int | None = None,
        overwrite: bool = False,
    ) -> AwaitableFuture[tinker.types.SaveWeightsResponse]:
        """Save the weights and the optimizer state, from which training can be continued."""
        ...

    def load_state(self, path: str) -> AwaitableFuture[tinker.types.LoadWeightsResponse]:
        """Load saved weights. Must be the client's first request. Deprecated since tinker 0.36."""
        ...

    def load_state_with_optimizer(self, path: str) -> AwaitableFuture[tinker.types.LoadWeightsResponse]:
        """Load saved weights and optimizer state. Must be the client's first request. Deprecated since tinker 0.36."""
        ...

    def save_weights_for_sampler(
        self, name: str, ttl_seconds: int | None = None
    ) -> AwaitableFuture[tinker.types.SaveWeightsForSamplerResponse]:
        """Save the weights for sampling; `create_sampling_client` can open a client from them."""
        ...

    def save_weights_and_get_sampling_client(self) -> SamplingClientLike:
        """Open a client that samples from the weights after all requests made so far."""
        ...

    def create_sampling_client(self, model_path: str) -> SamplingClientLike:
        """Open a client that samples from the weights saved at the path `model_path`."""
        ...

    def get_info(self) -> tinker.types.GetInfoResponse:
        """Return the name of the base model and the rank of the LoRA adapter."""
        ...

    def get_tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer."""
        ...


class RestClientLike(Protocol):
    """A client that lists and deletes checkpoints, and sets when they expire."""

    def list_checkpoints(self, training_run_id: str) -> AwaitableFuture[tinker.types.CheckpointsListResponse]:
        """List the checkpoints of a training run, whose id is `TrainingClientLike.model_id`."""
        ...

    def list_user_checkpoints(
        self, limit: int = 100, offset: int = 0
    ) -> AwaitableFuture[tinker.types.CheckpointsListResponse]:
        """List the checkpoints of all training runs of the user, newest first."""
        ...

    def delete_checkpoint(self, training_run_id: str, checkpoint_id: str) -> AwaitableFuture[None]:
        """Delete a checkpoint, given by the id of its training run and its own id."""
        ...

    def delete_checkpoint_from_tinker_path(self, tinker_path: str) -> AwaitableFuture[None]:
        """Delete the checkpoint at a `tinker://` path. Can be passed as `delete` to `Run` and `Checkpoints`."""
        ...

    def set_checkpoint_ttl_from_tinker_path(self, tinker_path: str, ttl_seconds: int | None) -> AwaitableFuture[None]:
        """Set a checkpoint to expire `ttl_seconds` from now; None: it never expires."""
        ...


class LoraOptions(TypedDict, total=False):
    """The keyword arguments of `create_lora_training_client`."""

    base_model: str
    rank: int
    seed: int | None
    train_mlp: bool
    train_attn: bool
    train_unembed: bool
    user_metadata: dict[str, str] | None
    optimizer: tinker.types.OptimizerConfig | None


class ServiceClientLike(Protocol):
    """A client of the service, which opens training, sampling and REST clients."""

    def create_lora_training_client(
        self,
        base_model: str,
        *,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: dict[str, str] | None = None,
        optimizer: tinker.types.OptimizerConfig | None = None,
    ) -> TrainingClientLike:
        """Open a training client with a new LoRA adapter of rank `rank` on a base model."""
        ...

    def create_training_client_from_state(
        self, path: str, *, user_metadata: dict[str, str] | None = None
    ) -> TrainingClientLike:
        """Open a training client with saved weights and a new optimizer state."""
        ...

    def create_training_client_from_state_with_optimizer(
        self, path: str, *, user_metadata: dict[str, str] | None = None
    ) -> TrainingClientLike:
        """Open a training client with saved weights and the saved optimizer state."""
        ...

    def create_sampling_client(
        self, model_path: str | None = None, base_model: str | None = None
    ) -> SamplingClientLike:
        """Open a client that samples from saved weights (`model_path`) or from a base model."""
        ...

    def create_rest_client(self) -> RestClientLike:
        """Open a client that lists and deletes checkpoints."""
        ...

    def close(
        self, status: Literal["success", "errored", "interrupted"], detail: str | None = None
    ) -> AwaitableFuture[None]:
        """End the session with `status`. A `with` block does this at its end, with the status that fits its outcome."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...
