"""Parts for tests: an in-memory service, and kits that check your own chat format, callback or run.

The kits hold a user's part to what the package's own parts are held to; the package's own tests are written with them.

* `OrderedService`: a service in memory, which trains a small model, and can raise errors on purpose.
"""

from tinkerloop.testing.ordered_service import (
    MissingCheckpointError,
    Operation,
    OrderedClient,
    OrderedRestClient,
    OrderedSampler,
    OrderedService,
    Ready,
    UnigramState,
)

__all__ = [
    "MissingCheckpointError",
    "Operation",
    "OrderedClient",
    "OrderedRestClient",
    "OrderedSampler",
    "OrderedService",
    "Ready",
    "UnigramState",
]
