"""Who may use the server, and the log of requests.

Without a token the server listens on the loopback address only. A web page in the user's browser could reach it there,
so a request needs the header X-API-Key, which a page cannot send to another origin, and the name of this machine.
"""

from __future__ import annotations

import hmac
import json
import logging
import re
import time
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinkerloop.errors import TinkerloopError
from tinkerloop.redaction import redacted
from tinkerloop.server.downloads import LINKS
from tinkerloop.terminal import one_line

logger = logging.getLogger(__name__)

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
_OPEN_PATHS = ("/healthz", "/api/v1/healthz")


class BodyTooLargeError(TinkerloopError):
    """Error for a request body that is larger than the server accepts. `beginning` is its first part."""

    def __init__(self, limit: int, beginning: bytes):
        self.beginning = beginning
        super().__init__(f"the body of the request has more than {limit} bytes, the largest size of this server")


async def read_body(request: Request, limit: int) -> bytes:
    """Read the body of a request, of at most `limit` bytes.

    A larger body is read to its end and dropped: a client that cannot send it all would try again.

    Raises:
        BodyTooLargeError: the body is larger.
    """
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        if size <= limit:
            parts.append(part)
        size += len(part)
    body = b"".join(parts)
    if size > limit:
        raise BodyTooLargeError(limit, body[:1024])
    return body


class AccessControl:
    """ASGI application that lets permitted requests through to `app`, and logs each request.

    Args:
        token: the key that every request must have; None: any key.
        hosts: the host names by which the server may be addressed; None: any name.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: Sequence[str] | None):
        self._app, self._token, self._hosts = app, token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 0

        async def watch(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            problem = None if scope["path"] in _OPEN_PATHS else self._problem(scope["path"], Headers(scope=scope))
            if problem is None:
                await self._app(scope, receive, watch)
            else:
                await _reject(watch, problem)
        finally:
            if logger.isEnabledFor(logging.INFO):
                logger.info("%s", _line(scope, status, 1000 * (time.monotonic() - begun)))

    def _problem(self, path: str, headers: Headers) -> str | None:
        """Return why the request is not permitted; None if it is."""
        host = re.sub(r":\d*$", "", headers.get("host", "").lower())
        if self._hosts is not None and host not in self._hosts:
            return f"the server must be addressed as {' or '.join(self._hosts)}"
        if path.startswith(LINKS):  # the link's signature takes the place of a key
            return None
        key = headers.get("x-api-key")
        if key is None:
            return "the header X-API-Key is missing"
        if self._token is not None and not hmac.compare_digest(key.encode(), self._token.encode()):
            return "the key in X-API-Key is not the token of this server; set TINKER_API_KEY to it"
        return None


async def _reject(send: Send, problem: str) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": problem}).encode()})


def _line(scope: Scope, status: int, milliseconds: float) -> str:
    client: Any = scope.get("client")
    query = scope["query_string"].decode("latin-1")
    path = redacted(f"{scope['path']}?{query}" if query else scope["path"])
    address = client[0] if client else "-"
    return one_line(f"{address} {scope['method']} {path} {status or '-'} {milliseconds:.0f}ms")
