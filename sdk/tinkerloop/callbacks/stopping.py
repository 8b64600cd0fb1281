"""Callbacks that end a run early.

They stop when a metric stops improving or leaves its bounds, when a value is not finite, or when a budget is used up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tinkerloop.errors import NonFiniteError, PlanError, TinkerloopError
from tinkerloop.loop.callback import Callback
from tinkerloop.loop.events import EvalResult, Requests, StepResult, Stop, Summary
from tinkerloop.loop.metric_names import did_you_mean, metric_of
from tinkerloop.number_checks import check_finite_number, check_whole


@dataclass
class _Patience:
    best: float | None = None
    best_step: int = 0
    bad: int = 0


class EarlyStop(Callback):
    """Stop when a metric of an evaluation has not improved for `patience` evaluations in a row.

    A resumed run decides again from the saved state. So a stopped run stays stopped, unless it is resumed with a larger
    `patience`.

    Args:
        metric: the metric as it is logged, `<evaluation>/<metric>`, such as "test/nll" or "test/math/accuracy". The
            evaluation must not be detached.
        patience: the number of evaluations in a row without improvement after which the run stops.
        mode: "min" if lower values are better, "max" if higher values are better.
        min_delta: a change counts as an improvement only if it is larger than this.
    """

    def __init__(self, metric: str, *, patience: int = 3, mode: str = "min", min_delta: float = 0.0):
        if mode not in ("min", "max"):
            raise PlanError(f'mode must be "min" or "max", got {mode!r}')
        check_whole("patience", patience, 1)
        check_finite_number("min_delta", min_delta, 0)
        self.name = f"early-stop:{metric}"
        self._metric, self._patience, self._min_delta = metric, patience, min_delta
        self._sign = 1.0 if mode == "min" else -1.0
        self.state = _Patience()
        self._missed: list[str] = []

    @property
    def decides_from(self) -> Mapping[str, bool]:  # type: ignore[override]
        return {self._metric: True}

    def on_start(self, step: int, steps: int | None) -> Requests:
        return self._decide()

    def on_eval(self, result: EvalResult) -> Requests:
        key = metric_of(result.name, self._metric)
        if key is None or result.detached:
            return None
        if key not in result.value:
            self._missed = [f"{result.name}/{name}" for name in result.value]
            if "/" in key:  # it may be a metric of an evaluation with a longer name
                return None
            raise TinkerloopError(
                f"evaluation {result.name!r} returned no metric {key!r}; its metrics are {sorted(result.value)}"
                f"{did_you_mean(key, result.value)}"
            )
        value = float(result.value[key])
        best = self.state.best
        if best is None or math.isnan(best) or self._sign * (best - value) > self._min_delta:
            self.state = _Patience(value, result.step, 0)
        else:
            self.state.bad += 1
        return self._decide()

    def on_end(self, summary: Summary) -> None:
        if self.state.best is None and self._missed and summary.error is None:
            raise TinkerloopError(
                f"no evaluation has returned the metric {self._metric!r}, so the run was never stopped early: the "
                f"metrics are {sorted(self._missed)}{did_you_mean(self._metric, self._missed)}"
            )

    def _decide(self) -> Requests:
        if self.state.bad < self._patience:
            return None
        return Stop(f"{self._metric} has not improved on {self.state.best:.6g} since step {self.state.best_step}")


@dataclass
class _Outside:
    rows: int = 0
    value: float = 0.0
    is_known: bool = False


class StopWhen(Callback):
    """Stop when a metric has been above or below a threshold for `patience` rows in a row.

    It can be any metric that is logged for steps or evaluations, also by another callback. Rows without the metric do
    not count; NaN counts as beyond the threshold. A resumed run decides again from the saved state.

        StopWhen("policy/kl_k3", above=0.1, patience=5)

    Args:
        metric: the metric as it is logged, such as "policy/kl_k3" or "test/nll". Its evaluation must not be detached.
        above: stop when the metric is greater than this; None: no upper threshold.
        below: stop when the metric is less than this; None: no lower threshold.
        patience: the number of rows in a row, each with the metric beyond the threshold, after which the run stops.
    """

    def __init__(self, metric: str, *, above: float | None = None, below: float | None = None, patience: int = 1):
        if above is None and below is None:
            raise PlanError(f"StopWhen needs a threshold for {metric!r}, got none: pass above= or below=")
        check_whole("patience", patience, 1)
        thresholds = {"above": above, "below": below}
        for side, value in thresholds.items():
            if value is not None:
                check_finite_number(side, value)
        self._bounds = " or ".join(f"{side} {value:g}" for side, value in thresholds.items() if value is not None)
        self.name = f"stop-when:{metric}"
        self._metric, self._patience = metric, patience
        self._above = math.inf if above is None else above
        self._below = -math.inf if below is None else below
        self.state = _Outside()
        self._missed: set[str] = set()

    @property
    def decides_from(self) -> Mapping[str, bool]:  # type: ignore[override]
        return {self._metric: False}

    def on_start(self, step: int, steps: int | None) -> Requests:
        return self._decide()

    def on_row(self, step: int, row: Mapping[str, float]) -> Requests:
        if self._metric not in row:
            self._missed.update(row)
            return None
        value = float(row[self._metric])
        is_outside = not self._below <= value <= self._above  # also true for NaN
        self.state = _Outside(self.state.rows + 1 if is_outside else 0, value, is_known=True)
        return self._decide()

    def on_end(self, summary: Summary) -> None:
        if not self.state.is_known and self._missed and summary.error is None:
            raise TinkerloopError(
                f"nothing has logged the metric {self._metric!r}, so it could never stop the run: the metrics are "
                f"{sorted(self._missed)}{did_you_mean(self._metric, self._missed)}"
            )

    def _decide(self) -> Requests:
        if self.state.rows < self._patience:
            return None
        return Stop(f"{self._metric} was {self._bounds} {self.state.rows} times in a row, last {self.state.value:.6g}")


class StopOnNonFinite(Callback):
    """End the run with NonFiniteError when the loss or a metric of a step is NaN or infinite.

    The run can be resumed from its last record.

    Args:
        ignore: the names of metrics that may be NaN or infinite.
    """

    reusable = True

    def __init__(self, ignore: Sequence[str] = ()):
        self._ignore = frozenset(ignore)

    def on_step(self, result: StepResult) -> Requests:
        for name, value in result.metrics.items():
            if not math.isfinite(value) and name not in self._ignore:
                raise NonFiniteError(
                    f"{name} is {value} at step {result.step} (learning rate {result.metrics['learning_rate']:g}): "
                    "resume from the last record with a lower learning rate or grad_clip_norm, or inspect the batch"
                )
        return None


@dataclass
class _Spent:
    tokens: int = 0
    seconds: float = 0.0


class Budget(Callback):
    """Stop when a number of tokens or of seconds has been used, counted over a run and all its resumptions.

    Args:
        tokens: the number of input positions after which the run stops; None: no limit.
        seconds: the number of seconds of training time after which the run stops; None: no limit. It is checked when
            the result of a step is delivered.
        clock: function that returns the time in seconds, and never goes backwards.
    """

    def __init__(
        self,
        *,
        tokens: int | None = None,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        if tokens is None and seconds is None:
            raise PlanError("Budget needs a limit, got none: pass tokens= or seconds=")
        for name, value in {"tokens": tokens, "seconds": seconds}.items():
            if value is not None:
                check_finite_number(name, value)
        self._tokens, self._seconds, self._clock = tokens, seconds, clock
        self.state = _Spent()

    def on_start(self, step: int, steps: int | None) -> Requests:
        self._began = self._clock() - self.state.seconds
        return self._decide()

    def on_step(self, result: StepResult) -> Requests:
        self.state = _Spent(self.state.tokens + result.plan.tokens, self._clock() - self._began)
        return self._decide()

    def _decide(self) -> Requests:
        if self._tokens is not None and self.state.tokens >= self._tokens:
            return Stop(f"the budget of {self._tokens} tokens is spent")
        if self._seconds is not None and self.state.seconds >= self._seconds:
            return Stop(f"the budget of {self._seconds:g} seconds is spent")
        return None
