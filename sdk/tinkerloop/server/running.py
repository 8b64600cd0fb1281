"""Starting and stopping the server.

Stopping is clean: no more requests are accepted, the queued ones are executed (so a queued save is on the disk), their
answers are sent, and then the server ends. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from tinkerloop.local.runtime.engine import open_engine
from tinkerloop.loopback import check_token, is_loopback
from tinkerloop.server.access import LOOPBACK_NAMES, AccessControl
from tinkerloop.server.base_models import write_built_in_tokenizer
from tinkerloop.server.routes import create_app
from tinkerloop.server.service import TinkerService
from tinkerloop.server.sessions import ServerLimits


@dataclass(frozen=True)
class ServerOptions:
    """Options of a server. `models` maps the names of base models to their folders; no other model can be opened."""

    models: Mapping[str, str]
    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free port."""
    root: str | os.PathLike[str] | None = None
    device: str | None = None
    dtype: str | None = None
    token: str | None = None
    limits: ServerLimits = field(default_factory=ServerLimits)


def run_server(options: ServerOptions, on_ready: Callable[[str], None]) -> None:
    """Load the base models, call `on_ready` with the server's URL, and serve until a signal stops the server.

    Raises:
        TinkerloopError: other machines can reach the address, and there is no token.
        tinker.BadRequestError: a model cannot be loaded.
        OSError: the address cannot be used.
    """
    with _prepared(options) as (server, listening):
        engine = server.service.engine
        for name in options.models:
            engine.queue.submit(lambda name=name: engine.model(name)).result()
        gc.freeze()  # what lives as long as the process is not searched for garbage, neither now nor at the exit
        server.on_ready = lambda: on_ready(_url(listening))
        asyncio.run(server.serve(sockets=[listening]))


@contextmanager
def background_server(options: ServerOptions) -> Iterator[str]:
    """Serve on another thread during the `with` block. The value is the server's URL."""
    ready = threading.Event()
    with _prepared(options) as (server, listening):
        thread = threading.Thread(
            target=lambda: asyncio.run(server.serve(sockets=[listening])), name="tinkerloop-server", daemon=True
        )
        server.on_ready = ready.set
        thread.start()
        ready.wait()
        try:
            yield _url(listening)
        finally:
            server.stop()
            thread.join()


class _Server(uvicorn.Server):
    """Server that executes the queued requests before it ends."""

    def __init__(self, config: uvicorn.Config, service: TinkerService):
        super().__init__(config)
        self.service = service
        self.on_ready: Callable[[], object] = lambda: None
        """Called when the server accepts requests and handles signals."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.on_ready()

    def stop(self) -> None:
        """Stop the server. It may be called on any thread, and in a signal handler."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._begin_stop)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._stopping is not None:
            print("second signal: the queued requests are dropped", file=sys.stderr)
            os._exit(1)
        print("stopping: the queued requests are executed first; a second signal drops them", file=sys.stderr)
        self.stop()

    def _begin_stop(self) -> None:
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._finish())

    async def _finish(self) -> None:
        await self.service.stop()
        self.should_exit = True


@contextmanager
def _prepared(options: ServerOptions) -> Iterator[tuple[_Server, socket.socket]]:
    """Open the socket and create the server."""
    check_token(options.host, options.token)
    with ExitStack() as stack:
        listening = stack.enter_context(_listen(options.host, options.port))
        tokenizer = write_built_in_tokenizer(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        engine = open_engine(options.root, options.device, options.dtype, folders=dict(options.models))
        stack.callback(engine.queue.abandon)
        service = TinkerService(engine, options.limits)
        names = dict.fromkeys((*LOOPBACK_NAMES, _name_in_url(options.host)))
        hosts = list(names) if options.token is None and is_loopback(options.host) else None
        app: Any = AccessControl(create_app(service, tokenizer), options.token, hosts)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="on",
            timeout_keep_alive=120,  # longer than the client keeps an idle connection
            timeout_graceful_shutdown=10,
        )
        yield _Server(config, service), listening


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on the address.

    Its protocol is given as TCP: only then does asyncio send small packets at once (TCP_NODELAY), not 40 ms later.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=2048)
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=listening.detach())


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{_name_in_url(host)}:{port}"


def _name_in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
