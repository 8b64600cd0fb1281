"""Requests that fail, arrive twice, or arrive in another order."""

from __future__ import annotations

import time

import httpx
import pytest
import tinker
from tinker.proto import tinker_public_pb2 as messages
from tinker.types import RequestErrorCategory

from tinkerloop.loop.futures import resolve
from tinkerloop.server.protobuf import read_head

ADAM = tinker.AdamParams(learning_rate=1e-3)


def datum_with(**inputs) -> tinker.Datum:
    loss_fn_inputs = {"target_tokens": [2, 3, 4], "weights": [1.0] * 3, **inputs}
    return tinker.Datum(model_input=tinker.ModelInput.from_ints([1, 2, 3]), loss_fn_inputs=loss_fn_inputs)


MISTAKES = {
    "a token outside the vocabulary": (
        lambda c: c.forward_backward([datum_with(target_tokens=[2, 3, 5000])], "cross_entropy"),
        "out of range",
    ),
    "a wrong length": (lambda c: c.forward_backward([datum_with(weights=[1.0])], "cross_entropy"), "weights"),
    "an unknown loss": (lambda c: c.forward_backward([datum_with()], "mse"), "mse"),
    "an unknown setting": (lambda c: c.forward_backward([datum_with()], "cross_entropy", {"beta": 1.0}), "beta"),
    "another optimizer": (lambda c: c.optim_step(tinker.DimuonParams(learning_rate=0.1)), "Dimuon|AdamParams"),
    "a negative learning rate": (lambda c: c.optim_step(tinker.AdamParams(learning_rate=-1.0)), "learning_rate"),
    "a short life": (lambda c: c.save_state("short", ttl_seconds=1), "ttl_seconds"),
    "an inflight sampler": (lambda c: c.save_weights_and_get_sampling_client(kind="inflight"), "inflight"),
    "an encrypted checkpoint": (
        lambda c: c.save_weights_external("x", age_encryption_recipients=["age1x"]),
        "age_encryption_recipients",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_fails_at_once_with_the_category_user_and_changes_nothing(client, mistake, datum):
    make, text = MISTAKES[mistake]
    before = time.monotonic()
    with pytest.raises(tinker.RequestFailedError, match=text) as failure:
        make(client).result()
    assert time.monotonic() - before < 20  # no answer of the client's retries, which take minutes
    assert failure.value.category is RequestErrorCategory.User
    client.forward_backward([datum(1)], "cross_entropy").result()
    client.optim_step(ADAM).result()


def test_a_name_that_exists_fails_unless_it_may_be_overwritten(client):
    client.save_state("same").result()
    with pytest.raises(tinker.RequestFailedError, match="already exists") as failure:
        client.save_state("same").result()
    assert failure.value.category is RequestErrorCategory.User
    client.save_state("same", overwrite=True).result()


def test_mistakes_in_sampling_fail_at_once(service, client):
    sampler = resolve(service.create_sampling_client(base_model="tiny"))
    prompt = tinker.ModelInput.from_ints([1, 2])
    for params, count in ((tinker.SamplingParams(max_tokens=0), 1), (tinker.SamplingParams(max_tokens=1), 0)):
        with pytest.raises(tinker.RequestFailedError) as failure:
            sampler.sample(prompt, count, params).result()
        assert failure.value.category is RequestErrorCategory.User
    path = client.save_state("not-for-sampling").result().path
    with pytest.raises(tinker.BadRequestError, match="sampler weights checkpoint"):
        resolve(service.create_sampling_client(model_path=path))
    with pytest.raises(tinker.NotFoundError):
        resolve(service.create_sampling_client(model_path=path.replace("/weights/", "/sampler_weights/")))


def test_a_fault_of_the_server_has_the_category_server(client, root, monkeypatch):
    run = root / client.model_id.replace(":", "_")
    run.symlink_to("/nowhere")  # nothing is written through a link
    with pytest.raises(tinker.RequestFailedError, match="symbolic link") as failure:
        client.save_state("a").result()
    assert failure.value.category is RequestErrorCategory.Server


def test_requests_run_in_the_order_of_their_numbers_not_of_their_arrival(raw):
    model = raw.model()
    save = {"type": "save_weights", "overwrite": True, "model_id": model, "path": "x"}
    early = raw.ask("save_weights", seq_id=3, **save)["request_id"]
    unknown = raw.ask("optim_step", model_id=model, seq_id=2, adam_params={"no_such_field": 1})["request_id"]
    assert raw.step(model, 1) == f"{model}:1"
    assert "metrics" in raw.answer(f"{model}:1").json()
    assert raw.answer(unknown).json()["category"] == "user"
    assert raw.answer(early).json()["path"] == f"tinker://{model}/weights/x"


def test_a_repeated_request_is_executed_once(raw):
    model = raw.model()
    assert raw.step(model, 1) == raw.step(model, 1)
    first = raw.answer(f"{model}:1").json()
    assert raw.step(model, 1) == f"{model}:1"
    assert raw.answer(f"{model}:1").json() == first
    for number, name in ((2, "once"), (2, "twice")):
        raw.ask("save_weights", model_id=model, seq_id=number, path=name)
    assert raw.answer(f"{model}:2").json()["path"].endswith("/once")
    saved = raw.get(f"training_runs/{model}/checkpoints").json()["checkpoints"]
    assert [checkpoint["checkpoint_id"] for checkpoint in saved] == ["weights/once"]


def test_a_repeated_creation_gives_the_same_model_and_the_same_sampler(raw):
    model = raw.model()
    session = model.partition(":")[0]
    body = {"session_id": session, "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 4}}
    assert raw.answer(raw.ask("create_model", **body)["request_id"]).json()["model_id"] == model
    assert raw.get(f"sessions/{session}").json()["training_run_ids"] == [model]
    samplers = {
        raw.ask("create_sampling_session", session_id=session, sampling_session_seq_id=4, base_model="tiny")[
            "sampling_session_id"
        ]
        for _ in range(2)
    }
    assert len(samplers) == 1


def test_a_request_that_is_too_large_fails_in_its_place(tmp_path, datum):
    from tests.server.conftest import RawClient
    from tinkerloop.server.running import ServerOptions, background_server
    from tinkerloop.server.sessions import ServerLimits

    options = ServerOptions({"tiny": "tiny"}, root=tmp_path, device="cpu", limits=ServerLimits(body_bytes=10_000))
    with background_server(options) as url:
        with tinker.ServiceClient(base_url=url, api_key="tml-key") as service:
            client = resolve(service.create_lora_training_client("tiny", rank=4))
            large = client.forward_backward([datum(1, 2000)], "cross_entropy")
            step = client.optim_step(ADAM)
            with pytest.raises(tinker.RequestFailedError, match="more than 10000 bytes"):
                large.result()
            step.result()
        with RawClient(url) as raw:
            assert raw.post("create_session", content=b" " * 20_000).status_code == 413


def test_malformed_bodies_are_rejected_and_disturb_nobody(raw, client, datum):
    model = raw.model()
    tensor = messages.Tensor(dtype=messages.DTYPE_FLOAT32, dense=b"\0" * 4)
    sparse = messages.SparseCsr(values=b"", crow_indices=b"\0" * 8, col_indices=b"")
    huge = messages.Tensor(dtype=messages.DTYPE_FLOAT32, shape=[2**20, 2**20], sparse_csr=sparse)
    odd = messages.Tensor(dtype=messages.DTYPE_FLOAT32, dense=b"\0" * 5)
    for number, (inputs, text) in enumerate(
        [
            ({"weights": huge}, "elements"),
            ({"weights": odd}, "5 bytes"),
            ({"target_tokens": tensor}, "target_tokens"),
            ({}, "target_tokens"),
        ],
        start=1,
    ):
        chunk = messages.Chunk(encoded_text={"tokens": b"\1\0\0\0"})
        one = messages.Datum(model_input=[chunk], loss_fn_inputs=inputs)
        body = messages.ForwardBackwardRequest(model_id=model, seq_id=number, loss_fn="cross_entropy", data=[one])
        name = raw.post("forward_backward", content=body.SerializeToString()).json()["request_id"]
        failure = raw.answer(name).json()
        assert failure["category"] == "user"
        assert text in failure["error"]
    for content in (b"", b"\xff" * 40, b"{}", body.SerializeToString()[:-3]):
        assert raw.post("forward_backward", content=content).status_code == 400
    for content in (b"[]", b"{", b"[" * 100_000, b"\xff\xfe"):
        assert raw.post("optim_step", content=content).status_code == 400
    assert raw.post("optim_step", json={"model_id": model}).status_code == 400
    client.forward_backward([datum(1)], "cross_entropy").result()


def test_requests_to_what_does_not_exist_are_answered_at_once(raw):
    for name in (raw.step("none:train:0", 1), "none:sample:0:4", "what"):
        failure = raw.answer(name).json()
        assert failure["category"] == "user"
        assert "this server has no" in failure["error"]
    assert raw.post("get_info", json={"model_id": "none:train:0"}).status_code == 404
    assert raw.get("samplers/none:sample:0").status_code == 404
    assert raw.post("no_such_path", json={}).status_code == 404


def test_a_web_page_cannot_use_a_server_without_a_token(url):
    assert httpx.post(f"{url}/api/v1/client/config", json={}).status_code == 401  # needs a header of its own
    headers = {"X-API-Key": "tml-x", "Host": "evil.example"}
    assert httpx.post(f"{url}/api/v1/client/config", json={}, headers=headers).status_code == 401
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}


def test_no_request_of_a_model_has_the_number_of_its_creation(raw):
    model = raw.model()
    body = {"model_id": model, "seq_id": 0, "adam_params": {"learning_rate": 1e-3}, "path": "a"}
    for path in ("optim_step", "save_weights", "save_weights_for_sampler", "save_weights_external", "load_weights"):
        refused = raw.post(path, json=body)
        assert (refused.status_code, "seq_id (an integer >= 1)" in refused.text) == (400, True)


def test_a_call_that_is_too_large_to_be_read_has_no_number_of_a_creation():
    assert read_head(messages.ForwardBackwardRequest(model_id="m", seq_id=1).SerializeToString()) == ("m", 1)
    assert read_head(b"\x0a\x01m\x10\x00") is None


ADAM_FIELDS = ["learning_rate", "beta1", "beta2", "eps", "weight_decay", "grad_clip_norm"]


@pytest.mark.parametrize("value", [True, "0.5"])
def test_a_truth_value_or_a_text_is_no_number(raw, value):
    model = raw.model()
    session = model.partition(":")[0]
    asked = [
        raw.ask("optim_step", model_id=model, seq_id=number, adam_params={name: value})
        for number, name in enumerate(ADAM_FIELDS, 1)
    ]
    asked.append(raw.ask("save_weights", model_id=model, seq_id=len(asked) + 1, path="a", ttl_seconds=value))
    lora = {"rank": value}
    asked.append(raw.ask("create_model", session_id=session, model_seq_id=1, base_model="tiny", lora_config=lora))
    sampler = raw.ask("create_sampling_session", session_id=session, sampling_session_seq_id=0, base_model="tiny")
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]}
    for number, name in enumerate(["max_tokens", "seed", "temperature", "top_k", "top_p"]):
        params = {"max_tokens": 1, name: value}
        asked.append(
            raw.ask(
                "asample",
                sampling_session_id=sampler["sampling_session_id"],
                seq_id=number,
                prompt=prompt,
                sampling_params=params,
            )
        )
    answers = [raw.answer(one["request_id"]).text for one in asked]
    assert not [answer for answer in answers if "must be a number, got" not in answer]
