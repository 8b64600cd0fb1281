"""Parts for tests: an in-memory service, and kits that check your own chat format, callback or run.

The kits hold a user's part to what the package's own parts are held to; the package's own tests are written with them.

* `OrderedService`: a service in memory, which trains a small model, and can raise errors on purpose.
* `check_callback` and `drive`: check a callback; `sample_step_result` and other `sample_...`: events for its tests.
* `check_loop`: kill a run of your own at every operation, resume it, and compare the outcome.
* `check_loop_in_processes`: the same with real processes that are killed by SIGKILL, e.g. on the embedded engine.
* `check_renderer`, `RENDERER_CHECKS`, `FormatClaims`, `probe_claims`, `random_conversations`: check a chat format. They
  need hypothesis: `pip install 'tinkerloop-sdk[testing]'`. No kit needs pytest; all work in a test of any tool.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tinkerloop.testing.callback_checks import CallbackReport, check_callback, drive
from tinkerloop.testing.loop_checks import check_loop
from tinkerloop.testing.ordered_service import (
    MissingCheckpointError,
    Operation,
    OrderedClient,
    OrderedRestClient,
    OrderedSampler,
    OrderedService,
)
from tinkerloop.testing.process_checks import check_loop_in_processes
from tinkerloop.testing.ready import Ready
from tinkerloop.testing.sample_events import (
    sample_batches,
    sample_boundary,
    sample_eval_result,
    sample_plan,
    sample_record,
    sample_step_result,
)
from tinkerloop.testing.unigram import UnigramState

if TYPE_CHECKING:
    from tinkerloop.testing.format_claims import FormatClaims, probe_claims
    from tinkerloop.testing.message_strategies import random_conversations
    from tinkerloop.testing.renderer_checks import RENDERER_CHECKS, check_renderer

_NEED_HYPOTHESIS = {
    "RENDERER_CHECKS": "renderer_checks",
    "check_renderer": "renderer_checks",
    "FormatClaims": "format_claims",
    "probe_claims": "format_claims",
    "random_conversations": "message_strategies",
}
"""Mapping from each name that is imported at its first use to its module."""

__all__ = [
    "RENDERER_CHECKS",
    "CallbackReport",
    "FormatClaims",
    "MissingCheckpointError",
    "Operation",
    "OrderedClient",
    "OrderedRestClient",
    "OrderedSampler",
    "OrderedService",
    "Ready",
    "UnigramState",
    "check_callback",
    "check_loop",
    "check_loop_in_processes",
    "check_renderer",
    "drive",
    "probe_claims",
    "random_conversations",
    "sample_batches",
    "sample_boundary",
    "sample_eval_result",
    "sample_plan",
    "sample_record",
    "sample_step_result",
]


def __getattr__(name: str) -> Any:
    """Import the kit of renderers at its first use, because it needs hypothesis."""
    if name not in _NEED_HYPOTHESIS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_NEED_HYPOTHESIS[name]}")
    return getattr(module, name)
