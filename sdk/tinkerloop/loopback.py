"""Servers on this machine: their addresses, and the key for them. A server on any other address needs a token."""

from __future__ import annotations

import ipaddress
import re

from tinkerloop.errors import TinkerloopError

LOCAL_KEY = "tml-local"
"""The key for a server on this machine. The client needs one, and such a server accepts any if it has no token."""
KEY_PREFIX = "tml-"
"""The client rejects keys with another beginning."""


def is_loopback(host: str) -> bool:
    """Return true if only this machine can reach the address `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_token(host: str, token: str | None) -> None:
    """Check that a server at the address `host` is protected by a token that the client can send.

    Raises:
        TinkerloopError: there is no token although other machines can reach the server, or the client rejects it.
    """
    if token is None and not is_loopback(host):
        raise TinkerloopError(
            f"--host {host} can be reached from other machines, so a token is needed: pass --token {KEY_PREFIX}..., "
            "and give it to the users as their TINKER_API_KEY"
        )
    if token is not None and (not token.startswith(KEY_PREFIX) or len(token) < len(KEY_PREFIX) + 8):
        raise TinkerloopError(
            f"the token must begin with {KEY_PREFIX!r}, because the tinker client rejects other keys, and have at "
            "least 8 more characters"
        )
    if token is not None and not re.fullmatch("[!-~]+", token):  # as an HTTP header is sent
        raise TinkerloopError(
            "the token contains a space, a line end, or a character that is not ASCII, which no client can send in a "
            "header; use letters, digits and signs of ASCII only"
        )
