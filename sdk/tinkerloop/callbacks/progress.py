"""`Progress`, which shows the progress of a run on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from tinkerloop.loop.callback import Callback
from tinkerloop.loop.events import EvalResult, Requests, StepResult, Summary
from tinkerloop.number_checks import check_whole
from tinkerloop.terminal import one_line

_REWARDS = ("rollouts/reward_mean", "reward")
_UPDATE_SECONDS = 0.1
"""The time between two updates of the bar in a notebook, each of which is a message to the browser."""


class Progress(Callback):
    """Show a progress bar with the loss, the learning rate, tokens per second, and the mean reward of rollouts.

    The reward is shown if a callback logs it, as `rollouts/reward_mean` (`PolicyStats`) or `reward`.

    In a notebook, the bar is part of the cell's output. If the output is neither a terminal nor a notebook, print plain
    lines instead.

    Args:
        every: the number of steps between two plain lines.
        file: where to write; None: the notebook, or else standard error.
    """

    def __init__(self, *, every: int = 10, file: TextIO | None = None):
        check_whole("every", every, 1)
        self._every, self._file = every, file
        self._bar: Any = None
        self._notebook_output: Any = None
        self._updated = 0.0

    def on_start(self, step: int, steps: int | None) -> Requests:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._steps, self._tokens, self._began, self._text = steps, 0, time.perf_counter(), ""
        self._console = Console(
            file=self._file or sys.stderr, highlight=False, markup=False, force_jupyter=False if self._file else None
        )
        if self._console.is_terminal or self._console.is_jupyter:
            columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn()]
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("", total=steps, completed=step, text="")
            if self._console.is_jupyter:
                from IPython.display import display  # pyright: ignore[reportMissingImports]

                self._notebook_output = display(self._table(), display_id=True)
            else:
                self._bar.start()
        if step:
            self._console.print(f"resumed at step {step}")

    def on_step(self, result: StepResult) -> Requests:
        self._tokens += result.plan.tokens
        rate = self._tokens / max(time.perf_counter() - self._began, 1e-9)
        self._text = f"loss {result.loss:.4f}  lr {result.plan.optim.learning_rate:.2e}  {rate:,.0f} tok/s"

    def on_row(self, step: int, row: Mapping[str, float]) -> Requests:
        if "loss" not in row:  # the row of an evaluation
            return
        text = "".join([f"reward {row[name]:.3f}  " for name in _REWARDS if name in row][:1]) + self._text
        if self._bar:
            self._bar.update(self._task, completed=step + 1, text=text)
            if self._notebook_output and time.perf_counter() - self._updated > _UPDATE_SECONDS:
                self._notebook_output.update(self._table())
                self._updated = time.perf_counter()
        elif step % self._every == 0 or step + 1 == self._steps:
            self._console.print(f"step {step:>6}  {text}")

    def on_eval(self, result: EvalResult) -> Requests:
        if isinstance(result.value, dict):
            numbers = {metric: value for metric, value in result.value.items() if isinstance(value, int | float)}
            text = "  ".join(
                f"{one_line(result.name)}/{one_line(metric)} {value:.4f}" for metric, value in numbers.items()
            )
            self._console.print(f"step {result.step:>6}  {text}")

    def on_end(self, summary: Summary) -> None:
        if self._notebook_output:
            self._notebook_output.update(self._table())
        elif self._bar:
            self._bar.stop()
        self._bar = self._notebook_output = None
        self._console.print(f"ended at step {summary.step}: {one_line(summary.reason)}")

    def _table(self) -> Any:
        """Return the bar as one of rich's tables, which a notebook shows as HTML."""
        return self._bar.make_tasks_table(self._bar.tasks)
