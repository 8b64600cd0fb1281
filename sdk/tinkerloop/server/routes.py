"""The paths of Tinker's HTTP API, and what their bodies and responses contain."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import tinker
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tinker.types import RequestErrorCategory

from tinkerloop.errors import TinkerloopError
from tinkerloop.gone_texts import SESSION_ENDED
from tinkerloop.local.request_errors import bad_request
from tinkerloop.loopback import is_loopback
from tinkerloop.server.access import BodyTooLargeError, read_body
from tinkerloop.server.answers import category_of, message_of
from tinkerloop.server.checkpoint_routes import checkpoint_routes
from tinkerloop.server.protobuf import read_forward_backward, read_head
from tinkerloop.server.service import TinkerService
from tinkerloop.terminal import printable
from tinkerloop.tokenizers.loading import BUILT_IN

POLL_SECONDS = 30.0
"""Seconds for which `retrieve_future` waits for an answer. The client gives up after 45 seconds."""
_SWEEP_SECONDS = 5.0
_LARGE_BODY = 2**18
"""Size from which a body is decoded on another thread, so that other users do not wait for it."""

Handler = Callable[[Request], Awaitable[Response]]
_KNOWN_ERRORS = (tinker.TinkerError, TinkerloopError, NotImplementedError, ValueError, TypeError)
FUTURES = (
    "optim_step",
    "create_model",
    "load_weights",
    "save_weights",
    "save_weights_for_sampler",
    "save_weights_external",
)
"""Paths of the JSON requests that are answered with a request id. Each is a method of `TinkerService`."""


def create_app(service: TinkerService, built_in_tokenizer: Path) -> Starlette:
    """Return the application. `built_in_tokenizer` is the folder with the tokenizer of the built-in models."""

    async def body_of(request: Request) -> dict[str, Any]:
        body = await read_body(request, service.limits.body_bytes)
        try:
            value = json.loads(body or b"{}")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the body is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise ValueError("the body must be a JSON object")
        return value

    def future(method: Callable[[dict[str, Any]], str]) -> Handler:
        async def handle(request: Request) -> Response:
            return JSONResponse({"request_id": method(await body_of(request))})

        return handle

    async def config(request: Request) -> Response:
        return JSONResponse({})

    async def telemetry(request: Request) -> Response:
        await body_of(request)
        return JSONResponse({"status": "accepted"})

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def capabilities(request: Request) -> Response:
        models = [model.model_dump(mode="json") for model in service.supported_models()]
        return JSONResponse({"supported_models": models})

    # -- sessions ------------------------------------------------------------------------------------------------

    async def create_session(request: Request) -> Response:
        session_id = service.create_session(await body_of(request))
        return JSONResponse({"session_id": session_id, "type": "create_session"})

    async def heartbeat(request: Request) -> Response:
        if service.sessions.find((await body_of(request)).get("session_id", "")) is None:
            return JSONResponse({"detail": SESSION_ENDED}, 410)
        return JSONResponse({"type": "session_heartbeat"})

    async def finish_session(request: Request) -> Response:
        service.sessions.close(request.path_params["session_id"])
        return JSONResponse({})

    async def list_sessions(request: Request) -> Response:
        return JSONResponse({"sessions": [session.id for session in service.sessions]})

    async def get_session(request: Request) -> Response:
        session = service.sessions.get(request.path_params["session_id"])
        about = {"user_metadata": session.user_metadata, "display_name": session.display_name}
        return JSONResponse({"training_run_ids": [*session.models], "sampler_ids": [*session.samplers], **about})

    # -- requests and answers --------------------------------------------------------------------------------------

    async def forward_backward(request: Request) -> Response:
        try:
            body = await read_body(request, service.limits.body_bytes)
        except BodyTooLargeError as error:
            if (head := read_head(error.beginning)) is None:
                raise
            return JSONResponse({"request_id": service.reject(*head, str(error))})
        large = len(body) > _LARGE_BODY
        call = await run_in_threadpool(read_forward_backward, body) if large else read_forward_backward(body)
        return JSONResponse({"request_id": service.forward_backward(call)})

    async def sample(request: Request) -> Response:
        request_id, sequence_ids = service.sample(await body_of(request))
        return JSONResponse({"request_id": request_id, "sample_sequence_ids": sequence_ids})

    async def retrieve_future(request: Request) -> Response:
        request_id = (await body_of(request)).get("request_id")
        if not isinstance(request_id, str):
            raise bad_request("retrieve_future needs request_id, a string")
        answer = await service.fetch(request_id, POLL_SECONDS)
        if answer is None:
            return JSONResponse({"type": "try_again", "request_id": request_id, "queue_state": "active"}, 408)
        return Response(answer.body, media_type=answer.media_type)

    # -- models and samplers -------------------------------------------------------------------------------------

    async def get_info(request: Request) -> Response:
        info = service.get_info(str((await body_of(request)).get("model_id")))
        value = info.model_dump(mode="json", exclude_none=True)
        if request.client is not None and is_loopback(request.client.host):
            value["model_data"]["tokenizer_id"] = tokenizer_folder(value["model_data"]["model_name"])
        return JSONResponse(value)

    def tokenizer_folder(name: str) -> str:
        """Return the folder of a model's tokenizer, which a client on this machine can read."""
        folder = (service.engine.folders or {}).get(name, name)
        return str(built_in_tokenizer) if folder in BUILT_IN else folder

    async def create_sampler(request: Request) -> Response:
        sampler_id = await service.create_sampler(await body_of(request))
        if sampler_id is None:
            return JSONResponse({"detail": "the model is being loaded"}, 408)
        return JSONResponse({"sampling_session_id": sampler_id, "type": "create_sampling_session"})

    async def get_sampler(request: Request) -> Response:
        return JSONResponse(service.get_sampler(request.path_params["sampler_id"]))

    def post(path: str, handler: Handler) -> Route:
        return Route(f"/api/v1/{path}", handler, methods=["POST"])

    def get(path: str, handler: Handler) -> Route:
        return Route(f"/api/v1/{path}", handler, methods=["GET"])

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep_regularly(service))
        yield
        sweeping.cancel()

    routes = [
        # The paths of a training step come first, because the routes are compared in this order.
        post("retrieve_future", retrieve_future),
        post("forward_backward", forward_backward),
        post("asample", sample),
        *(post(name, future(getattr(service, name))) for name in FUTURES),
        Route("/healthz", healthz),
        get("healthz", healthz),
        post("client/config", config),
        post("client/dynamic_config", config),
        post("telemetry", telemetry),
        get("get_server_capabilities", capabilities),
        post("create_session", create_session),
        post("session_heartbeat", heartbeat),
        post("sessions/{session_id}/finish", finish_session),
        get("sessions", list_sessions),
        get("sessions/{session_id}", get_session),
        post("get_info", get_info),
        post("create_sampling_session", create_sampler),
        get("samplers/{sampler_id}", get_sampler),
        *checkpoint_routes(service, body_of),
    ]
    handlers = {BodyTooLargeError: _too_large, ClientDisconnect: _left}
    handlers |= dict.fromkeys((*_KNOWN_ERRORS, Exception), _failed)
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


async def _sweep_regularly(service: TinkerService) -> None:
    last = time.monotonic()
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        now = time.monotonic()
        service.sweep(now, paused=max(0.0, now - last - _SWEEP_SECONDS))
        last = now


async def _too_large(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, 413)


async def _left(request: Request, error: Exception) -> Response:
    """Return the response, which nobody reads, to a request whose connection ended before its body did."""
    return Response(status_code=400)


async def _failed(request: Request, error: Exception) -> Response:
    """Return the response to a request that fails before it has an id.

    The client tries again after the statuses 408, 409, 429 and 5xx, so the user's mistakes have none of them.
    """
    status = 404 if isinstance(error, tinker.NotFoundError) else 400
    if category_of(error) is not RequestErrorCategory.User:
        status = 500
    return JSONResponse({"detail": printable(message_of(error))}, status)
