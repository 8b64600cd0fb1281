"""Errors of requests: Tinker's own exception classes, built without a network."""

from __future__ import annotations

import httpx
import tinker
from tinker.types import RequestErrorCategory


class CallerError(Exception):
    """A wrapper for an error of the caller's own code, which is raised unchanged on the request's future."""

    def __init__(self, error: BaseException):
        self.error = error


def user_error(message: str) -> tinker.RequestFailedError:
    """An error of category user: the request cannot be executed as given. Nothing changed; the client stays usable."""
    return tinker.RequestFailedError(message, request_id="local", category=RequestErrorCategory.User)


def server_error(message: str) -> tinker.RequestFailedError:
    """An error of category server: the engine failed on a valid request (disk full, out of memory, a defect)."""
    return tinker.RequestFailedError(message, request_id="local", category=RequestErrorCategory.Server)


def _response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("POST", "local://tinkerloop"))


def bad_request(message: str) -> tinker.BadRequestError:
    return tinker.BadRequestError(message, response=_response(400), body=None)


def not_found(message: str) -> tinker.NotFoundError:
    return tinker.NotFoundError(message, response=_response(404), body=None)


def conflict(message: str) -> tinker.ConflictError:
    return tinker.ConflictError(message, response=_response(409), body=None)
