"""The environment of a start of a program: time, command line, code revision, host, Python and packages."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

from tinkerloop._version import __version__
from tinkerloop.redaction import redacted_arguments

COMMAND_VARIABLE = "TINKERLOOP_COMMAND"
"""The environment variable with the command line, as a JSON list, by which a person starts this program.

`tinkerloop run` sets it: the script that it starts would train elsewhere if it were started by itself.
"""
_PACKAGES = ("tinker", "torch", "transformers", "peft", "numpy")


def command() -> list[str]:
    """Return the command line that starts this program again, with passwords, keys and tokens replaced."""
    try:
        arguments = json.loads(os.environ.get(COMMAND_VARIABLE, ""))
    except ValueError:
        arguments = None
    is_command = isinstance(arguments, list) and all(isinstance(one, str) for one in arguments)
    return redacted_arguments(arguments if is_command and arguments else sys.orig_argv)


def environment() -> dict[str, Any]:
    """Return the current time (UTC), command line, code revision, host, and the versions of Python and packages."""
    # Not from the metadata, whose package name may differ.
    versions: dict[str, str | None] = {"tinkerloop": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "started": current_time(),
        "command": command(),
        "revision": _revision(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": versions,
    }


def _revision() -> str | None:
    """Return the git commit of the working directory, with a "+" if files have changed since; None outside git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def current_time() -> str:
    """Return the current time (UTC) as text."""
    return datetime.now(UTC).isoformat(timespec="seconds")
