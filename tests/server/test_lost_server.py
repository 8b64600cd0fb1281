"""What a program prints whose server is killed: an early line, no tracebacks of telemetry, and how to go on at last."""

from __future__ import annotations

import io
import logging
import re
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import tinker

from tests.processes import Process
from tests.server.conftest import forked_server
from tinkerloop.errors import ServerLostError
from tinkerloop.lost_server import ServerWatch
from tinkerloop.server.running import ServerOptions, background_server

PROGRAM = """
import sys
from tests.server.conftest import datum_of
from tinkerloop.bridges import UrlServiceClient
from tinkerloop.callbacks import Checkpoint
from tinkerloop.loop import Loop, Run, open_training_client

url, folder, save_every, patience = sys.argv[1:]
with UrlServiceClient(url, patience=float(patience)) as service, Run(folder) as run:
    record = run.checkpoints.latest()
    client = open_training_client(service, record, base_model="tiny", rank=4)
    callbacks = [Checkpoint(int(save_every), keep_last=2)] if int(save_every) else []
    batches = [[datum_of(0)]] * 100_000
    run.finish(Loop(client, batches, callbacks=callbacks, checkpoints=run.checkpoints, sinks=[run.metrics]).run())
"""


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when the condition is true. The limit of 5 minutes is against hanging."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 300
        time.sleep(0.01)


def lines_of_a_lost_run(folder: Path, save_every: int = 0, patience: float = 2.0) -> list[str]:
    """Kill the server of a run with SIGKILL. Return the lines of the program's output."""
    with forked_server(folder / "root") as (server, url):
        process = Process(PROGRAM, url, str(folder / "run"), str(save_every), str(patience), output=folder / "log")
        metrics = folder / "run" / "metrics.jsonl"
        wait_until(lambda: process.has_ended or (metrics.exists() and metrics.read_bytes().count(b"\n") >= 5))
        server.kill()
        wait_until(lambda: process.has_ended)
    return process.output.splitlines()


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> list[str]:
    return lines_of_a_lost_run(tmp_path_factory.mktemp("lost"))


def test_the_loss_is_told_when_it_is_noticed(lines):
    early = [number for number, line in enumerate(lines) if "does not answer; waiting up to 2 s" in line]
    assert len(early) == 1
    assert early[0] < lines.index("Traceback (most recent call last):")


def test_the_command_that_goes_on_is_the_last_line(lines):
    assert re.match(r"the run in \S+/run failed; .*, by: \S*python", lines[-1])


def test_a_run_without_a_record_does_not_say_that_it_resumes(lines):
    assert "nothing was saved yet, so it is started anew, by: " in lines[-1]
    assert not any("newest record" in line for line in lines)


def test_a_run_with_a_record_says_where_it_resumes(tmp_path):
    lines = lines_of_a_lost_run(tmp_path, save_every=2)
    assert re.search(r"; it is resumed at step \d+, from tinker://\S+, by: ", lines[-1])
    assert "anew" not in " ".join(lines)


def test_a_server_that_answers_again_is_told(tmp_path):
    options = ServerOptions({"tiny": "tiny"}, root=tmp_path, device="cpu")
    with background_server(options) as url:
        pass
    waiting: Future[None] = Future()
    with redirect_stderr(io.StringIO()) as seen:
        ServerWatch(url, patience=20.0).add(waiting)
        wait_until(lambda: "waiting up to 20 s" in seen.getvalue())
        with background_server(replace(options, port=int(url.rpartition(":")[2]))):
            wait_until(lambda: f"the server at {url} answers again\n" in seen.getvalue())
        waiting.set_result(None)
    assert seen.getvalue().count("waiting up to") == 1


def test_the_watch_fails_what_waits_though_the_url_is_wrong_and_nothing_can_be_printed(monkeypatch):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stderr", closed)
    waiting: Future[None] = Future()
    ServerWatch("http://127.0.0.1:abc", patience=0.2).add(waiting)
    with pytest.raises(ServerLostError):
        waiting.result(60)


def test_of_tinkers_telemetry_only_what_found_no_server_is_demoted(caplog):
    ServerWatch("http://127.0.0.1:1")
    telemetry = logging.getLogger("tinker.lib.telemetry")
    lost = tinker.APIConnectionError(request=httpx.Request("POST", "http://127.0.0.1:1"))
    with caplog.at_level(logging.INFO):
        telemetry.warning("lost", exc_info=lost)
        telemetry.warning("another error", exc_info=ValueError("wrong"))
        telemetry.warning("no error")
    assert [(entry.levelname, entry.message) for entry in caplog.records] == [
        ("WARNING", "another error"),
        ("WARNING", "no error"),
    ]
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "tinker.lib.telemetry"):
        telemetry.warning("lost", exc_info=lost)
    assert [(entry.levelname, entry.message) for entry in caplog.records] == [("DEBUG", "lost")]
