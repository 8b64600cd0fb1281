"""The interface of the clients that a script holds, so that type checkers know what `connect` and `Loop` deal in.

Three families of classes have this interface: `tinker.ServiceClient` and its clients (the hosted service, or a server
at a URL), `tinkerloop.local.ServiceClient` and its clients (the embedded engine), and those of `tinkerloop.testing`.
They share no base class, so the interface is written down as Protocols. Their names end in "Like", after `os.PathLike`:
a `TrainingClientLike` is anything that has the methods of a `TrainingClient`, and the class keeps its name for itself.

The Protocols hold what this SDK and its users call and what every supported version of tinker has. Left out are the
`_async` methods, which tinker deprecated in 0.38, and what is rarely used; a script that needs those names the class:

    service = tinker.ServiceClient()

Since tinker 0.38, `create_*` and `save_weights_and_get_sampling_client` return a future that can also be used as the
client, with a warning. `tinkerloop.loop.resolve` gives the client itself in every version, and `open_training_client`
calls it.
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
"""`(datums, logprobs) -> (scalar loss, metrics)`, with one tensor of log-probabilities per datum, (N,) or (N, K)."""


class Future(Protocol[T_co]):
    """A value that is not there yet: tinker's `APIFuture`, a `concurrent.futures.Future`, or anything with `result`."""

    def result(self, timeout: float | None = None) -> T_co:
        """Wait for the value, or raise the operation's error."""
        ...


class AwaitableFuture(Future[T_co], Protocol[T_co]):
    """A future that can also be awaited, any number of times: the answer to a client's request.

    Before tinker 0.38, `sample` and `compute_logprobs` returned a plain `concurrent.futures.Future`: to support those
    versions, call `result` or `asyncio.wrap_future`.
    """

    async def result_async(self, timeout: float | None = None) -> T_co:
        """Await the value, or raise the operation's error."""
        ...

    def __await__(self) -> Generator[Any, Any, T_co]: ...


