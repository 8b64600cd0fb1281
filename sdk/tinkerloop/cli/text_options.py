"""Texts as options of the commands: a function for argparse's `type=`."""

from __future__ import annotations

import argparse


def non_empty(written: str) -> str:
    """Return the text. An empty one, such as that of a shell variable that is not set, would count as no option."""
    if not written.strip():
        raise argparse.ArgumentTypeError(f"expected a text that is not empty, got {written!r}; or leave out the option")
    return written
