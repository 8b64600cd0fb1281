"""Clients whose calls fail when the server is lost. Tinker's own ask it again and again, without end.

`watched_calls` decorates a subclass of one of tinker's clients. It replaces every inherited method that may wait for
the server: those that return a future, those that block, and the async variants. So a method that a newer version of
tinker adds is watched too.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import tinker
from tinker.lib.public_interfaces.api_future import AwaitableConcurrentFuture
from tinker.lib.public_interfaces.rest_client import RestClient

from tinkerloop.errors import TinkerloopError
from tinkerloop.loop.futures import background
from tinkerloop.lost_server import ServerWatch, settle

T = TypeVar("T")
C = TypeVar("C", bound=type)
_BLOCKING = (
    "create_sampling_client",
    "get_base_model",
    "get_info",
    "get_server_capabilities",
    "save_weights_and_get_sampling_client",
)
"""Methods that wait for the server before they return, in some versions of tinker."""


def watched_calls(cls: C) -> C:
    """Replace the methods that `cls` inherits from tinker by ones that fail when `self.watch` finds the server lost.

    Methods that `cls` defines itself are kept.
    """
    for name, method in vars(cls.__base__).items():
        if name.startswith("_") or name in vars(cls) or not inspect.isfunction(method):
            continue
        if inspect.iscoroutinefunction(inspect.unwrap(method)):  # unwrapped, because many are marked as deprecated
            setattr(cls, name, _watched_coroutine(method))
        elif name in _BLOCKING or "Future" in str(method.__annotations__.get("return")):
            setattr(cls, name, _watched_call(method))
    return cls


def _watched_call(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        with self.watch.direct_call():
            blocks = method.__name__ in _BLOCKING
            value = called(self.watch, method, self, *args, **options) if blocks else method(self, *args, **options)
        return watched(self.watch, value)

    return call


def _watched_coroutine(method: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
    @functools.wraps(method)
    async def call(self: Any, *args: Any, **options: Any) -> Any:
        await asyncio.to_thread(self.watch.wait_for_first_answer)
        return watched(self.watch, await _until_lost(self.watch, method(self, *args, **options)))

    return call


async def _until_lost(watch: ServerWatch, coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what `coroutine` returns, or raise a ServerLostError when the server is lost before."""
    loss: Future[None] = Future()
    task = asyncio.ensure_future(coroutine)
    task.add_done_callback(lambda _: settle(loss))
    watch.add(loss)
    try:
        await asyncio.wrap_future(loss)
        return await task
    finally:
        task.cancel()


def called(watch: ServerWatch, method: Callable[..., T], *args: Any, **options: Any) -> T:
    """Call a method that waits for the server on another thread, and fail when the server is lost."""
    return followed(watch, background(functools.partial(method, *args, **options))).result()


def watched(watch: ServerWatch, value: Any) -> Any:
    """Return what a method of tinker returned, as a future or client that fails when the server is lost."""
    if isinstance(value, tinker.SamplingClient):  # newer versions of tinker return a future that is a client as well
        return watched_sampler(watch, value)
    if isinstance(value, tinker.APIFuture):
        return AwaitableConcurrentFuture(followed(watch, value))
    return followed(watch, value) if isinstance(value, Future) else value  # older versions return plain futures


def followed(watch: ServerWatch, future: Any, finish: Callable[[Any], T] = lambda value: value) -> Future[T]:
    """Return the future of `finish` of the value of `future`. It fails when the server is lost."""
    outer: Future[T] = Future()

    def copy(done: Future[Any]) -> None:
        try:
            settle(outer, finish(done.result()))
        except BaseException as error:
            settle(outer, error=_explained(error))

    watch.add(outer)
    if isinstance(future, tinker.APIFuture) and hasattr(future, "future"):
        future = future.future()
    elif not isinstance(future, Future):  # that of a custom loss can only be waited for in some versions of tinker
        future = background(future.result)
    future.add_done_callback(copy)
    return outer


def _explained(error: BaseException) -> BaseException:
    """Return the error to raise for an error of tinker: another one where its message does not say what to do."""
    if not (isinstance(error, AssertionError) and "sample_sequence_ids" in str(error)):
        return error
    explained = TinkerloopError(
        "this server's samples have no `sample_sequence_ids`, without which tinker >= 0.26 reads no sample; install "
        "tinker==0.25.0, or train without evaluations that sample"
    )
    explained.__cause__ = error
    return explained


@watched_calls
class WatchedSamplingClient(tinker.SamplingClient):
    """Sampling client whose requests fail when the server is lost."""

    watch: ServerWatch


@watched_calls
class WatchedRestClient(RestClient):
    """REST client whose requests fail when the server is lost."""

    watch: ServerWatch


def watched_sampler(watch: ServerWatch, created: Any) -> Any:
    """Watch the server for a sampling client, or for the future of one, which newer versions of tinker return."""

    def watch_client(client: tinker.SamplingClient) -> WatchedSamplingClient:
        client.__class__ = WatchedSamplingClient  # tinker creates its client itself, and takes no subclass for it
        assert isinstance(client, WatchedSamplingClient)
        client.watch = watch
        return client

    if not isinstance(created, tinker.APIFuture):
        return watch_client(created)
    future: Any = AwaitableConcurrentFuture(followed(watch, created, watch_client))
    return type(created)(future)  # type: ignore[call-arg]  # also usable as the client


def watched_rest_client(watch: ServerWatch, client: RestClient) -> WatchedRestClient:
    """Watch the server for a REST client."""
    client.__class__ = WatchedRestClient
    assert isinstance(client, WatchedRestClient)
    client.watch = watch
    return client
