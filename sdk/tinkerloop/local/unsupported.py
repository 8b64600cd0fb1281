"""What Tinker has and the embedded engine has not: refused by name, never ignored.

This is the only place that makes NotImplementedErrors, and README.md holds `table()`: tests see to both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

_BOOKKEEPING = "sessions, projects, accounts and billing belong to the hosted service"
_INTERNAL = "an internal of the hosted client"
_EXPORT = "there is no external storage; `tinkerloop export` writes an adapter or a merged model"
_PUBLIC = "local checkpoints have no public address"


def _both(owner: str, names: str, reason: str) -> dict[str, str]:
    """Methods and their `_async` twins."""
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
"""Class.method, of any tinker that pyproject.toml admits -> why it is not there."""

OPTIONS: dict[str, str] = {
    "loss_fn='stable_reinforce'": "needs the hosted service's record of its own sampling",
    "record_stability_info=True": "needs the hosted service's record of its own sampling",
    "DimuonParams, DimuonOptimizerConfig": "the algorithm is not published; AdamW is there",
    "kind='inflight'": "a sampling client holds one snapshot",
    "prompt_alt_tokens_k > 0": "`topk_prompt_logprobs` and `target_prompt_logprobs` are there",
    "image chunks for a text model": "the model has no use for images; vision models take them",
    "image pointer and audio chunks": "nothing here can fetch the one or hear the other",
    "weights_access_token": "local checkpoints need none",
    "ServiceClient(base_url=...), (api_key=...)": "the engine is in this process; `tinkerloop.connect` takes a URL",
    "create_custom_loss with tinker < 0.36": "it cannot trace; `forward_backward_custom` takes a function",
    "get_sampler_handle() of an unsaved snapshot": "it lives in this process alone; use `save_weights_for_sampler`",
    "architectures that the engine would run wrongly": "found by a trial on loading",
    "an output layer that is not linear": "the logits are taken a piece at a time from a matrix",
}
"""An argument, value or use -> why it is refused."""


def unsupported_error(option: str, detail: str = "") -> NotImplementedError:
    """The error that names `option`, a key of OPTIONS, and why it is refused."""
    return NotImplementedError(
        f"the embedded engine does not support {option}: {OPTIONS[option]}{detail and f' ({detail})'}"
    )


def refuse_option(given: bool, option: str) -> None:
    """Raise NotImplementedError naming `option` (a key of OPTIONS) if it was given."""
    if given:
        raise unsupported_error(option)


def refuse(cls: type) -> type:
    """Give `cls` the methods that METHODS has under its name, each raising NotImplementedError."""
    for place, reason in METHODS.items():
        owner, name = place.split(".")
        if owner == cls.__name__:
            setattr(cls, name, _refusing(place, reason))
    return cls


def table() -> str:
    """Everything above as a Markdown table, methods of one class and reason in one row; a star stands for the twin."""
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
