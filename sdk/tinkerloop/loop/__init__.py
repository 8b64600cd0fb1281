"""The training loop `Loop`, and its parts, each of which can also be used alone."""

from tinkerloop.data.batches import Batches
from tinkerloop.loop.callback import Callback
from tinkerloop.loop.checkpoints import Checkpoints, Record
from tinkerloop.loop.events import (
    Accumulate,
    Boundary,
    Eval,
    EvalResult,
    Log,
    Retain,
    Save,
    StepResult,
    Stop,
    Summary,
)
from tinkerloop.loop.futures import background, resolve
from tinkerloop.loop.loop import Loop
from tinkerloop.loop.pipeline import Pipeline, SaveResult
from tinkerloop.loop.plan import MicroBatch, Plan
from tinkerloop.loop.resume import mark_opened, open_training_client
from tinkerloop.loop.run_folder import Run
from tinkerloop.loop.sinks import Console, Jsonl, MLflow, Sink, TensorBoard, WandB

__all__ = [
    "Accumulate",
    "Batches",
    "Boundary",
    "Callback",
    "Checkpoints",
    "Console",
    "Eval",
    "EvalResult",
    "Jsonl",
    "Log",
    "Loop",
    "MLflow",
    "MicroBatch",
    "Pipeline",
    "Plan",
    "Record",
    "Retain",
    "Run",
    "Save",
    "SaveResult",
    "Sink",
    "StepResult",
    "Stop",
    "Summary",
    "TensorBoard",
    "WandB",
    "background",
    "mark_opened",
    "open_training_client",
    "resolve",
]
