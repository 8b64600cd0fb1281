"""Processes for tests that kill them. They begin with the embedded engine imported.

A run of these tests takes a second or two; importing torch and transformers takes several. So every process is forked
from one that has imported them and does nothing else: the `forkserver` of the standard library. Each is a process of
its own, which any signal ends. They share their hash seed. It differs from that of processes started in another way,
such as the uninterrupted run with which a test compares.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "tinkerloop.local",
        "transformers.models.qwen3.modeling_qwen3",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
    ]
)


class Process:
    """A running Python program, forked from a process in which the engine is imported.

    Args:
        code: the program.
        arguments: its arguments, `sys.argv[1:]`.
        output: the file for what the process writes to its standard output and error output.
    """

    def __init__(self, code: str, *arguments: str, output: Path) -> None:
        self._output = output
        output.parent.mkdir(parents=True, exist_ok=True)
        output.touch()
        started = (code, arguments, output, dict(os.environ))
        self._process = _FORKS.Process(target=_run, args=started, daemon=True)
        self._process.start()

    @property
    def has_ended(self) -> bool:
        return self._process.exitcode is not None

    @property
    def output(self) -> str:
        return self._output.read_text()

    def kill(self) -> None:
        """End the process with SIGKILL."""
        self._process.kill()
        self._process.join()

    def terminate(self) -> None:
        """Send SIGTERM to the process."""
        self._process.terminate()

    def finish(self) -> str:
        """Return the output of the process when it has ended, with the status 0.

        The limit of 20 minutes is against hanging; a busy machine may need minutes.
        """
        self._process.join(1200)
        assert self._process.exitcode == 0, self.output
        return self.output

    def wait_for(self, path: Path) -> None:
        """Return when the file exists, or the process has ended."""
        while not self.has_ended and not path.exists():
            time.sleep(0.01)


def timed(command: Sequence[str], first_file: Path) -> tuple[str, float]:
    """Run a command as a user does, with a hash seed of its own.

    Returns:
        Its output, and the seconds that it ran after the first file existed: those of a `Process` that does the same.
    """
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while process.poll() is None and not first_file.exists():
            time.sleep(0.01)
        began = time.monotonic()
        output = process.communicate(timeout=1200)[0]
    assert process.returncode == 0, output
    return output, time.monotonic() - began


def _run(code: str, arguments: Sequence[str], output: Path, variables: Mapping[str, str]) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(ROOT)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<program of a test>", "exec"), {"__name__": "__main__"})
