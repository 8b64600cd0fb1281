"""What holds for the whole suite."""

from __future__ import annotations

import os

# The numbers that the tests know are the CPU's. A GPU that is named (CUDA_VISIBLE_DEVICES=0) is used, and tested.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
from hypothesis import settings

settings.register_profile("suite", deadline=None)  # on a busy machine a slow example is no failure
settings.load_profile("suite")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the long runs out unless a marker expression asks for them: `pytest -m soak`."""
    if config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("soak")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]
