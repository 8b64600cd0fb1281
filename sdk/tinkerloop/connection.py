"""Connections to a service: the hosted one, one at a URL, or the embedded engine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from tinkerloop._lazy import tinker
from tinkerloop.clients import ServiceClientLike
from tinkerloop.errors import TinkerloopError


def connect(service: str | None = None, *, root: str | Path | None = None) -> ServiceClientLike:
    """Open a service client, and print one line on standard error that names the service.

    Args:
        service: "tinker", the hosted service (its key in TINKER_API_KEY); "local", the embedded engine; a URL that
            speaks Tinker's API; None: the hosted service when there is a key, else the embedded engine.
        root: the folder in which the embedded engine stores checkpoints, by `tinker://` path.

    Raises:
        TinkerloopError: `service` is none of these.
    """
    if service is None:
        service = "tinker" if os.environ.get("TINKER_API_KEY") else "local"
    if service == "local":
        from tinkerloop.local import ServiceClient

        print("service: the embedded engine, in this process", file=sys.stderr)
        return ServiceClient(root=root)
    if service != "tinker" and not service.startswith(("http://", "https://")):
        raise TinkerloopError(f'service must be "local", "tinker" or a URL, got {service!r}')
    address: dict[str, Any] = {} if service == "tinker" else {"base_url": service}
    client = tinker.ServiceClient(**address)
    print(f"service: Tinker{'' if service == 'tinker' else f' at {service}'}", file=sys.stderr)
    return client
