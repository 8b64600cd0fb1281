"""Settings of the whole suite: no GPU unless named, the hypothesis profile, long runs left out."""

from __future__ import annotations

import os

# The tests expect the CPU's numbers. A GPU is used, and tested, only where CUDA_VISIBLE_DEVICES names it.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
from hypothesis import settings

settings.register_profile("suite", deadline=None)  # a slow example on a busy machine is not a failure
settings.load_profile("suite")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long runs unless a marker expression is given: `pytest -m soak`."""
    if config.option.markexpr:
        return
    long = {item for item in items if item.get_closest_marker("soak")}
    if long:
        config.hook.pytest_deselected(items=[item for item in items if item in long])
        items[:] = [item for item in items if item not in long]
