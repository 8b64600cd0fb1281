"""Functions that create Tinker's own exceptions for failed requests, without a network."""

from __future__ import annotations

import httpx
import tinker
from tinker.types import RequestErrorCategory


class CallerError(Exception):
    """Wrapper for an error raised by the caller's own code. The request's future raises the wrapped error."""

    def __init__(self, error: BaseException):
        self.error = error


def user_error(message: str) -> tinker.RequestFailedError:
    """Return a RequestFailedError of category user: the request cannot be executed as given.

    Such a request has changed nothing, and the client stays usable.
    """
    return tinker.RequestFailedError(message, request_id="local", category=RequestErrorCategory.User)


def server_error(message: str) -> tinker.RequestFailedError:
    """Return a RequestFailedError of category server: the engine failed on a valid request.

    Examples are a full disk, too little memory and a bug in the engine.
    """
    return tinker.RequestFailedError(message, request_id="local", category=RequestErrorCategory.Server)


def _response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("POST", "local://tinkerloop"))


def bad_request(message: str) -> tinker.BadRequestError:
    return tinker.BadRequestError(message, response=_response(400), body=None)


def not_found(message: str) -> tinker.NotFoundError:
    return tinker.NotFoundError(message, response=_response(404), body=None)


def conflict(message: str) -> tinker.ConflictError:
    return tinker.ConflictError(message, response=_response(409), body=None)
