"""A hostile user disturbs nobody: the server answers each request, and others train with the same numbers."""

from __future__ import annotations

import logging
import threading

import httpx
import pytest
import tinker

from tests.server.conftest import KEY, datum_of
from tests.server.hostile import BODY_BYTES, Hostile
from tinkerloop.loop.futures import resolve
from tinkerloop.server import routes
from tinkerloop.server.running import ServerOptions, background_server
from tinkerloop.server.sessions import ServerLimits


def losses(url: str, steps: int) -> list[float]:
    """Train for some steps. Return the losses."""
    with tinker.ServiceClient(base_url=url, api_key=KEY) as service:
        client = resolve(service.create_lora_training_client("tiny", rank=4, seed=1))
        outputs = []
        for step in range(steps):
            outputs.append(client.forward_backward([datum_of(step), datum_of(step + 1, 30)], "cross_entropy"))
            client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
        return [output.result().metrics["loss:sum"] for output in outputs]


@pytest.mark.parametrize(
    "requests", [pytest.param(200, marks=pytest.mark.slow), pytest.param(10_000, marks=pytest.mark.soak)]
)
def test_hostile_requests_are_answered_and_disturb_nobody(requests, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(routes, "POLL_SECONDS", 0.05)  # requests that wait for an earlier one are asked for, too
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    root = tmp_path / "folder" / "root"  # nothing is written beside it
    caplog.set_level(logging.WARNING)
    options = ServerOptions(
        {"tiny": "tiny", "tiny-vl": "tiny-vl"}, root=root, device="cpu", limits=ServerLimits(body_bytes=BODY_BYTES)
    )
    with background_server(options) as url:
        expected = losses(url, 10)
        trained, done = [], threading.Event()

        def train() -> None:
            while not done.is_set():
                trained.append(losses(url, 10))

        honest = threading.Thread(target=train)
        honest.start()
        hostile = Hostile(url, seed=requests)
        try:
            for number in range(requests):
                hostile.send(number)
        finally:
            done.set()
            honest.join()
        hostile.close()
        assert not hostile.failures, "\n".join(hostile.failures[:20])
        assert trained
        assert all(values == expected for values in trained)
        assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
    assert {200, 400, 404, 405, 413} <= hostile.statuses.keys()
    assert hostile.executed > requests / 25  # so the attacked model does compute and save
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert [folder.name for folder in (*tmp_path.iterdir(), *root.parent.iterdir())] == ["folder", "root"]
