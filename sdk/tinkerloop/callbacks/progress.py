"""`Progress`, which shows the progress of a run on the terminal."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from tinkerloop.loop.callback import Callback
from tinkerloop.loop.events import EvalResult, Requests, StepResult, Summary
from tinkerloop.terminal import one_line


class Progress(Callback):
    """Show a progress bar with the loss, the learning rate and tokens per second.

    If the output is not a terminal, print plain lines instead.

    Args:
        every: the number of steps between two plain lines.
        file: where to write; None: standard error.
    """

    def __init__(self, *, every: int = 10, file: TextIO | None = None):
        self._every, self._file = every, file
        self._bar: Any = None

    def on_start(self, step: int, steps: int | None) -> Requests:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._steps, self._tokens, self._began = steps, 0, time.perf_counter()
        self._console = Console(file=self._file or sys.stderr, highlight=False, markup=False)
        if self._console.is_terminal:
            columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn()]
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("", total=steps, completed=step, text="")
            self._bar.start()

    def on_step(self, result: StepResult) -> Requests:
        self._tokens += result.plan.tokens
        rate = self._tokens / max(time.perf_counter() - self._began, 1e-9)
        text = f"loss {result.loss:.4f}  lr {result.plan.optim.learning_rate:.2e}  {rate:,.0f} tok/s"
        if self._bar:
            self._bar.update(self._task, completed=result.step + 1, text=text)
        elif result.step % self._every == 0 or result.step + 1 == self._steps:
            self._console.print(f"step {result.step:>6}  {text}")

    def on_eval(self, result: EvalResult) -> Requests:
        if isinstance(result.value, dict):
            numbers = {metric: value for metric, value in result.value.items() if isinstance(value, int | float)}
            text = "  ".join(
                f"{one_line(result.name)}/{one_line(metric)} {value:.4f}" for metric, value in numbers.items()
            )
            self._console.print(f"step {result.step:>6}  {text}")

    def on_end(self, summary: Summary) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None
        self._console.print(f"ended at step {summary.step}: {one_line(summary.reason)}")
