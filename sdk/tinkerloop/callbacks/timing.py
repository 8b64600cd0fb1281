"""Times of a step's parts."""

from __future__ import annotations

from collections import defaultdict

from tinkerloop.loop.callback import Callback
from tinkerloop.loop.events import Log, Requests, StepResult


class Timing(Callback):
    """Log how long each step took, and on what: waiting for data, for the server, in callbacks, elsewhere.

    Metrics, in seconds: `time/total`, `time/data`, `time/server`, `time/callbacks`, `time/other`, and with
    `per_callback` also `time/callback/<name>`. `totals` holds their sums over the run.
    """

    def __init__(self, *, per_callback: bool = False):
        self._per_callback = per_callback
        self.totals: dict[str, float] = defaultdict(float)

    def on_step(self, result: StepResult) -> Requests:
        spent = dict(result.timings)
        known = {part: spent.get(part, 0.0) for part in ("total", "data", "server", "callbacks")}
        known["other"] = max(known["total"] - known["data"] - known["server"] - known["callbacks"], 0.0)
        if self._per_callback:
            known |= {part: seconds for part, seconds in spent.items() if part.startswith("callback/")}
        for part, seconds in known.items():
            self.totals[part] += seconds
        return Log({f"time/{part}": seconds for part, seconds in known.items()})

    def report(self) -> str:
        """Format the totals as one line, with their shares of the whole."""
        total = self.totals["total"] or 1.0
        return "  ".join(f"{part} {seconds:.2f}s ({seconds / total:.0%})" for part, seconds in self.totals.items())
