"""`connect`, which opens a client of the hosted service, of a server at a URL, or of the embedded engine."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tinkerloop.clients import ServiceClientLike
from tinkerloop.errors import TinkerloopError
from tinkerloop.redaction import redacted
from tinkerloop.terminal import printable


def connect(
    service: str | None = None,
    *,
    root: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> ServiceClientLike:
    """Open a service client, and print a line with the name of the service to standard error.

    Args:
        service: "tinker" for the hosted service, whose key is read from TINKER_API_KEY; "local" for the embedded
            engine; or the URL of a server with Tinker's API, which needs no key on this machine. None: the hosted
            service if TINKER_API_KEY is set, otherwise the embedded engine. If TINKER_BASE_URL is set, it takes the
            place of the hosted service, as for the client of tinker.
        root: the folder in which the embedded engine stores checkpoints, by `tinker://` path. Used only for "local".
        device: the torch device of the embedded engine, such as "cpu" or "cuda:1". None: cuda if there is one.
        dtype: the dtype of the base weights in the embedded engine, such as "bfloat16". None: bfloat16 on cuda,
            otherwise float32.

    Raises:
        TinkerloopError: `service` is neither "tinker", "local" nor a URL, or `device` or `dtype` is given for another
            service than the embedded engine.
    """
    base_url = os.environ.get("TINKER_BASE_URL")
    if service is None:
        service = "tinker" if os.environ.get("TINKER_API_KEY") or base_url else "local"
    if service == "local":
        from tinkerloop.local import ServiceClient

        print("service: the embedded engine, in this process", file=sys.stderr)
        return ServiceClient(root=root, device=device, dtype=dtype)
    if (device, dtype) != (None, None):
        raise TinkerloopError(
            f"device={device!r} and dtype={dtype!r} are options of the embedded engine; for {redacted(service)} the "
            'server decides, so leave them out, or pass service="local"'
        )
    if service == "tinker" and base_url:
        service = base_url
    if service == "tinker":
        from tinkerloop.hosted import HostedServiceClient

        print("service: Tinker", file=sys.stderr)
        return HostedServiceClient()
    if not re.match("https?://", service, re.IGNORECASE):
        raise TinkerloopError(
            f'unknown service {redacted(service)!r}; expected "local", "tinker", or a URL that begins with http:// or https://'
        )
    service = _checked_url(service)
    from tinkerloop.bridges import UrlServiceClient

    print(f"service: Tinker at {printable(redacted(service))}", file=sys.stderr)
    return UrlServiceClient(service)


def _checked_url(url: str) -> str:
    """Return the URL of a server, with its scheme in lower case."""
    import httpx

    scheme = url.partition(":")[0]
    try:
        parts = urlsplit(url)
        is_valid = bool(httpx.URL(url).host and parts.port != 0 and not parts.query and not parts.fragment)
    except (ValueError, httpx.InvalidURL):
        is_valid = False
    if not is_valid:
        raise TinkerloopError(
            f"{redacted(url)!r} is not the URL of a server; expected a name or an address, a port from 1 to 65535 if "
            "it is not the usual one, and no query, as in http://127.0.0.1:8787"
        )
    return scheme.lower() + url[len(scheme) :]


@contextmanager
def session(service: Any) -> Iterator[Any]:
    """Use `service` in a `with` block, and end its session at the end of the block, which frees its models.

    The clients of tinker before 0.28 cannot end a session: it ends on the server after a time without heartbeats.
    """
    if not hasattr(service, "__exit__"):
        yield service
        return
    with service:
        yield service
