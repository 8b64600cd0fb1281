"""Clients that are also their own finished future."""

from __future__ import annotations

import concurrent.futures
from typing import Self

from tinkerloop.local.runtime.request_future import RequestFuture


class AwaitableClient:
    """Before tinker 0.38 `create_*` returned a client, since then a future of one that also acts as the client.

    A script written for either works with an object that is the client and answers `.result()` with itself.
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
