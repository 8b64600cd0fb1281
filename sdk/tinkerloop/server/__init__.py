"""The embedded engine behind Tinker's HTTP API, for the unmodified `tinker` client. `tinkerloop serve` starts it.

Every request that computes something is answered at once with a request id. The client fetches the answer with that id
from `retrieve_future`, which waits until there is one. All state is in memory and is changed only on the event loop's
thread; the engine computes on its own thread. Checkpoints are on disk, so they survive a restart of the server.

    base_models      the tokenizer of the built-in base models, as files
    protobuf         the binary messages: datums, outputs, samples
    request_ids      the ids of models, samplers and requests
    answers          finished and unfinished answers by request id; how an error is answered
    request_order    requests of one model in the order of their numbers
    sessions         sessions with their models and samplers; expiry
    service          the operations: what each request does with the engine
    routes           HTTP paths and bodies
    checkpoint_routes  the paths for checkpoints and training runs
    access           who may ask: token, host name, size of a body; the access log
    running          starting and stopping: sockets, signals, the queue's last requests
"""

from tinkerloop.extras import needs_extra

with needs_extra("serve", "the server"):
    import starlette as _starlette  # noqa: F401
    import tinker.types.topk_logprobs as _topk_logprobs  # noqa: F401  (not in tinker before 0.29)
    import uvicorn as _uvicorn  # noqa: F401
