"""Sessions that end, answers that are forgotten, and requests that never arrive."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
import tinker
import torch
from tinker.proto import tinker_public_pb2 as messages

from tinkerloop.local.runtime.checkpoint_store import CheckpointStore
from tinkerloop.local.runtime.engine import Engine
from tinkerloop.loop.futures import resolve
from tinkerloop.lost_server import is_lost
from tinkerloop.server import routes
from tinkerloop.server.answers import KEEP_FETCHED, KEEP_UNFETCHED
from tinkerloop.server.protobuf import ForwardBackwardCall, read_forward_backward
from tinkerloop.server.request_order import GAP_SECONDS, memory_of
from tinkerloop.server.service import TinkerService
from tinkerloop.server.sessions import ServerLimits

STEP = {"learning_rate": 1e-3}


@asynccontextmanager
async def running(tmp_path, **limits: Any) -> AsyncIterator[TinkerService]:
    engine = Engine(CheckpointStore(tmp_path), torch.device("cpu"), torch.float32, folders={"tiny": "tiny"})
    service = TinkerService(engine, ServerLimits(**limits))
    yield service
    await service.stop()


async def answer(service: TinkerService, request_id: str) -> str:
    found = await service.fetch(request_id, 60)
    assert found is not None
    return found.body.decode()


async def new_model(service: TinkerService, session: str, number: int = 0) -> str:
    body = {"session_id": session, "model_seq_id": number, "base_model": "tiny", "lora_config": {"rank": 4}}
    name = service.create_model(body)
    return (await answer(service, name)) and name.removesuffix(":0")


def step(service: TinkerService, model: str, number: int) -> str:
    return service.optim_step({"model_id": model, "seq_id": number, "adam_params": STEP})


def test_a_silent_session_ends_and_frees_its_models(tmp_path):
    async def go() -> None:
        async with running(tmp_path, models=1) as service:
            silent, alive = service.create_session({}), service.create_session({})
            model = await new_model(service, silent)
            assert "its limit" in await answer(service, service.create_model(body_of(alive)))
            service.sessions.get(silent).seen -= 10_000
            service.sweep(time.monotonic())
            assert [session.id for session in service.sessions] == [alive]
            assert "resume from your newest record" in await answer(service, step(service, model, 1))
            assert "model_id" in await answer(service, service.create_model(body_of(alive, 1)))

    def body_of(session: str, number: int = 0) -> dict[str, Any]:
        return {"session_id": session, "model_seq_id": number, "base_model": "tiny", "lora_config": {"rank": 4}}

    asyncio.run(go())


def test_a_pause_of_the_server_counts_as_nobodys_silence(tmp_path):
    async def go() -> None:
        async with running(tmp_path) as service:
            session = service.create_session({})
            model = await new_model(service, session)
            early, before = step(service, model, 2), time.monotonic()
            kept = service.create_model({"session_id": session, "model_seq_id": 1})  # fails at once
            hour = 3600.0
            service.sweep(before + hour, paused=hour - 5)
            assert [known.id for known in service.sessions] == [session]
            assert kept in service.answers
            assert await service.fetch(early, 0) is None
            service.sweep(before + hour + 1000)
            assert not list(service.sessions)

    asyncio.run(go())


def test_the_server_notices_that_it_was_paused(monkeypatch):
    class Recorder:
        paused: ClassVar[list[float]] = []

        def sweep(self, now: float, paused: float) -> None:
            self.paused.append(paused)

    async def sleep(seconds: float) -> None:
        clock[0] += pauses.pop(0) + seconds  # fails when the list is empty

    clock, pauses = [100.0], [0.0, 400.0, 0.0]
    monkeypatch.setattr(routes, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(routes, "asyncio", SimpleNamespace(sleep=sleep))
    with pytest.raises(IndexError):
        routes._sweep_regularly(cast(Any, Recorder())).send(None)
    assert Recorder.paused == [0.0, 400.0, 0.0]


def test_what_waits_for_an_earlier_request_fails_when_the_session_ends(tmp_path):
    async def go() -> None:
        async with running(tmp_path) as service:
            session = service.create_session({})
            model = await new_model(service, session)
            early = step(service, model, 2)
            service.sessions.close(session)
            assert "the session has ended" in await answer(service, early)

    asyncio.run(go())


def test_requests_to_a_server_that_is_stopped_count_as_lost(tmp_path):
    async def go() -> list[str]:
        async with running(tmp_path) as service:
            model = await new_model(service, service.create_session({}))
            early = step(service, model, 2)
            await service.stop()
            late = step(service, model, 1)
            return [await answer(service, early), await answer(service, late)]

    early, late = asyncio.run(go())
    assert "has stopped before" in early
    assert "being stopped" in late
    assert all(is_lost(RuntimeError(text)) for text in (early, late))


def test_requests_of_an_ended_session_count_as_lost(tmp_path):
    async def go() -> list[str]:
        async with running(tmp_path) as service:
            session = service.create_session({})
            model = await new_model(service, session)
            early = step(service, model, 2)
            service.sessions.close(session)
            sample = {"sampling_session_id": f"{session}:sample:0", "seq_id": 0}
            late = [step(service, model, 1), service.sample(sample)[0]]
            with pytest.raises(tinker.NotFoundError) as raised:
                service.sessions.get(session)
            return [str(raised.value), *[await answer(service, name) for name in (early, *late)]]

    assert all(is_lost(RuntimeError(text)) for text in asyncio.run(go()))


def test_a_model_or_sampler_that_a_living_session_never_had_does_not_count_as_lost(tmp_path):
    async def go() -> list[str]:
        async with running(tmp_path) as service:
            session = service.create_session({})
            sample = {"sampling_session_id": f"{session}:sample:0", "seq_id": 0}
            names = [step(service, f"{session}:train:7", 1), service.sample(sample)[0]]
            return [await answer(service, name) for name in names]

    assert not any(is_lost(RuntimeError(text)) for text in asyncio.run(go()))


def test_a_request_that_never_arrives_fails_those_after_it_and_the_model_goes_on(tmp_path):
    async def go() -> None:
        async with running(tmp_path) as service:
            model = await new_model(service, service.create_session({}))
            early = step(service, model, 3)
            service.sweep(time.monotonic() + GAP_SECONDS - 10)
            assert await service.fetch(early, 0) is None
            for session in service.sessions:
                session.seen = time.monotonic() + GAP_SECONDS
            service.sweep(time.monotonic() + GAP_SECONDS + 10)
            assert "request 1 of this model never arrived" in await answer(service, early)
            assert "metrics" in await answer(service, step(service, model, 4))

    asyncio.run(go())


def padded(model: str, number: int) -> ForwardBackwardCall:
    """Return a call whose message has a little more than 20,000 bytes."""
    message = messages.ForwardBackwardRequest(model_id=model, seq_id=number, loss_fn="cross_entropy")
    message.data.add().loss_fn_inputs["weights"].dense = bytes(20_000)
    return read_forward_backward(message.SerializeToString())


def test_requests_that_wait_for_an_earlier_one_may_take_only_so_much_memory(tmp_path):
    async def go() -> None:
        async with running(tmp_path, held_bytes=50_000) as service:
            session = service.create_session({})
            model, other = [await new_model(service, session, number) for number in range(2)]
            assert service.forward_backward(padded(other, 2))
            held = [service.forward_backward(padded(model, number)) for number in (2, 3)]
            also = step(service, model, 4)
            assert service.sessions.held_bytes(model) < 50_000
            in_turn = service.forward_backward(padded(model, 1))  # waits for none, so it needs no room
            assert "may have 50000 bytes in all" not in await answer(service, in_turn)
            assert "may have 50000 bytes in all" not in await answer(service, held[0])
            assert "may have 50000 bytes in all" in await answer(service, held[1])
            assert "metrics" in await answer(service, also)

    asyncio.run(go())


def test_the_memory_of_json_is_that_of_the_decoded_values():
    text = "[" + "[]," * 1000 + "[]]"
    assert memory_of(json.loads(text), 10**9) > 50 * 1000
    assert memory_of({"key": "x" * 1000}, 10**9) > 1000
    assert memory_of([1] * 10**6, 100) < 10**8  # it does not count on


@pytest.mark.parametrize("fetched, seconds", [(True, KEEP_FETCHED), (False, KEEP_UNFETCHED)])
def test_an_answer_is_kept_for_some_minutes(tmp_path, fetched, seconds):
    async def go() -> None:
        async with running(tmp_path) as service:
            model = await new_model(service, service.create_session({}))
            name = step(service, model, 1)
            while name in service.answers and await service.fetch(f"{model}:0", 0) and not finished(service, name):
                await asyncio.sleep(0.01)
            if fetched:
                await answer(service, name)
            service.answers.forget(time.monotonic() + seconds - 10)
            assert name in service.answers
            service.answers.forget(time.monotonic() + seconds + 10)
            assert name not in service.answers
            assert step(service, model, 1) == name  # not executed again
            assert "no longer kept" in await answer(service, name)

    def finished(service: TinkerService, name: str) -> bool:
        return service.answers._entries[name].answer.done()

    asyncio.run(go())


def test_closing_the_client_ends_the_session(url):
    service = tinker.ServiceClient(base_url=url, api_key="tml-key")
    client = resolve(service.create_lora_training_client("tiny", rank=4))
    session = client.model_id.partition(":")[0]
    rest = tinker.RestClient(base_url=url, api_key="tml-key")
    assert session in rest.list_sessions().result().sessions
    service.close("success").result()
    assert session not in rest.list_sessions().result().sessions


def test_a_heartbeat_of_an_ended_session_says_so(raw):
    session = raw.ask("create_session", tags=[], user_metadata=None, sdk_version="1")["session_id"]
    assert raw.post("session_heartbeat", json={"session_id": session}).status_code == 200
    raw.post(f"sessions/{session}/finish", json={"reason": {"type": "success"}})
    assert raw.post("session_heartbeat", json={"session_id": session}).status_code == 410


def test_a_server_accepts_so_many_sessions(tmp_path):
    async def go() -> None:
        async with running(tmp_path, sessions=1) as service:
            service.create_session({})
            with pytest.raises(tinker.BadRequestError, match="its limit"):
                service.create_session({})

    asyncio.run(go())


@pytest.mark.parametrize("named", [{"display_name": "\udce9"}, {"user_metadata": {"file": "\udce9"}}])
def test_a_session_with_a_text_that_is_no_unicode_is_refused(raw, named):
    body = json.dumps({"tags": [], "sdk_version": "1", **named})  # escaped, which the JSON of httpx would not be
    reply = raw.post("create_session", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400
    assert "unpaired surrogate" in reply.text
