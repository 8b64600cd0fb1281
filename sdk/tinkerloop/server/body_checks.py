"""Checks of the JSON bodies of requests, where tinker's types accept more than what their authors can mean."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel

from tinkerloop.local.request_errors import bad_request
from tinkerloop.local.runtime.checkpoint_record import metadata_of
from tinkerloop.server import request_ids

Body = TypeVar("Body", bound=BaseModel)
MAX_METADATA_BYTES = 2**16
"""The largest size of the metadata of a session, run or checkpoint. Lists contain them, for all users."""
_ADAM = ("learning_rate", "beta1", "beta2", "eps", "weight_decay", "grad_clip_norm")
_NUMBERS = {
    "adam_params": _ADAM,
    "optim_params": _ADAM,
    "optimizer_params": _ADAM,
    "lora_config": ("rank", "seed"),
    "sampling_params": ("max_tokens", "seed", "temperature", "top_k", "top_p"),
}
"""The numbers in the parts of bodies."""
_TOP_NUMBERS = (
    "prompt_alt_tokens_k",
    "prompt_logprobs_last_n",
    "topk_prompt_logprobs",
    "topk_sample_logprobs",
    "ttl_seconds",
)


def place_of(body: dict[str, Any]) -> tuple[str, int]:
    """Return the model of a request and the request's number. Number 0 is the creation of the model."""
    owner, number = body.get("model_id"), body.get("seq_id")
    if not isinstance(owner, str) or not request_ids.is_number(number) or number < 1:
        raise bad_request("the request needs model_id (a string) and seq_id (an integer >= 1)")
    return owner, number


def validated(kind: type[Body], body: dict[str, Any]) -> Body:
    """Return the request in a body. A truth value or a text in place of a number, which pydantic converts, is an error.

    Raises:
        tinker.BadRequestError: a number is none.
        pydantic.ValidationError: the body is not such a request.
    """
    _check_numbers(body, _TOP_NUMBERS)
    for part, names in _NUMBERS.items():
        if isinstance(fields := body.get(part), dict):
            _check_numbers(fields, names)
    return kind.model_validate(body)


def small_metadata(given: dict[str, Any] | None) -> dict[str, str] | None:
    """Return a copy of user metadata that is small enough for all lists of checkpoints and runs."""
    metadata = metadata_of(given)
    size = sum(len(text.encode(errors="surrogatepass")) for pair in (metadata or {}).items() for text in pair)
    if size > MAX_METADATA_BYTES:
        raise bad_request(f"user_metadata has {size} bytes; the largest size is {MAX_METADATA_BYTES}, so shorten it")
    return metadata


def _check_numbers(fields: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if isinstance(value := fields.get(name), bool | str):
            raise bad_request(f"{name} must be a number, got {value!r:.100}")
