"""The ids of models, samplers and requests.

An id is made from what the client sends, so that a repeated request has the id of the first one. The client computes
the id of a model itself, from its session and a counter.
"""

from __future__ import annotations

from typing import Any, TypeGuard


def model_id(session: str, number: int) -> str:
    """Return the id of a session's model, which is also the run in the paths of its checkpoints."""
    return f"{session}:train:{number}"


def sampler_id(session: str, number: int) -> str:
    """Return the id of a session's sampler, which tinker calls a sampling session."""
    return f"{session}:sample:{number}"


def request_id(owner: str, number: int) -> str:
    """Return the id of a request to the model or sampler `owner`."""
    return f"{owner}:{number}"


def is_number(value: Any) -> TypeGuard[int]:
    """Return true if `value` can be the number of a model, of a sampler or of a request."""
    return type(value) is int and 0 <= value < 2**63


def owner_of(request: str) -> str:
    """Return the model or the sampler to which a request was sent."""
    return request.rpartition(":")[0]


def session_of(owner: str) -> str:
    """Return the session to which a model or a sampler belongs."""
    return owner.partition(":")[0]
