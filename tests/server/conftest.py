"""Fixtures: a server on a free port, the real `tinker` client for it, raw requests, and datums."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import tinker

pytest.importorskip("torch")
pytest.importorskip("uvicorn")

import torch

from tests.processes import Process
from tinkerloop.loop.futures import resolve
from tinkerloop.server.running import ServerOptions, background_server

KEY = "tml-a-key-for-tests"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Use one thread. The models are so small that more threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def no_telemetry() -> Iterator[None]:
    before = os.environ.get("TINKER_TELEMETRY")
    os.environ["TINKER_TELEMETRY"] = "0"
    yield
    if before is None:
        del os.environ["TINKER_TELEMETRY"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    models = {"tiny": "tiny", "tiny-vl": "tiny-vl"}
    with background_server(ServerOptions(models, root=root, device="cpu")) as url:
        yield url


@pytest.fixture
def service(url: str) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(base_url=url, api_key=KEY) as client:
        yield client


@pytest.fixture
def client(service: tinker.ServiceClient) -> tinker.TrainingClient:
    return resolve(service.create_lora_training_client("tiny", rank=8, seed=1))


@pytest.fixture
def raw(url: str) -> Iterator[RawClient]:
    with RawClient(url) as client:
        yield client


@contextmanager
def forked_server(root: Path, port: int = 0) -> Iterator[tuple[Process, str]]:
    """Run `tinkerloop serve` in a process of its own, at a port or a free one. The value is the process and the URL."""
    code = """
import sys, torch
from tinkerloop.cli.main import main
torch.set_num_threads(1)
sys.exit(main(sys.argv[1:]))
"""
    log = root.with_name(f"log_{port}")
    options = ["--port", str(port), "--root", str(root), "--model", "tiny"]
    server = Process(code, "serve", *options, output=log)
    try:
        while not (shown := re.search(r"serving tiny at (\S+)\n", server.output)):
            assert not server.has_ended, server.output
            time.sleep(0.01)
        yield server, shown[1]
    finally:
        server.kill()


class RawClient(httpx.Client):
    """Client that sends what a test writes, and not what the tinker client would."""

    def __init__(self, url: str):
        super().__init__(base_url=f"{url}/api/v1/", headers={"X-API-Key": KEY}, timeout=600)

    def ask(self, place: str, /, **body: object) -> dict:
        return self.post(place, json=body).raise_for_status().json()

    def answer(self, request_id: str) -> httpx.Response:
        headers = {"Accept": "application/x-protobuf"}
        return self.post("retrieve_future", json={"request_id": request_id}, headers=headers)

    def model(self) -> str:
        """Create a session and a model, and return the id of the model."""
        session = self.ask("create_session", tags=[], user_metadata=None, sdk_version="1")["session_id"]
        lora = {"rank": 4, "seed": 0}
        asked = self.ask("create_model", session_id=session, model_seq_id=0, base_model="tiny", lora_config=lora)
        return self.answer(asked["request_id"]).json()["model_id"]

    def step(self, model_id: str, number: int) -> str:
        """Send an optim_step, and return the id of the request."""
        params = {"learning_rate": 1e-3}
        return self.ask("optim_step", model_id=model_id, seq_id=number, adam_params=params)["request_id"]


def datum_of(seed: int, length: int = 12) -> tinker.Datum:
    """Return a cross-entropy datum of `length` positions with random byte tokens."""
    tokens = random.Random(f"tokens/{seed}").choices(range(256), k=length + 1)
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * length},
    )


@pytest.fixture
def datum() -> Callable[..., tinker.Datum]:
    return datum_of
