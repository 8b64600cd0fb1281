"""The paths for checkpoints and training runs, which are read from the disk. They need no session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tinker.types import CopyWeightsRequest

from tinkerloop.local import RestClient
from tinkerloop.local.client.rest_client import copy_into
from tinkerloop.local.request_errors import bad_request
from tinkerloop.local.unsupported import METHODS, refuse_option
from tinkerloop.server.service import TinkerService

RestCall = Callable[[RestClient, Request, dict[str, Any]], Any]


def checkpoint_routes(service: TinkerService, body_of: Callable[[Request], Awaitable[dict[str, Any]]]) -> list[Route]:
    """Return the routes. `body_of` reads the JSON body of a request."""

    def route(method: str, path: str, call: RestCall) -> Route:
        async def handle(request: Request) -> Response:
            body = await body_of(request)
            result = await run_in_threadpool(lambda: call(service.rest_client(), request, body).result())
            return JSONResponse({} if result is None else result.model_dump(mode="json", exclude_none=True))

        return Route(f"/api/v1/{path}", handle, methods=[method])

    async def copy(request: Request) -> Response:
        call = CopyWeightsRequest.model_validate(await body_of(request))
        token = call.weights_access_token or request.headers.get("x-tinker-weights-access-token")
        refuse_option(token is not None, "weights_access_token")
        run = service.run_of_copy(call, request.headers.get("x-idempotency-key"))
        path = await run_in_threadpool(copy_into, service.engine.store, call.source_path, run, call.ttl_seconds)
        return JSONResponse({"tinker_path": path})

    run, checkpoint = "training_runs/{run}", "training_runs/{run}/checkpoints/{kind}/{name}"
    return [
        route("GET", "training_runs", lambda rest, request, _: rest.list_training_runs(**_page(request, 20))),
        route("GET", run, lambda rest, request, _: rest.get_training_run(request.path_params["run"])),
        route("GET", f"{run}/checkpoints", lambda rest, request, _: rest.list_checkpoints(request.path_params["run"])),
        route("GET", "checkpoints", lambda rest, request, _: rest.list_user_checkpoints(**_page(request, 100))),
        route("DELETE", checkpoint, lambda rest, request, _: rest.delete_checkpoint_from_tinker_path(_path(request))),
        route(
            "PUT",
            f"{checkpoint}/ttl",
            lambda rest, request, body: rest.set_checkpoint_ttl_from_tinker_path(
                _path(request), body.get("ttl_seconds")
            ),
        ),
        route("POST", f"{checkpoint}/publish", _unsupported("publish_checkpoint_from_tinker_path")),
        route("DELETE", f"{checkpoint}/publish", _unsupported("unpublish_checkpoint_from_tinker_path")),
        route("GET", f"{checkpoint}/external_weights_urls", _unsupported("get_external_weights_urls")),
        route("GET", f"{checkpoint}/archive", _unsupported("get_checkpoint_archive_url")),
        route("POST", "weights_info", lambda rest, _, body: rest.get_weights_info_by_tinker_path(_field(body))),
        Route("/api/v1/copy_weights", copy, methods=["POST"]),
    ]


def _unsupported(method: str) -> RestCall:
    def call(rest: RestClient, request: Request, body: dict[str, Any]) -> Any:
        raise NotImplementedError(f"the server does not support {method}: {METHODS[f'RestClient.{method}']}")

    return call


def _field(body: dict[str, Any]) -> str:
    if not isinstance(body.get("tinker_path"), str):
        raise bad_request("weights_info needs tinker_path, a string")
    return body["tinker_path"]


def _path(request: Request) -> str:
    return "tinker://{run}/{kind}/{name}".format(**request.path_params)


def _page(request: Request, limit: int) -> dict[str, Any]:
    try:
        query = request.query_params
        return {"limit": int(query.get("limit", limit)), "offset": int(query.get("offset", 0))}
    except ValueError as error:
        raise bad_request(f"limit and offset must be integers: {error}") from error
