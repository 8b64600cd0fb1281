"""`LRSchedule`, which changes the optimizer parameters with the step."""

from __future__ import annotations

from tinkerloop.loop.callback import Callback
from tinkerloop.loop.plan import Plan
from tinkerloop.loop.schedules import Schedule, check_schedule


class LRSchedule(Callback):
    """Set the learning rate and other optimizer parameters of each step from schedules (functions of the step number).

    >>> LRSchedule(linear(1e-3, 0.0, 100), weight_decay=constant(0.1))          # doctest: +SKIP

    Args:
        learning_rate: the schedule of the learning rate; None: the learning rate is not changed.
        others: schedules of other optimizer parameters, such as `weight_decay`, `beta1` or `grad_clip_norm`.
    """

    reusable = True

    def __init__(self, learning_rate: Schedule | None = None, **others: Schedule):
        for name, schedule in {"learning_rate": learning_rate, **others}.items():
            if not (name == "learning_rate" and schedule is None):
                check_schedule(name, schedule)
        self._schedules = others if learning_rate is None else {"learning_rate": learning_rate, **others}

    def on_plan(self, plan: Plan) -> Plan:
        return plan.with_optim(**{name: float(schedule(plan.step)) for name, schedule in self._schedules.items()})
