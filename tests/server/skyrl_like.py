"""A server that differs from Tinker's API as SkyRL does, over the embedded engine and real HTTP.

- The loss of each datum is divided by the sum of its weights, and the mean over the datums of a request is taken. The
  outputs have no `loss:sum`, but `elementwise_loss`.
- Samples have no `sample_sequence_ids`.
- load_weights without model_id is answered with 422, a second save of one name with 409, failed work with 400, and the
  end of a session with 404.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import tinker
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinkerloop.server import protobuf, routes, running
from tinkerloop.server.answers import Answer
from tinkerloop.server.protobuf import ForwardBackwardCall
from tinkerloop.server.service import TinkerService


class NormalisedCall(ForwardBackwardCall):
    """A call whose weights are divided by their sum in each datum, and by the number of datums."""

    def arguments(self) -> tuple[list[tinker.Datum], str, dict[str, float | str] | None]:
        data, loss_fn, config = super().arguments()
        for datum in data:
            weights = datum.loss_fn_inputs["weights"].to_numpy()
            scaled = weights / max(weights.sum(), 1e-9) / len(data)
            datum.loss_fn_inputs["weights"] = tinker.TensorData.from_numpy(scaled.astype(np.float32))
        return data, loss_fn, config


class NormalisingService(TinkerService):
    def forward_backward(self, call: ForwardBackwardCall) -> str:
        weights = [d.loss_fn_inputs["weights"].to_numpy() for d in call.arguments()[0]]
        changed = NormalisedCall(call.model_id, call.number, call.message)

        def encode(output: tinker.ForwardBackwardOutput) -> Answer:
            fields = [
                {**one, "elementwise_loss": tinker.TensorData.from_numpy(-w * one["logprobs"].to_numpy())}
                for one, w in zip(output.loss_fn_outputs, weights, strict=True)
            ]
            return protobuf.encode_output(replace(output, metrics={}, loss_fn_outputs=fields))

        with patch("tinkerloop.server.service.encode_output", encode):
            return super().forward_backward(changed)


class Differences:
    """ASGI application that answers some requests as SkyRL does, and passes all others to `app`."""

    def __init__(self, app: ASGIApp):
        self._app = app
        self._names: set[tuple[str, str, str]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        place = scope.get("path", "").removeprefix("/api/v1/")
        if place.endswith("/finish"):
            await JSONResponse({"detail": "Not Found"}, 404)(scope, receive, send)
            return
        if place == "asample":
            await self._app(scope, receive, _without_sequence_ids(send))
            return
        if place not in ("load_weights", "save_weights", "save_weights_for_sampler", "retrieve_future"):
            await self._app(scope, receive, send)
            return
        message = await receive()
        body = json.loads(message["body"])
        rejected = self._rejected(place, body)
        if rejected is not None:
            await rejected(scope, receive, send)
            return
        given = [message]

        async def replay() -> Message:
            return given.pop() if given else await receive()

        await self._app(scope, replay, send if place != "retrieve_future" else _with_status_400(send))

    def _rejected(self, place: str, body: dict[str, Any]) -> JSONResponse | None:
        if place == "load_weights" and "model_id" not in body:
            return JSONResponse({"detail": [{"loc": ["body", "model_id"], "msg": "Field required"}]}, 422)
        if place.startswith("save") and body.get("path"):
            key = (place, body["model_id"].partition(":")[0], body["path"])
            if key in self._names:
                return JSONResponse({"detail": "Checkpoint already exists"}, 409)
            self._names.add(key)
        return None


def _without_sequence_ids(send: Send) -> Send:
    """Return a function that sends an answer to a request for samples without their ids."""
    start: list[Message] = []

    async def changed(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.append(message)
            return
        answer = json.loads(message["body"])
        assert answer.pop("sample_sequence_ids")
        first, body = start.pop(), json.dumps(answer).encode()
        MutableHeaders(raw=first["headers"])["content-length"] = str(len(body))
        await send(first)
        await send({**message, "body": body})

    return changed


def _with_status_400(send: Send) -> Send:
    """Return a function that sends the answer of failed work with the status 400, and other answers as they are."""
    start: list[Message] = []

    async def changed(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.append(message)
            return
        first = start.pop()
        body = message.get("body", b"")
        if dict(first["headers"])[b"content-type"] == b"application/json" and b'"error"' in body:
            body = json.dumps({"detail": json.loads(body)["error"]}).encode()
            first = {**first, "status": 400}
            MutableHeaders(raw=first["headers"])["content-length"] = str(len(body))
        await send(first)
        await send({**message, "body": body})

    return changed


@contextmanager
def skyrl_like_server(options: running.ServerOptions) -> Iterator[str]:
    """Serve on another thread during the `with` block. The value is the server's URL."""
    with ExitStack() as stack:
        with (
            patch.object(running, "TinkerService", NormalisingService),
            patch.object(running, "create_app", lambda *given: Differences(routes.create_app(*given))),
        ):
            url = stack.enter_context(running.background_server(options))
        yield url
