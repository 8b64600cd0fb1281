"""Values that a recipe computes before training and that a resumed run must find unchanged. This is not a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinkerloop.loop.jsonl import write_atomic


def stored(path: Path, compute: Callable[[], Any]) -> Any:
    """Return the JSON value in a file. If there is no such file, compute the value and store it.

    A resumed run cannot compute it again: a service need not sample the same tokens, and the client is trained then.
    """
    if not path.exists():
        write_atomic(path, json.dumps(compute()).encode())
    return json.loads(path.read_bytes())