class SamplingClientLike(Protocol):
    """A client that samples from fixed weights."""

    def sample(
        self,
        prompt: tinker.ModelInput,
        num_samples: int,
        sampling_params: tinker.SamplingParams,
        *,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
    ) -> AwaitableFuture[tinker.SampleResponse]:
        """Draw `num_samples` continuations of `prompt`."""
        ...

    def compute_logprobs(self, prompt: tinker.ModelInput) -> AwaitableFuture[list[float | None]]:
        """Compute the log-probability of each token of `prompt` given those before it; None for the first."""
        ...

    def get_tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer."""
        ...

    def get_base_model(self) -> str:
        """Return the name of the base model."""
        ...


class TrainingClientLike(Protocol):
    """A client that trains one adapter. It executes its requests in the order of the calls."""

    @property
    def model_id(self) -> str:
        """The id of the training run, which is part of the paths of its checkpoints."""
        ...

    def forward(
        self,
        data: list[tinker.Datum],
        loss_fn: tinker.types.LossFnType,
        loss_fn_config: Mapping[str, float | str] | None = None,
    ) -> AwaitableFuture[tinker.ForwardBackwardOutput]:
        """Compute log-probabilities and the loss; the gradient stays as it is."""
        ...

    def forward_backward(
        self,
        data: list[tinker.Datum],
        loss_fn: tinker.types.LossFnType,
        loss_fn_config: Mapping[str, float | str] | None = None,
    ) -> AwaitableFuture[tinker.ForwardBackwardOutput]:
        """Compute the loss and add its gradient to what `optim_step` will apply."""
        ...

    def forward_backward_custom(
        self, data: list[tinker.Datum], loss_fn: CustomLoss
    ) -> AwaitableFuture[tinker.ForwardBackwardOutput]:
        """Compute the caller's loss of the log-probabilities and add its gradient to what `optim_step` will apply."""
        ...

    def optim_step(self, optim_params: tinker.AdamParams, /) -> AwaitableFuture[tinker.OptimStepResponse]:
        """Apply the accumulated gradient, then clear it. The parameter is positional: its name changed in 0.29."""
        ...

    def save_state(
        self,
        name: str,
        ttl_seconds: int | None = None,
        overwrite: bool = False,
    ) -> AwaitableFuture[tinker.types.SaveWeightsResponse]:
        """Save weights and optimizer, to train on from here."""
        ...

    def load_state(self, path: str) -> AwaitableFuture[tinker.types.LoadWeightsResponse]:
        """Load saved weights, as the client's first request. Deprecated in tinker 0.36."""
        ...

    def load_state_with_optimizer(self, path: str) -> AwaitableFuture[tinker.types.LoadWeightsResponse]:
        """Load saved weights and optimizer, as the client's first request. Deprecated in tinker 0.36."""
        ...

    def save_weights_for_sampler(
        self, name: str, ttl_seconds: int | None = None
    ) -> AwaitableFuture[tinker.types.SaveWeightsForSamplerResponse]:
        """Save the weights, to open sampling clients from."""
        ...

    def save_weights_and_get_sampling_client(self) -> SamplingClientLike:
        """Open a client that samples from the weights as they are after the requests so far."""
        ...

    def create_sampling_client(self, model_path: str) -> SamplingClientLike:
        """Open a client that samples from saved weights."""
        ...

    def get_info(self) -> tinker.types.GetInfoResponse:
        """Return the base model and the rank of the adapter."""
        ...

    def get_tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer."""
        ...


class RestClientLike(Protocol):
    """A client that lists, deletes and dates checkpoints."""

    def list_checkpoints(self, training_run_id: str) -> AwaitableFuture[tinker.types.CheckpointsListResponse]:
        """List the checkpoints of a training run (`TrainingClientLike.model_id`)."""
        ...

    def list_user_checkpoints(
        self, limit: int = 100, offset: int = 0
    ) -> AwaitableFuture[tinker.types.CheckpointsListResponse]:
        """List the checkpoints of all training runs, the newest first."""
        ...

    def delete_checkpoint(self, training_run_id: str, checkpoint_id: str) -> AwaitableFuture[None]:
        """Delete a checkpoint of a training run."""
        ...

    def delete_checkpoint_from_tinker_path(self, tinker_path: str) -> AwaitableFuture[None]:
        """Delete the checkpoint at a `tinker://` path: what `Run(delete=...)` and `Checkpoints(delete=...)` take."""
        ...

    def set_checkpoint_ttl_from_tinker_path(self, tinker_path: str, ttl_seconds: int | None) -> AwaitableFuture[None]:
        """Let a checkpoint expire after `ttl_seconds` from now; None: never."""
        ...


class LoraOptions(TypedDict, total=False):
    """The arguments of `create_lora_training_client`."""

    base_model: str
    rank: int
    seed: int | None
    train_mlp: bool
    train_attn: bool
    train_unembed: bool
    user_metadata: dict[str, str] | None
    optimizer: tinker.types.OptimizerConfig | None


class ServiceClientLike(Protocol):
    """A client that opens the others."""

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
        """Open a training client with a new adapter of rank `rank` on a base model."""
        ...

    def create_training_client_from_state(
        self, path: str, *, user_metadata: dict[str, str] | None = None
    ) -> TrainingClientLike:
        """Open a training client with saved weights and a new optimizer."""
        ...

    def create_training_client_from_state_with_optimizer(
        self, path: str, *, user_metadata: dict[str, str] | None = None
    ) -> TrainingClientLike:
        """Open a training client with saved weights and optimizer."""
        ...

    def create_sampling_client(
        self, model_path: str | None = None, base_model: str | None = None
    ) -> SamplingClientLike:
        """Open a client that samples from saved weights, or from a base model."""
        ...

    def create_rest_client(self) -> RestClientLike:
        """Open a client that manages checkpoints."""
        ...

    def close(
        self, status: Literal["success", "errored", "interrupted"], detail: str | None = None
    ) -> AwaitableFuture[None]:
        """End the session. Leaving a `with` block does this with the status that fits."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...
