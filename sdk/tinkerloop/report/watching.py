"""Serve the page of a run to this machine while the run goes on. The page reloads when a file of the run changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tinkerloop.errors import TinkerloopError
from tinkerloop.report.run_page import run_page
from tinkerloop.report.run_reading import read_run

_HOSTS = ("127.0.0.1", "localhost")


@contextmanager
def watch(folder: Path, port: int = 0) -> Iterator[ThreadingHTTPServer]:
    """Yield a server of the run's page on 127.0.0.1, for `serve_forever`. Port 0 is any free port.

    It answers only requests that name this machine as their host, so that no web page elsewhere can read the run.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if (self.headers.get("Host") or "").rpartition(":")[0] not in _HOSTS:
                self.send_error(403, "this server answers only requests to 127.0.0.1")
            elif self.path == "/":
                self._answer("text/html; charset=utf-8", lambda: run_page(read_run(folder), watched=version(folder)))
            elif self.path == "/version":
                self._answer("text/plain", lambda: version(folder))
            else:
                self.send_error(404)

        def _answer(self, kind: str, content: Callable[[], str]) -> None:
            try:
                body = content().encode()
            except (TinkerloopError, OSError) as error:
                self.send_error(500, explain=str(error))
                return
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing for each request."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    try:
        yield server
    finally:
        server.server_close()


def version(folder: Path) -> str:
    """Return a text that changes when a line is added to a file of the run."""
    names = ("metrics.jsonl", "checkpoints.jsonl", "starts.jsonl", "summary.json", "samples.jsonl", "rollouts.jsonl")
    sizes = [(folder / name).stat().st_size if (folder / name).is_file() else 0 for name in names]
    return "-".join(map(str, sizes))
