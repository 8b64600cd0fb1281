"""The features of Tinker that the embedded engine does not support: each raises an error with its name.

This is the only module that makes NotImplementedErrors, and README.md contains `table()`; tests check both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

Class = TypeVar("Class", bound=type)

_BOOKKEEPING = "sessions, projects, accounts and billing belong to the hosted service"
_INTERNAL = "an internal of the hosted client"
_EXPORT = "there is no external storage; use `tinkerloop export` to write an adapter or a merged model"
_PUBLIC = "local checkpoints have no public address"


def _both(owner: str, names: str, reason: str) -> dict[str, str]:
    """The methods and their `_async` variants."""
    return {f"{owner}.{name}{suffix}": reason for name in names.split() for suffix in ("", "_async")}


METHODS: dict[str, str] = {
    "ServiceClient.holder": _INTERNAL,
    **_both("TrainingClient", "save_weights_external", _EXPORT),
    "SamplingClient.create": _INTERNAL,
    "SamplingClient.on_queue_state_change": _INTERNAL,
    **_both(
        "RestClient",
        "assign_session_project export_session_trace get_audit_log get_billing_usage "
        "get_current_checkpoint_storage_usage get_sampler get_session list_sessions search_sessions",
        _BOOKKEEPING,
    ),
    "RestClient.whoami": _BOOKKEEPING,
    **_both(
        "RestClient",
        "get_checkpoint_archive_url get_checkpoint_archive_url_from_tinker_path get_external_weights_urls",
        _EXPORT,
    ),
    **_both(
        "RestClient",
        "publish_checkpoint_from_tinker_path unpublish_checkpoint_from_tinker_path",
        _PUBLIC,
    ),
}
"""Class.method, of any tinker version that pyproject.toml allows -> why it is not supported."""

OPTIONS: dict[str, str] = {
    "loss_fn='stable_reinforce'": "it needs the hosted service's record of its own sampling",
    "record_stability_info=True": "it needs the hosted service's record of its own sampling",
    "DimuonParams, DimuonOptimizerConfig": "the algorithm is not published; use AdamW (`AdamParams`)",
    "kind='inflight'": "a sampling client holds one snapshot",
    "prompt_alt_tokens_k > 0": "use `topk_prompt_logprobs` or `target_prompt_logprobs`",
    "image chunks for a text model": "the model has no vision tower; use a vision-language model such as `tiny-vl`",
    "image pointer and audio chunks": "the local engine cannot fetch image pointers and has no audio encoder",
    "weights_access_token": "local checkpoints need no token",
    "ServiceClient(base_url=...), (api_key=...)": "the engine runs in this process; use `tinkerloop.connect` for a URL",
    "create_custom_loss with tinker < 0.36": "it cannot trace losses; pass a function to `forward_backward_custom`",
    "get_sampler_handle() of an unsaved snapshot": "it exists only in this process; use `save_weights_for_sampler`",
    "architectures that the engine would run wrongly": "a check when the model is loaded found wrong logits",
    "an output layer that is not linear": "the engine computes logits in pieces, from a weight matrix",
}
"""An argument, value or use -> why it is not supported."""


def unsupported_error(option: str, detail: str = "") -> NotImplementedError:
    """Return the error that names `option` (a key of OPTIONS) and why it is not supported."""
    return NotImplementedError(
        f"the embedded engine does not support {option}: {OPTIONS[option]}{detail and f' ({detail})'}"
    )


def refuse_option(given: bool, option: str) -> None:
    """Raise NotImplementedError naming `option` (a key of OPTIONS) if it was given."""
    if given:
        raise unsupported_error(option)


def refuse(cls: Class) -> Class:
    """Add to `cls` its methods in METHODS, each of which raises NotImplementedError."""
    for place, reason in METHODS.items():
        owner, name = place.split(".")
        if owner == cls.__name__:
            setattr(cls, name, _refusing(place, reason))
    return cls


def table() -> str:
    """Return METHODS and OPTIONS as a Markdown table; a star after a method stands for its `_async` variant."""
    rows: dict[tuple[str, str], list[str]] = {}
    for place, reason in METHODS.items():
        owner, name = place.split(".")
        if place.removesuffix("_async") == place:
            star = "*" if f"{place}_async" in METHODS else ""
            rows.setdefault((owner, reason), []).append(f"`{name}`{star}")
    lines = [f"| `{owner}`: {', '.join(names)} | {reason} |" for (owner, reason), names in rows.items()]
    lines += [f"| {option} | {reason} |" for option, reason in OPTIONS.items()]
    return "\n".join(["| not supported | why |", "|---|---|", *lines])


def _refusing(place: str, reason: str) -> Callable[..., NoReturn]:
    def method(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"the embedded engine does not support {place}: {reason}")

    method.__name__ = place.split(".")[1]
    method.__doc__ = f"Not supported: {reason}."
    return method
