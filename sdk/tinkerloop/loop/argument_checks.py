"""Checks of what a loop is given: a training client, and batches of datums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tinkerloop._lazy import tinker
from tinkerloop.errors import PlanError


def datums_of(batch: Any, what: str = "a batch") -> tuple[tinker.Datum, ...]:
    """Return the datums of a batch. Raise PlanError, which names it as `what`, if it is not a list of datums."""
    if isinstance(batch, tinker.Datum):
        raise PlanError(
            f"{what} must be a list of datums, got a single datum: create batches with tinkerloop.data.batches(...)"
        )
    is_row = isinstance(batch, str | Mapping) or not isinstance(batch, Iterable)
    rows: tuple[Any, ...] = (batch,) if is_row else tuple(batch)
    for row in rows:
        if not isinstance(row, tinker.Datum):
            raise PlanError(
                f"{what} must be a list of datums: expected tinker.Datum, got {_a(row)}; make datums with "
                "conversation_datums(conversations, renderer, max_length), and batches with batches(datums, size)"
            )
    return rows


def refuse_other_client(client: Any) -> None:
    """Raise if `client` does not train: it may be a service client, or the batches in its place."""
    if hasattr(client, "create_lora_training_client"):
        raise PlanError(
            f"the loop needs a training client, got the service client {type(client).__name__}: open one with "
            "open_training_client(service, None, base_model=...) or service.create_lora_training_client(...)"
        )
    if not hasattr(client, "optim_step"):
        raise PlanError(
            f"the first argument of Loop must be a training client, got {_a(client)}: the order is "
            "Loop(client, batches)"
        )


def _a(value: object) -> str:
    """Return the name of a value's type with an article, such as "a Conversation"."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
