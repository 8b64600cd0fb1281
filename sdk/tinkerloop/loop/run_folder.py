"""The folder of a run, with its configuration, environment, metrics, records, summary and a lock file."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from tinkerloop.errors import CheckpointError, RunLockedError, ServerLostError, TinkerloopError
from tinkerloop.loop.checkpoints import Checkpoints, Record
from tinkerloop.loop.config_json import json_form
from tinkerloop.loop.events import Summary
from tinkerloop.loop.jsonl import append_line, cut, read_lines, without_non_finite, write_atomic
from tinkerloop.loop.sinks import Jsonl
from tinkerloop.loop.start_environment import command, current_time, environment
from tinkerloop.redaction import redacted
from tinkerloop.terminal import one_line

_ANEW = "nothing was saved yet, so it is started anew"
_WRITTEN_AT_START = ("config.json", "environment.json", "facts.json", "summary.json")


class Run:
    """The folder of a run. It is locked while it is open, so that no other process can open it.

    The lock is released when the `with` block or the process ends, even if the process is killed. The files:

        config.json        the configuration of the latest start
        environment.json   time, command, code revision, host, Python and package versions of the latest start
        starts.jsonl       one line per start, with its configuration, environment and step
        facts.json         facts about the data and the model, written by `run.describe`
        metrics.jsonl      one row per step, evaluation or `Log`, written by the sink `run.metrics`
        checkpoints.jsonl  one line per record, written by `run.checkpoints`
        rollouts.jsonl     one line per group of rollouts, if `Rollouts` were given this path as `log`
        lock, lock.holder  the lock, and the process that holds it
        summary.json       how the latest training ended; absent while it runs and after a kill

    A start that does not train, for example because its options are rejected, leaves a run that was trained before as
    it was.
    NaN and the infinities, which JSON cannot write, are the strings "NaN", "Infinity" and "-Infinity" in all of them.

        with Run("runs/one", config={"steps": 100}) as run:
            record = run.checkpoints.latest()
            ...
            run.finish(loop.run())

    Args:
        folder: the path of the folder. It is created if it does not exist.
        config: the configuration to write. Values that are not JSON-serializable, such as paths, are written as `str`,
            without memory addresses; functions and classes as their names, and sets as sorted lists. Passwords, keys
            and tokens, known by their name or their place in a URL, are written as `***`.
        delete: function that deletes the checkpoint at a `tinker://` path, as for `Checkpoints`.

    Raises:
        CheckpointError: when the `with` block is entered and `folder` is a file, or its `lock` is a symbolic link.
        RunLockedError: when the `with` block is entered and another process has the folder open.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Mapping[str, Any] | None = None,
        *,
        delete: Callable[[str], object] | None = None,
    ):
        self.folder = Path(folder)
        self.config = redacted(without_non_finite(json_form(dict(config or {}))))
        self.checkpoints = Checkpoints(self.folder, delete)
        self.metrics = Jsonl(self.folder / "metrics.jsonl")
        self._has_begun = False
        self._held = FileLock(self.folder / "lock", timeout=0, mode=0o644, thread_local=False)

    def __enter__(self) -> Run:
        if self.folder.exists() and not self.folder.is_dir():
            raise CheckpointError(f"the run folder {self.folder} is a file: pass the path of a folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock()
        try:
            holder = f"process {os.getpid()} on {socket.gethostname()}"
            write_atomic(self._holder, holder.encode())
            self._start()
        except BaseException:
            try:
                if self._has_begun:
                    self._undo_start()
            finally:
                self._held.release()  # __exit__ is not called when __enter__ raises
            raise
        return self

    def _start(self) -> None:
        started = environment()
        then, latest = last_config(self.folder), self.checkpoints.latest()
        if then is not None and latest is not None:
            _print_changes(changed_options(then, self.config))
        self._latest = latest
        self._before = {name: _content(self.folder / name) for name in _WRITTEN_AT_START}
        self._began, self._seconds = time.monotonic(), _number_in(self._before["summary.json"], "seconds")
        self._starts = cut(self.folder / "starts.jsonl")
        self._has_begun = True
        self._write("config.json", self.config)
        self._write("environment.json", started)
        started["step"] = latest.step if latest else 0
        append_line(self.folder / "starts.jsonl", {"config": self.config, **started})
        self._summary.unlink(missing_ok=True)  # at last: on a full disk it could not be written again

    def describe(self, **facts: Any) -> None:
        """Write facts about the data and the model to facts.json, for people who read the page of the run.

        For example `run.describe(data=str(conversations.report), renderer=renderer.name)`. Values that are not
        JSON-serializable are written as `str`.
        """
        self._write("facts.json", redacted(json_form(facts)))

    def finish(self, summary: Summary) -> None:
        """Write `summary`, which `Loop.run` returns, to summary.json, with the seconds since the start.

        The seconds of earlier starts are added, if these came to an end.
        If the run was stopped before its end, for example by SIGTERM, also print to stderr how to go on. If there was
        nothing left to train, print that.
        """
        reason = redacted(summary.reason)
        self._write(
            "summary.json",
            {
                "step": summary.step,
                "reason": reason,
                "error": None if summary.error is None else redacted(repr(summary.error)),
                "metrics": dict(summary.metrics),
                "ended": current_time(),
                "seconds": round(self._seconds + time.monotonic() - self._began, 3),
            },
        )
        if summary.error is not None:
            return
        if not summary.stopped_early and self._latest is not None and self._latest.step == summary.step:
            steps = "" if summary.steps is None else f" of {summary.steps}"
            print(
                f"the run in {one_line(self.folder)} is complete: it was already at step {summary.step}{steps}, so "
                f"nothing was trained; to train further, give it more {'data' if summary.steps is None else 'steps'}",
                file=sys.stderr,
            )
        if summary.stopped_early:
            stopped = f"was stopped at step {summary.step} ({one_line(reason)})"
            print(f"the run in {one_line(self.folder)} {stopped}; {self._how_to_go_on()}", file=sys.stderr)

    def _how_to_go_on(self) -> str:
        latest = self.checkpoints.latest()
        where = f"it is resumed at step {latest.step}, from {latest.path}" if latest else _ANEW
        return f"{where}, by: {one_line(shlex.join(command()))}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self._fail(error)
            elif not self._summary.exists() and self._is_as_before():
                self._undo_start(keep=("facts.json",))
        finally:
            self._held.release()

    def _fail(self, error: BaseException) -> None:
        """Write the error to the summary, unless the start ended before it changed a run, and tell how to go on."""
        run, latest = f"the run in {one_line(self.folder)}", self.checkpoints.latest()
        note = f"{run} failed; {self._how_to_go_on()}"
        if self._is_as_before():
            self._undo_start()
            if isinstance(error, TinkerloopError) and not isinstance(error, ServerLostError):
                note = f"{run} is as it was before this start, which has trained nothing"
        else:
            self.finish(Summary(latest.step if latest else 0, "error", latest.metrics if latest else {}, error))
        if isinstance(error, Exception | KeyboardInterrupt):
            error.add_note(note)  # Python prints it after the traceback, where it is seen
        else:  # such as SystemExit, which ends a program without a traceback
            print(note, file=sys.stderr)

    def _is_as_before(self) -> bool:
        """Return true if the folder has a run that was trained before, and this start has not gone on with it."""
        latest, rows = self.checkpoints.latest(), self.metrics.path
        has_rows = rows.exists() and rows.stat().st_size > 0
        was_trained = latest is not None or has_rows or _number_in(self._before["summary.json"], "step") > 0
        return was_trained and not self.metrics.was_opened and _path(latest) == _path(self._latest)

    def _undo_start(self, keep: Collection[str] = ()) -> None:
        """Undo what this start has written about itself, except for the files `keep`."""
        for name, content in self._before.items():
            if name in keep or _content(self.folder / name) == content:
                continue
            if content is None:
                (self.folder / name).unlink(missing_ok=True)
            else:
                write_atomic(self.folder / name, content)
        if cut(self.folder / "starts.jsonl", self._starts) == 0:
            (self.folder / "starts.jsonl").unlink(missing_ok=True)

    @property
    def _summary(self) -> Path:
        return self.folder / "summary.json"

    @property
    def _holder(self) -> Path:
        return self.folder / "lock.holder"  # Windows lets no other process read a locked file

    def _lock(self) -> None:
        path = self.folder / "lock"
        if path.is_symlink():
            raise CheckpointError(
                f"{path} is a symbolic link to {os.readlink(path)}: expected a regular file; remove the link, which "
                "tinkerloop did not create"
            )
        try:
            self._held.acquire()
        except Timeout:
            holder = "unknown"
            if self._holder.is_file():
                holder = one_line(self._holder.read_bytes()[:200].decode(errors="replace").strip()) or holder
            raise RunLockedError(
                f"the run folder {self.folder} is in use by another process ({holder}): wait until it ends, stop it, "
                "or use another folder"
            ) from None

    def _write(self, name: str, value: Any) -> None:
        write_atomic(self.folder / name, json.dumps(without_non_finite(json_form(value)), indent=2).encode() + b"\n")


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


def _path(record: Record | None) -> str | None:
    return None if record is None else record.path


def _number_in(summary: bytes | None, name: str) -> float:
    """Return a number in the summary of an earlier start; 0 if there is none."""
    try:
        return float(json.loads(summary or b"{}").get(name, 0.0))
    except (ValueError, AttributeError, TypeError):
        return 0.0


def last_config(folder: str | Path) -> dict[str, Any] | None:
    """Return the configuration of the latest start that trained the run in `folder`; None if there was no such start.

    A start that failed before it wrote a record has not changed the run.
    """
    starts = list(read_lines(Path(folder) / "starts.jsonl", restore_numbers=False))
    latest = Checkpoints(folder).latest()
    trained = which_trained([start.get("step", 0) for start in starts], latest.step if latest else 0)
    configs = [start.get("config") for start, has_trained in zip(starts, trained, strict=True) if has_trained]
    return without_non_finite(configs[-1]) if configs else None


def which_trained(steps: Sequence[int], end: int) -> list[bool]:
    """Return for each start, which began at one of `steps`, if the run went on after it; `end` is where the run is now.

    >>> which_trained([0, 20, 20, 20], 50)  # the second and the third start failed
    [True, False, False, True]
    """
    return [later > step for step, later in zip(steps, [*steps[1:], end], strict=False)]  # both may be empty


def changed_options(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (option, value then, value now) for each option that differs. Nested options are joined with dots.

    >>> changed_options({"steps": 10, "data": {"file": "a"}}, {"steps": 20, "data": {"file": "a"}, "seed": 0})
    [('steps', 10, 20), ('seed', None, 0)]
    """
    before, after = flat_options(then), flat_options(now)
    options = list(dict.fromkeys([*before, *after]))
    changes = [(name, before.get(name), after.get(name)) for name in options]
    return [(name, then, now) for name, then, now in changes if not _is_same(then, now)]


def _is_same(then: Any, now: Any) -> bool:
    """Return true if two values are equal as JSON has them: true is not 1, but 1.0 is."""
    if isinstance(then, list) and isinstance(now, list):
        return len(then) == len(now) and all(map(_is_same, then, now))
    if isinstance(then, dict) and isinstance(now, dict):
        return then.keys() == now.keys() and all(_is_same(value, now[key]) for key, value in then.items())
    return then == now and isinstance(then, bool) == isinstance(now, bool)


def flat_options(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the options of a configuration without nesting: the names of nested options are joined with dots."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= flat_options(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _print_changes(changes: list[tuple[str, Any, Any]]) -> None:
    if not changes:
        return
    rows = [("option", "then", "now"), *(tuple(map(one_line, row)) for row in changes)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    print("the run is resumed with other options than at the last start that trained it:", file=sys.stderr)
    for option, then, now in rows:
        print(f"  {option:<{widths[0]}}  {then:<{widths[1]}}  {now}", file=sys.stderr)
