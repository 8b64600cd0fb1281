"""`Timing`, which logs how long the parts of each step take."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from tinkerloop.loop.callback import Callback
from tinkerloop.loop.events import Log, Requests, StepResult
from tinkerloop.loop.jsonl import cut, encode


class Timing(Callback):
    """Log the total time of each step, and its parts: waiting for data, waiting for the service, callbacks, and other.

    The metrics, in seconds, are `time/total`, `time/data`, `time/server`, `time/callbacks` and `time/other`. `totals`
    has their sums over the run, by the name after `time/`.

    Args:
        per_callback: if true, also log the time of each callback, as `time/callback/<name>`.
        file: a file to which the times are appended as JSON lines, with the names after `time/`, in place of the row of
            metrics. So the metrics of equal runs are equal. The page of a run reads `timings.jsonl` in its folder.
    """

    def __init__(self, *, per_callback: bool = False, file: str | Path | None = None):
        self._per_callback, self._file = per_callback, None if file is None else Path(file)
        self.totals: dict[str, float] = defaultdict(float)

    def on_start(self, step: int, steps: int | None) -> Requests:
        if self._file is not None:
            cut(self._file)  # removes a line that a kill left incomplete

    def on_step(self, result: StepResult) -> Requests:
        spent = dict(result.timings)
        known = {part: spent.get(part, 0.0) for part in ("total", "data", "server", "callbacks")}
        known["other"] = max(known["total"] - known["data"] - known["server"] - known["callbacks"], 0.0)
        if self._per_callback:
            known |= {part: seconds for part, seconds in spent.items() if part.startswith("callback/")}
        for part, seconds in known.items():
            self.totals[part] += seconds
        if self._file is not None:
            with self._file.open("ab") as file:
                file.write(encode({"step": result.step, **{part: round(known[part], 6) for part in known}}))
            return None
        return Log({f"time/{part}": seconds for part, seconds in known.items()})

    def report(self) -> str:
        """Return the totals as one line of text, each in seconds and as a share of the total time."""
        total = self.totals["total"] or 1.0
        return "  ".join(f"{part} {seconds:.2f}s ({seconds / total:.0%})" for part, seconds in self.totals.items())
