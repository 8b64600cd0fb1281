"""What Tinker has and the embedded engine has not: refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

_BOOKKEEPING = "sessions, projects, accounts and billing belong to the hosted service"
_INTERNAL = "an internal of the hosted client"
_EXTERNAL = "there is no external storage; `tinkerloop export` writes an adapter or a merged model"

METHODS: dict[str, str] = {
    "ServiceClient.holder": _INTERNAL,
    "TrainingClient.save_weights_external": _EXTERNAL,
    "TrainingClient.save_weights_external_async": _EXTERNAL,
    "SamplingClient.create": _INTERNAL,
    "SamplingClient.on_queue_state_change": _INTERNAL,
    **{
        f"RestClient.{name}{suffix}": _BOOKKEEPING
        for name in (
            "assign_session_project",
            "export_session_trace",
            "get_audit_log",
            "get_billing_usage",
            "get_current_checkpoint_storage_usage",
            "get_sampler",
            "get_session",
            "list_sessions",
        )
        for suffix in ("", "_async")
    },
    "RestClient.search_sessions": _BOOKKEEPING,
    "RestClient.whoami": _BOOKKEEPING,
    "RestClient.get_external_weights_urls": _EXTERNAL,
    "RestClient.get_external_weights_urls_async": _EXTERNAL,
    "RestClient.publish_checkpoint_from_tinker_path": "local checkpoints have no public address",
    "RestClient.publish_checkpoint_from_tinker_path_async": "local checkpoints have no public address",
    "RestClient.unpublish_checkpoint_from_tinker_path": "local checkpoints have no public address",
    "RestClient.unpublish_checkpoint_from_tinker_path_async": "local checkpoints have no public address",
}
"""Class.method -> why it is not there."""

OPTIONS: dict[str, str] = {
    "loss_fn='stable_reinforce'": "needs the hosted service's record of its own sampling",
    "record_stability_info=True": "needs the hosted service's record of its own sampling",
    "DimuonParams, DimuonOptimizerConfig": "the algorithm is not published; AdamW is there",
    "kind='inflight'": "a sampling client holds one snapshot",
    "prompt_alt_tokens_k > 0": "not implemented",
    "image pointer and audio chunks": "text, and images as chunks that hold their file",
    "weights_access_token": "local checkpoints need none",
    "ServiceClient(base_url=...), (api_key=...)": "the engine is in this process; use tinkerloop.connect",
}
"""An argument or value -> why it is refused."""


def refuse(cls: type) -> type:
    """Give `cls` every method of METHODS that tinker's class of that name has, each raising NotImplementedError."""
    for place, reason in METHODS.items():
        owner, name = place.split(".")
        if owner == cls.__name__:
            setattr(cls, name, _refusing(place, reason))
    return cls


def refuse_option(given: bool, option: str) -> None:
    """Raise NotImplementedError naming `option` (a key of OPTIONS) if it was given."""
    if given:
        raise NotImplementedError(f"the embedded engine does not support {option}: {OPTIONS[option]}")


def _refusing(place: str, reason: str) -> Callable[..., NoReturn]:
    def method(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"the embedded engine does not support {place}: {reason}")

    method.__name__ = place.split(".")[1]
    method.__doc__ = f"Not supported: {reason}."
    return method
