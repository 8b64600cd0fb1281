"""The built-in callbacks, one topic per file."""

from tinkerloop.callbacks.accumulation import GradientAccumulation
from tinkerloop.callbacks.checkpoint import Best, Checkpoint
from tinkerloop.callbacks.evaluation import Evaluate, nll, sampled, together
from tinkerloop.callbacks.preempt import Preempt
from tinkerloop.callbacks.progress import Progress
from tinkerloop.callbacks.schedule import LRSchedule
from tinkerloop.callbacks.stopping import Budget, EarlyStop, StopOnNonFinite, StopWhen
from tinkerloop.callbacks.timing import Timing

__all__ = [
    "Best",
    "Budget",
    "Checkpoint",
    "EarlyStop",
    "Evaluate",
    "GradientAccumulation",
    "LRSchedule",
    "Preempt",
    "Progress",
    "StopOnNonFinite",
    "StopWhen",
    "Timing",
    "nll",
    "sampled",
    "together",
]
