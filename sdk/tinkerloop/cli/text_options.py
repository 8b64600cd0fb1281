"""Texts and paths as options of the commands: functions for argparse's `type=`."""

from __future__ import annotations

import argparse
from pathlib import Path


def non_empty(written: str) -> str:
    """Return the text. An empty one, such as that of a shell variable that is not set, would count as no option."""
    if not written.strip():
        raise argparse.ArgumentTypeError(f"expected a text that is not empty, got {written!r}; or leave out the option")
    return written


def non_empty_path(written: str) -> Path:
    """Return the path. An empty one, such as that of a shell variable that is not set, would be the current folder."""
    if not written.strip():
        raise argparse.ArgumentTypeError(
            f"expected a path that is not empty, got {written!r}; for the current folder, pass ."
        )
    return Path(written)
