"""Tinker features that the embedded engine does not support. Using one raises a NotImplementedError that names it.

No other module creates a NotImplementedError, and README.md contains the output of `table()`. Tests check both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from tinkerloop.client_versions import has_field

Class = TypeVar("Class", bound=type)

_BOOKKEEPING = "sessions, projects, accounts and billing belong to the hosted service"
_INTERNAL = "an internal part of the hosted service's client"
_EXPORT = "there is no external storage; use `tinkerloop export` to write an adapter or a merged model"
_PUBLIC = "local checkpoints have no public address"


def _both(owner: str, names: str, reason: str) -> dict[str, str]:
    """Return a mapping from "owner.name" to `reason`, for each of `names` and its `_async` variant."""
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
"""Mapping from "Class.method" to the reason why the method is not supported.

It covers the methods of every tinker version that pyproject.toml allows.
"""

OPTIONS: dict[str, str] = {
    "loss_fn='stable_reinforce'": "it needs sampling data that only the hosted service records",
    "record_stability_info=True": "it needs sampling data that only the hosted service records",
    "DimuonParams, DimuonOptimizerConfig": "the algorithm is not published; use AdamW (`AdamParams`)",
    "kind='inflight'": "a sampling client always uses one fixed snapshot of the weights",
    "prompt_alt_tokens_k > 0": "use `topk_prompt_logprobs` or `target_prompt_logprobs` instead",
    "image chunks for a text model": "the model has no vision tower; use a vision-language model such as `tiny-vl`",
    "image pointer and audio chunks": "the local engine cannot fetch image pointers and has no audio encoder",
    "weights_access_token": "local checkpoints need no token",
    "ServiceClient(base_url=...), (api_key=...)": "the engine runs in this process; use `tinkerloop.connect` for a URL",
    "create_custom_loss with tinker < 0.36": "old versions cannot trace losses; use `forward_backward_custom`",
    "topk_sample_logprobs with tinker < 0.29": "the result of an old version has no field for it; upgrade tinker",
    "target_prompt_logprobs with tinker < 0.30": "the result of an old version has no field for it; upgrade tinker",
    "user_metadata of a checkpoint with tinker < 0.26": "an old version cannot list it; upgrade tinker",
    "get_sampler_handle() of an unsaved snapshot": "it exists only in this process; use `save_weights_for_sampler`",
    "architectures that the engine would run wrongly": "the engine's logits differ from those of transformers",
    "LoRA on some kinds of layers": "no adapter covers them, so they would not be trained; use `rank=0`",
    "an output layer that is not linear": "the engine computes logits in chunks, from one weight matrix",
}
"""Mapping from an argument, value or use to the reason why it is not supported."""


def unsupported_error(option: str, detail: str = "") -> NotImplementedError:
    """Return a NotImplementedError that names `option` (a key of `OPTIONS`) and the reason. `detail` is appended."""
    return NotImplementedError(
        f"the embedded engine does not support {option}: {OPTIONS[option]}{detail and f' ({detail})'}"
    )


def refuse_option(given: bool, option: str) -> None:
    """Raise a NotImplementedError that names `option` (a key of `OPTIONS`) if `given` is true."""
    if given:
        raise unsupported_error(option)


def refuse_without_field(given: bool, cls: type, field: str, option: str) -> None:
    """Like `refuse_option`, if the installed version of the type `cls` of `tinker` does not have `field`."""
    refuse_option(given and not has_field(cls, field), option)


def refuse(cls: Class) -> Class:
    """Add to the class `cls` the methods that `METHODS` lists for it. Each raises NotImplementedError when called."""
    for place, reason in METHODS.items():
        owner, name = place.split(".")
        if owner == cls.__name__:
            setattr(cls, name, _refusing(place, reason))
    return cls


def table() -> str:
    """Return `METHODS` and `OPTIONS` as a Markdown table.

    A star after a method means that its `_async` variant is not supported either.
    """
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
