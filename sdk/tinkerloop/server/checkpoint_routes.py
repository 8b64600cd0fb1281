"""The paths for checkpoints and training runs, which are read from the disk. They need no session."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from typing import IO, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tinker.types import CopyWeightsRequest

from tinkerloop.local import RestClient
from tinkerloop.local.client.rest_client import copy_into
from tinkerloop.local.request_errors import bad_request
from tinkerloop.local.runtime.request_future import RequestFuture
from tinkerloop.local.unsupported import refuse_option
from tinkerloop.server.body_checks import validated
from tinkerloop.server.downloads import LINKS
from tinkerloop.server.service import TinkerService

RestCall = Callable[[RestClient, Request, dict[str, Any]], Any]


def checkpoint_routes(service: TinkerService, body_of: Callable[[Request], Awaitable[dict[str, Any]]]) -> list[Route]:
    """Return the routes. `body_of` reads the JSON body of a request."""

    def route(method: str, path: str, call: RestCall) -> Route:
        async def handle(request: Request) -> Response:
            body = await body_of(request)
            result = await run_in_threadpool(lambda: call(service.rest_client(), request, body))
            value = result.result() if isinstance(result, RequestFuture) else result
            return JSONResponse({} if value is None else _json(value))

        return Route(f"/api/v1/{path}", handle, methods=[method])

    async def copy(request: Request) -> Response:
        call = validated(CopyWeightsRequest, await body_of(request))
        token = call.weights_access_token or request.headers.get("x-tinker-weights-access-token")
        refuse_option(token is not None, "weights_access_token")
        run = service.run_of_copy(call, request.headers.get("x-idempotency-key"))
        path = await run_in_threadpool(copy_into, service.engine.store, call.source_path, run, call.ttl_seconds)
        return JSONResponse({"tinker_path": path})

    def publish(request: Request, public: bool) -> None:
        service.engine.store.update(_path(request), public=public)

    def archive(request: Request) -> dict[str, Any]:
        url, expires = service.downloads.archive_link(str(request.base_url), _path(request))
        return {"url": url, "expires": expires.isoformat()}

    def urls(request: Request) -> dict[str, Any]:
        links, expires = service.downloads.file_links(str(request.base_url), _path(request))
        return {"urls": links, "expires": expires.isoformat()}

    async def download(request: Request) -> Response:
        file, query = request.path_params["file"], dict(request.query_params)
        opened = await run_in_threadpool(service.downloads.open, _path(request), file, query)
        headers = {"content-length": str(os.fstat(opened.fileno()).st_size)}
        return StreamingResponse(_parts(opened), headers=headers, media_type="application/octet-stream")

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
            lambda rest, request, body: rest.set_checkpoint_ttl_from_tinker_path(_path(request), _ttl(body)),
        ),
        route("POST", f"{checkpoint}/publish", lambda rest, request, _: publish(request, True)),
        route("DELETE", f"{checkpoint}/publish", lambda rest, request, _: publish(request, False)),
        route("GET", f"{checkpoint}/external_weights_urls", lambda rest, request, _: urls(request)),
        route("GET", f"{checkpoint}/archive", lambda rest, request, _: archive(request)),
        Route(f"{LINKS}{{run}}/{{kind}}/{{name}}/{{file}}", download),
        route("POST", "weights_info", lambda rest, _, body: rest.get_weights_info_by_tinker_path(_field(body))),
        Route("/api/v1/copy_weights", copy, methods=["POST"]),
    ]


def _parts(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while part := file.read(2**20):
            yield part


def _field(body: dict[str, Any]) -> str:
    if not isinstance(body.get("tinker_path"), str):
        raise bad_request("weights_info needs tinker_path, a string")
    return body["tinker_path"]


def _ttl(body: dict[str, Any]) -> int | None:
    if set(body) != {"ttl_seconds"}:  # without it, a misspelt name would remove the time at which it expires
        raise bad_request(f"a change of ttl needs ttl_seconds, a number or null, and no more; got {sorted(body)}")
    return body["ttl_seconds"]


def _path(request: Request) -> str:
    return "tinker://{run}/{kind}/{name}".format(**request.path_params)


def _page(request: Request, limit: int) -> dict[str, Any]:
    try:
        query = request.query_params
        return {"limit": int(query.get("limit", limit)), "offset": int(query.get("offset", 0))}
    except ValueError as error:
        raise bad_request(f"limit and offset must be integers: {error}") from error


def _json(result: Any) -> dict[str, Any]:
    return result if isinstance(result, dict) else result.model_dump(mode="json", exclude_none=True)
