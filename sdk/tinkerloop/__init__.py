"""A low-level training-loop SDK with pluggable callbacks for fine-tuning language models with the Tinker primitives.

Importing it loads neither torch nor transformers. This module has the names that most programs need. The other names
are in `tinkerloop.callbacks`, `tinkerloop.clients`, `tinkerloop.data`, `tinkerloop.loop`, `tinkerloop.renderers`,
`tinkerloop.local`, `tinkerloop.supervised` and `tinkerloop.testing`.
"""

from tinkerloop import callbacks, data, errors, loop, renderers
from tinkerloop._version import __version__ as __version__
from tinkerloop.connection import connect
from tinkerloop.datum import check_datum, make_datum
from tinkerloop.errors import TinkerloopError
from tinkerloop.images.chunks import image_chunk
from tinkerloop.images.processors import get_image_processor
from tinkerloop.loop import (
    Boundary,
    Callback,
    Checkpoints,
    Eval,
    EvalResult,
    Log,
    Loop,
    MicroBatch,
    Pipeline,
    Plan,
    Record,
    Run,
    Save,
    StepResult,
    Stop,
    Summary,
    open_training_client,
)
from tinkerloop.loop import schedules as schedules
from tinkerloop.model_info import get_recommended_renderer_name
from tinkerloop.renderers import TrainOnWhat, get_renderer
from tinkerloop.tokenizers import get_tokenizer

__all__ = [
    "Boundary",
    "Callback",
    "Checkpoints",
    "Eval",
    "EvalResult",
    "Log",
    "Loop",
    "MicroBatch",
    "Pipeline",
    "Plan",
    "Record",
    "Run",
    "Save",
    "StepResult",
    "Stop",
    "Summary",
    "TinkerloopError",
    "TrainOnWhat",
    "callbacks",
    "check_datum",
    "connect",
    "data",
    "errors",
    "get_image_processor",
    "get_recommended_renderer_name",
    "get_renderer",
    "get_tokenizer",
    "image_chunk",
    "loop",
    "make_datum",
    "open_training_client",
    "renderers",
    "schedules",
]
