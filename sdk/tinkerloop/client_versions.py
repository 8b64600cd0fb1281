"""Differences between the versions of the `tinker` client that `pyproject.toml` allows."""

from __future__ import annotations

import inspect
import warnings
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tinker


@cache
def has_field(cls: type, name: str) -> bool:
    """Return whether the installed version of a `tinker` type has the field `name`.

    `has_field(tinker.SampledSequence, "sequence_id")` is False before tinker 0.26.
    """
    return name in inspect.signature(cls).parameters


def open_rest_client(service: tinker.ServiceClient) -> tinker.RestClient:
    """Return the REST client of a service client, without the warning of newer versions.

    They advise to construct `tinker.RestClient` instead, which needs a holder of connections before tinker 0.36.
    """
    import tinker

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return tinker.ServiceClient.create_rest_client(service)
