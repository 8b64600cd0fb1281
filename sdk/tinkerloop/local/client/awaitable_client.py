"""The base class `AwaitableClient`, for clients that can be awaited like a future."""

from __future__ import annotations

import concurrent.futures
from typing import Self

from tinkerloop.local.runtime.request_future import RequestFuture


class AwaitableClient:
    """Base class of clients that also act as a finished future: `.result()` and `await` return the client.

    Before tinker 0.38 the `create_*` methods returned a client. Since then they return a future that also acts as the
    client. This class supports programs written for either version.
    """

    def result(self, timeout: float | None = None) -> Self:
        return self

    async def result_async(self, timeout: float | None = None) -> Self:
        return self

    def future(self) -> concurrent.futures.Future[Self]:
        future: RequestFuture[Self] = RequestFuture()
        future.set_result(self)
        return future

    async def coroutine(self) -> Self:
        return self

    def __await__(self):
        return self.result_async().__await__()
