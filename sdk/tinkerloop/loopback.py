"""Servers on this machine: their addresses, and the key for them."""

from __future__ import annotations

import ipaddress

LOCAL_KEY = "tml-local"
"""The key for a server on this machine. The client needs one, and such a server accepts any if it has no token."""


def is_loopback(host: str) -> bool:
    """Return true if only this machine can reach the address `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
