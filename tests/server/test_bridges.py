"""One script, any server: `connect(URL)` on our server, and on one that differs from it as SkyRL does."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import tinker

from tests.server.skyrl_like import skyrl_like_server
from tinkerloop import connect
from tinkerloop.bridges import UrlServiceClient
from tinkerloop.callbacks import Checkpoint, Evaluate, GradientAccumulation, LRSchedule, nll
from tinkerloop.connection import session
from tinkerloop.errors import PlanError, ServerLostError, TinkerloopError
from tinkerloop.loop import Checkpoints, Loop, open_training_client
from tinkerloop.loop.futures import awaitable, resolve
from tinkerloop.loop.schedules import linear
from tinkerloop.lost_server import is_lost, resume_when_lost
from tinkerloop.server.running import ServerOptions, background_server
from tinkerloop.supervised import train


@pytest.fixture(scope="module")
def skyrl_like(tmp_path_factory) -> Iterator[str]:
    options = ServerOptions({"tiny": "tiny"}, root=tmp_path_factory.mktemp("skyrl"), device="cpu")
    with skyrl_like_server(options) as url:
        yield url


@pytest.fixture(params=["ours", "skyrl_like"])
def any_url(request, url) -> str:
    return url if request.param == "ours" else request.getfixturevalue("skyrl_like")


@pytest.fixture(autouse=True)
def no_key(monkeypatch) -> None:
    monkeypatch.delenv("TINKER_API_KEY", raising=False)


def trained(client, datums, steps=3):
    batches = [datums[4 * step : 4 * step + 4] for step in range(steps)]
    loop = Loop(client, batches, steps=steps, optim=tinker.AdamParams(learning_rate=1e-3))
    return [result.loss for result in loop.steps()]


@pytest.fixture(scope="module")
def datums():
    from tests.server.conftest import datum_of

    return [datum_of(seed, 8 + seed % 3) for seed in range(24)]


def test_the_rest_client_of_a_service_is_given_without_a_warning(url):
    with warnings.catch_warnings(), session(connect(url)) as service:
        warnings.simplefilter("error", FutureWarning)
        assert isinstance(service.create_rest_client().list_training_runs().result().training_runs, list)


def test_samples_that_the_installed_client_cannot_read_name_the_version_that_can(skyrl_like):
    with session(connect(skyrl_like)) as service:
        sampler = resolve(service.create_sampling_client(base_model="tiny"))
        call = sampler.sample(tinker.ModelInput.from_ints([1, 2]), 1, tinker.SamplingParams(max_tokens=2))
        with pytest.raises(TinkerloopError, match="install tinker==0"):
            call.result()


def test_the_first_lines_name_the_server_and_what_its_loss_is(url, skyrl_like, datums, capsys):
    for place, sums in ((url, "yes"), (skyrl_like, "no: it divides")):
        with session(connect(place)) as service:
            client = service.create_lora_training_client("tiny", rank=4, seed=1)
            trained(client, datums, steps=1)
            trained(service.create_lora_training_client("tiny", rank=4, seed=1), datums, steps=1)
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == f"service: Tinker at {place}"
        assert [line for line in lines if "sums losses" in line] == [lines[1]]
        assert lines[1].startswith(f"server: sums losses: {sums}")


def test_the_loss_of_the_first_step_is_the_same_on_every_server(url, skyrl_like, datums):
    losses = []
    for place in (url, skyrl_like):
        with session(connect(place)) as service:
            losses.append(trained(service.create_lora_training_client("tiny", rank=4, seed=1), datums))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-6)
    assert losses[0][1:] != losses[1][1:]  # a mean over datums and one over tokens have different gradients


def run(url, folder, datums, steps, seen=None):
    checkpoints = Checkpoints(folder)
    record = checkpoints.latest()
    with session(connect(url)) as service:
        client = open_training_client(service, record, base_model="tiny", rank=4, seed=1)
        loop = Loop(
            client,
            [datums[2 * n : 2 * n + 2] for n in range(12)],
            steps=steps,
            callbacks=[
                LRSchedule(linear(1e-2, 0.0, 6)),
                GradientAccumulation(2, micro_batch=2),
                Evaluate("test", nll(datums[:3]), every=2),
                Checkpoint(every=2, sampler=True),
            ],
            checkpoints=checkpoints,
            record=record,
        )
        for result in loop.steps():
            if seen is not None:
                seen.append(result.loss)
        return loop.summary.metrics["test/nll"]


def test_a_run_resumes_with_the_losses_of_an_uninterrupted_one(any_url, datums, tmp_path):
    whole, parts = [], []
    expected = run(any_url, tmp_path / "whole", datums, 6, whole)
    run(any_url, tmp_path / "parts", datums, 4, parts)
    assert run(any_url, tmp_path / "parts", datums, 6, parts) == expected
    assert parts == whole


def test_a_name_that_was_saved_can_be_saved_again(any_url, datums):
    with session(connect(any_url)) as service:
        client = service.create_lora_training_client("tiny", rank=4)
        began = time.monotonic()
        paths = {client.save_state("again", overwrite=True).result().path for _ in range(2)}
        assert time.monotonic() - began < 60  # the client repeats a save that is answered with 409 for five minutes
        again = [service.create_training_client_from_state(path).get_info().lora_rank for path in paths]
        assert again == [4] * len(paths)


def test_negative_weights_and_custom_losses_are_refused_where_they_would_train_something_else(
    url, skyrl_like, datums, datum
):
    negative = datum(1)
    negative.loss_fn_inputs["weights"] = tinker.TensorData.from_numpy(-np.ones(12, np.float32))

    def custom(data, logprobs):
        return sum(values.sum() for values in logprobs), {}

    with session(connect(url)) as service:
        client = service.create_lora_training_client("tiny", rank=4)
        assert client.forward_backward([negative], "cross_entropy").result().metrics["loss:sum"] < 0
        client.forward_backward_custom([datum(1)], custom).result()
    with session(connect(skyrl_like)) as service:
        client = service.create_lora_training_client("tiny", rank=4)
        with pytest.raises(PlanError, match="datum 1 has negative weights"):
            client.forward_backward([datum(1), negative], "cross_entropy")
        with pytest.raises(PlanError, match="cannot train a custom loss"):
            Loop(client, [datums[:2]], loss_fn=custom, normalize="none").run()


def test_a_client_is_also_the_future_of_itself(url):
    with session(connect(url)) as service:
        client = service.create_lora_training_client("tiny", rank=4)
        assert client.result() is client
        assert isinstance(client, tinker.TrainingClient)


def test_the_end_of_a_session_frees_its_models(url, raw):
    with session(connect(url)) as service:
        owner = service.create_lora_training_client("tiny", rank=4).model_id.partition(":")[0]
        assert owner in raw.get("sessions").json()["sessions"]
    assert owner not in raw.get("sessions").json()["sessions"]


def test_train_main_ends_its_session(url, raw, datums, tmp_path):
    before = raw.get("sessions").json()["sessions"]
    config = train.Config(
        model_name="tiny", log_path=str(tmp_path), service=url, dataset_builder=lambda: (datums, None), batch_size=8
    )
    assert asyncio.run(train.main(config)).step == 3
    assert raw.get("sessions").json()["sessions"] == before


def test_an_address_without_a_server_is_an_error_at_the_first_call(tmp_path):
    with background_server(ServerOptions({"tiny": "tiny"}, root=tmp_path, device="cpu")) as url:
        pass
    service = UrlServiceClient(url, patience=0.2)
    for create in (
        lambda: service.create_lora_training_client("tiny", rank=4),
        lambda: service.create_sampling_client(base_model="tiny"),
        lambda: service.create_training_client_from_state("tinker://run/weights/end"),
    ):
        with pytest.raises(ServerLostError, match="start it, or correct the URL"):
            create()


def test_a_server_that_is_gone_fails_the_requests_that_wait_for_it(tmp_path, datums):
    with background_server(ServerOptions({"tiny": "tiny"}, root=tmp_path, device="cpu")) as url:
        service = UrlServiceClient(url, patience=0.5)
        client = service.create_lora_training_client("tiny", rank=4)
        trained(client, datums, steps=1)
    with pytest.raises(ServerLostError, match=r"start it again, then start this run again$"), service:
        client.forward_backward(datums[:1], "cross_entropy").result()


def test_a_server_that_is_gone_fails_the_samples_that_wait_for_it(tmp_path):
    prompt, params = tinker.ModelInput.from_ints([1, 2, 3]), tinker.SamplingParams(max_tokens=2)
    with background_server(ServerOptions({"tiny": "tiny"}, root=tmp_path, device="cpu")) as url:
        service = UrlServiceClient(url, patience=0.5)
        client = service.create_lora_training_client("tiny", rank=4)
        samplers = [service.create_sampling_client(base_model="tiny"), client.save_weights_and_get_sampling_client()]
        samplers = [resolve(sampler) for sampler in samplers]
        for sampler in samplers:
            assert isinstance(sampler, tinker.SamplingClient)
            assert len(sampler.sample(prompt, 1, params).result().sequences[0].tokens) == 2
    with service:
        for sampler in samplers:
            with pytest.raises(ServerLostError):
                sampler.sample(prompt, 1, params).result()
            with pytest.raises(ServerLostError):
                asyncio.run(awaited(sampler.compute_logprobs(prompt)))
        with pytest.raises(ServerLostError):
            resolve(service.create_sampling_client(base_model="tiny"))
        with pytest.raises(ServerLostError):
            service.create_lora_training_client("tiny", rank=4)


async def awaited(future):
    return await awaitable(future)


def test_a_model_that_the_server_has_lost_is_recognised(tmp_path, datums):
    options = ServerOptions({"tiny": "tiny"}, root=tmp_path, device="cpu")
    with background_server(options) as url:
        service = connect(url)
        client = service.create_lora_training_client("tiny", rank=4)
        trained(client, datums, steps=1)
    port = int(url.rpartition(":")[2])
    with background_server(ServerOptions(options.models, port=port, root=tmp_path, device="cpu")):
        with pytest.raises(tinker.RequestFailedError) as raised:
            client.forward_backward(datums[:1], "cross_entropy").result()
        service.close("errored")  # stops its heartbeats
        assert is_lost(raised.value)


def test_a_lost_run_is_resumed_at_most_so_often(monkeypatch, capsys):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    calls = []

    def work():
        calls.append(1)
        raise ServerLostError("gone") if len(calls) < 4 else ValueError("a mistake")

    with pytest.raises(ServerLostError):
        resume_when_lost(work, 2)
    assert len(calls) == 3
    with pytest.raises(ValueError, match="a mistake"):
        resume_when_lost(work, 9)
    assert len(calls) == 4
    assert "retry 2 of 2: gone" in capsys.readouterr().err
