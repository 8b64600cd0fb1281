"""`connect`, which opens a client of the hosted service, of a server at a URL, or of the embedded engine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from tinkerloop._lazy import tinker
from tinkerloop.clients import ServiceClientLike
from tinkerloop.errors import TinkerloopError
from tinkerloop.redaction import redacted
from tinkerloop.terminal import printable


def connect(service: str | None = None, *, root: str | Path | None = None) -> ServiceClientLike:
    """Open a service client, and print a line with the name of the service to standard error.

    Args:
        service: "tinker" for the hosted service, whose key is read from TINKER_API_KEY; "local" for the embedded
            engine; or the URL of a server with Tinker's API. None: the hosted service if TINKER_API_KEY is set,
            otherwise the embedded engine.
        root: the folder in which the embedded engine stores checkpoints, by `tinker://` path. Used only for "local".

    Raises:
        TinkerloopError: `service` is neither "tinker", "local" nor a URL.
    """
    if service is None:
        service = "tinker" if os.environ.get("TINKER_API_KEY") else "local"
    if service == "local":
        from tinkerloop.local import ServiceClient

        print("service: the embedded engine, in this process", file=sys.stderr)
        return ServiceClient(root=root)
    if service != "tinker" and not service.startswith(("http://", "https://")):
        raise TinkerloopError(
            f'unknown service {redacted(service)!r}; expected "local", "tinker", or a URL that begins with http:// or https://'
        )
    address: dict[str, Any] = {} if service == "tinker" else {"base_url": service}
    client = tinker.ServiceClient(**address)
    print(f"service: Tinker{'' if service == 'tinker' else f' at {printable(redacted(service))}'}", file=sys.stderr)
    return client
