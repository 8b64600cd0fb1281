"""Settings of the whole suite (no GPU unless named, hypothesis, no long runs), and a network without hosts."""

from __future__ import annotations

import os
import socket

# The tests expect the CPU's numbers. A GPU is used, and tested, only where CUDA_VISIBLE_DEVICES names it.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
from hypothesis import settings

# A slow example on a busy machine is not a failure, and a test has the same examples in every run.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile("suite")


@pytest.fixture
def asked_hosts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the hosts that the test asks for. None of them is found."""
    from huggingface_hub.utils import build_hf_headers

    build_hf_headers()  # asks the hub once in a process, for no model
    hosts: list[str] = []

    def getaddrinfo(host: str, *args: object, **options: object) -> None:
        hosts.append(host)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return hosts


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long runs unless a marker expression is given: `pytest -m soak`."""
    if config.option.markexpr:
        return
    long = {item for item in items if item.get_closest_marker("soak")}
    if long:
        config.hook.pytest_deselected(items=[item for item in items if item in long])
        items[:] = [item for item in items if item not in long]
