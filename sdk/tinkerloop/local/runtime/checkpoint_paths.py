"""Parsing of checkpoint paths, `tinker://RUN/KIND/NAME`."""

from __future__ import annotations

import re
from typing import Literal

CheckpointKind = Literal["weights", "sampler_weights", "external_weights"]
KINDS: tuple[CheckpointKind, ...] = ("weights", "sampler_weights", "external_weights")
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}")


def parse_path(path: str) -> tuple[str, CheckpointKind, str]:
    """Return (run, kind, name) of a path `tinker://RUN/KIND/NAME`.

    Raises:
        ValueError: the path has another form, an unknown kind, or characters that are not allowed.
    """
    segments = str(path).removeprefix("tinker://").split("/")
    if not str(path).startswith("tinker://") or len(segments) != 3:
        raise ValueError(
            f"Invalid tinker path {path!r}: expected tinker://RUN/weights/NAME or tinker://RUN/sampler_weights/NAME"
        )
    run, kind, name = segments
    if kind not in KINDS:
        raise ValueError(f"Invalid tinker path {path!r}: unknown kind {kind!r}, expected one of {', '.join(KINDS)}")
    for segment in (run, name):
        if not _SEGMENT.fullmatch(segment):
            raise ValueError(
                f"Invalid tinker path {path!r}: {segment!r} is not a valid name; expected 1 to 200 letters, digits "
                "and . _ : -, beginning with a letter or a digit"
            )
    return run, kind, name
