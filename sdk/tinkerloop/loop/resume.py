"""Opening a training client from a record, and the check that a loop resumes with such a client.

A record names its model, so a client cannot be opened from it as another model. A loop resumes a record only with a
client that was opened from this record and that no loop has used since.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeVar, Unpack

from tinkerloop.clients import LoraOptions, ServiceClientLike, TrainingClientLike
from tinkerloop.errors import CheckpointError, PlanError
from tinkerloop.loop.checkpoints import Record
from tinkerloop.loop.futures import resolve
from tinkerloop.loop.metric_names import did_you_mean
from tinkerloop.loop.weak_identity_map import WeakIdentityMap
from tinkerloop.model_info import warn_if_retired

logger = logging.getLogger(__name__)

ClientT = TypeVar("ClientT", bound=TrainingClientLike)
_RECORDED = ("base_model", "rank", "seed", "train_mlp", "train_attn", "train_unembed", "optimizer")
_DEFAULTS = {"train_mlp": True, "train_attn": True, "train_unembed": True, "optimizer": None}
"""The values of options that a record lacks, because the client was created without them."""
_opened: WeakIdentityMap[str] = (
    WeakIdentityMap()
)  # client -> path of the record that it was opened from, until a loop begins
_models: WeakIdentityMap[Mapping[str, Any]] = WeakIdentityMap()  # client -> its model, as asked for


def open_training_client(
    service: ServiceClientLike, record: Record | None, **create: Unpack[LoraOptions]
) -> TrainingClientLike:
    """Open a training client with the weights and optimizer of a record, or a new one if `record` is None.

    Args:
        service: the service client, as returned by `tinkerloop.connect`.
        record: the record to resume from; None for a new run.
        create: arguments of `create_lora_training_client` for a new run, such as `base_model=` and `rank=`. With a
            record they may be left out; if given, they must have the record's values. Only `user_metadata`, of the new
            client, may be another. Another `seed` gives a warning, because it has no effect on an adapter that is
            loaded.

    Raises:
        PlanError: `create` has a name that is no option.
        CheckpointError: the service no longer has the checkpoint of the record, or `create` names another model.
    """
    from tinker import NotFoundError, ServiceClient

    options: Any = create  # the service raises if base_model is missing
    _refuse_unknown_options(options)
    asked = {name: _as_json(value) for name, value in options.items() if name in _RECORDED}
    if record is None:
        if type(service) is ServiceClient:  # not by `connect`, whose client of the hosted service warns itself
            warn_if_retired(str(options.get("base_model")))
        client = resolve(service.create_lora_training_client(**options))
        _models.set(client, {**_described(client), **asked})
        return client
    _refuse_another_model(record, asked)
    metadata: Any = {name: value for name, value in options.items() if name == "user_metadata" and value is not None}
    try:
        client = resolve(service.create_training_client_from_state_with_optimizer(record.path, **metadata))
    except (NotFoundError, FileNotFoundError) as error:
        raise CheckpointError(
            f"the checkpoint of step {record.step} is not there: {record.path}. For the embedded engine, open the "
            "service with the root= of the run, such as connect('local', root=...). If the checkpoint was deleted or "
            "has expired, resume from an older record (see Checkpoints.records()), or start a new run in a new folder"
        ) from error
    return mark_opened(client, record)


def mark_opened(client: ClientT, record: Record) -> ClientT:
    """Declare that `client` was just opened from `record`, with its weights and optimizer. Return `client`.

    `open_training_client` calls it. Call it yourself only for a client that you opened by other means.
    """
    opened = resolve(client)
    _opened.set(opened, record.path)
    _models.set(opened, {**_described(opened), **(record.model or {})})
    return client


def refuse_another_client(client: TrainingClientLike, record: Record) -> None:
    """Check that `client` was opened from `record`, and that no loop has begun on it since.

    Raises:
        CheckpointError: it was not.
    """
    opened_from = _opened.get(client)
    if opened_from == record.path:
        return
    what = f"was opened from {opened_from}" if opened_from else "was not opened from it, or a loop has already used it"
    raise CheckpointError(
        f"the loop resumes the record of step {record.step} ({record.path}), but its client {what}: pass the client "
        "that open_training_client(service, record) returns. If you opened it from this record by hand, with the "
        "optimizer, say so: mark_opened(client, record), from tinkerloop.loop"
    )


def begin(client: TrainingClientLike) -> None:
    """Note that a loop begins to train `client`, so that its weights are no longer those of a record."""
    _opened.forget(client)


def model_of(client: TrainingClientLike) -> Mapping[str, Any]:
    """Return the known properties of the client's model: `base_model`, `rank`, and the arguments that created it."""
    return _models.get(client) or _described(client)


def _described(client: TrainingClientLike) -> dict[str, Any]:
    """Return base model and rank as `client.get_info()` gives them; an empty dict if the client has no `get_info`."""
    if not hasattr(client, "get_info"):
        return {}
    info = client.get_info()
    model = {"base_model": info.model_data.model_name, "rank": info.lora_rank}
    return {name: value for name, value in model.items() if value is not None}


def _refuse_unknown_options(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in LoraOptions.__annotations__:
            raise PlanError(
                f"open_training_client has no option {name!r}{did_you_mean(name, LoraOptions.__annotations__)} (its "
                f"options are {', '.join(LoraOptions.__annotations__)})"
            )


def _as_json(value: Any) -> Any:
    """Return the value of an option as a record has it: an `OptimizerConfig` as a dict."""
    return value.model_dump() if hasattr(value, "model_dump") else value


def _refuse_another_model(record: Record, asked: Mapping[str, Any]) -> None:
    then = {**_DEFAULTS, **record.model} if record.model else {}
    changed = {name: value for name, value in asked.items() if name in then and then[name] != value}
    if "seed" in changed:
        logger.warning(
            "the run was started with seed=%r and is resumed with seed=%r: the new seed has no effect on the adapter, "
            "whose weights come from the record",
            then["seed"],
            changed.pop("seed"),
        )
    if changed:
        differences = "; ".join(f"{name} was {then[name]!r}, asked is {value!r}" for name, value in changed.items())
        raise CheckpointError(
            f"the record of step {record.step} is of another model: {differences}. Ask for the model of the record, "
            "leave these options out, or start a new run in a new folder"
        )
