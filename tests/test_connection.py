import asyncio

import pytest

import tinkerloop.local
from tinkerloop import connect
from tinkerloop.errors import TinkerloopError
from tinkerloop.hosted import HostedServiceClient


def test_without_a_key_it_is_the_embedded_engine_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    client = connect(root=tmp_path)
    client.close("success")
    assert isinstance(client, tinkerloop.local.ServiceClient)
    assert "the embedded engine" in capsys.readouterr().err


def test_with_a_key_it_is_the_hosted_service_unless_asked_otherwise(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("TINKER_BASE_URL", raising=False)
    monkeypatch.setenv("TINKER_API_KEY", "tml-key")
    monkeypatch.setattr("tinker.ServiceClient.__init__", lambda self, **options: None)
    assert isinstance(connect(), HostedServiceClient)
    assert capsys.readouterr().err == "service: Tinker\n"
    local = connect("local", root=tmp_path)
    local.close("success")
    assert isinstance(local, tinkerloop.local.ServiceClient)


@pytest.mark.parametrize("name", ["create_lora_training_client", "create_lora_training_client_async"])
def test_the_hosted_service_warns_about_a_model_that_it_retires(name, monkeypatch, caplog):
    monkeypatch.delenv("TINKER_BASE_URL", raising=False)
    monkeypatch.setattr("tinker.ServiceClient.__init__", lambda self, **options: None)

    async def create_async(self, base_model, rank):
        return base_model, rank

    created = create_async if name.endswith("async") else lambda self, base_model, rank: (base_model, rank)
    monkeypatch.setattr(f"tinker.ServiceClient.{name}", created)
    for model in ("Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B"):
        assert not caplog.records
        client = getattr(connect("tinker"), name)(model, rank=8)
        assert (asyncio.run(client) if asyncio.iscoroutine(client) else client) == (model, 8)
    assert "retires Qwen/Qwen3-30B-A3B" in caplog.text


def test_a_url_is_a_client_of_tinkers_own(monkeypatch, capsys):
    import tinker

    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    monkeypatch.setattr("tinker.ServiceClient.__init__", lambda self, **options: None)
    assert isinstance(connect("http://127.0.0.1:9"), tinker.ServiceClient)
    assert "Tinker at http://127.0.0.1:9" in capsys.readouterr().err


def test_the_url_of_the_environment_takes_the_place_of_the_hosted_service(monkeypatch, capsys):
    monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("tinker.ServiceClient.__init__", lambda self, **options: None)
    connect()
    connect("tinker")
    assert capsys.readouterr().err.splitlines() == ["service: Tinker at http://127.0.0.1:9"] * 2


def test_an_unknown_service_is_refused():
    with pytest.raises(TinkerloopError, match="'locl'"):
        connect("locl")


def test_device_and_dtype_reach_the_embedded_engine(tmp_path):
    import torch

    with connect("local", root=tmp_path, device="cpu", dtype="bfloat16") as client:
        assert client._engine.dtype == torch.bfloat16


@pytest.mark.parametrize("option", [{"device": "cpu"}, {"dtype": "bfloat16"}])
def test_device_and_dtype_are_refused_for_a_server(option):
    with pytest.raises(TinkerloopError, match="options of the embedded engine"):
        connect("http://127.0.0.1:9", **option)


WRONG_URLS = [
    "http://",
    "http://[bad",
    "http://h:abc",
    "http://h:99999",
    "http://h:0",
    "http://h:1?x=1",
    "http://h:1#x",
]


@pytest.mark.parametrize("url", WRONG_URLS)
def test_a_url_that_is_wrong_is_refused_before_the_first_call(url):
    with pytest.raises(TinkerloopError, match="is not the URL of a server"):
        connect(url)


def test_a_url_may_begin_with_capitals(monkeypatch):
    monkeypatch.setattr("tinkerloop.bridges.UrlServiceClient", lambda url: url)
    assert connect("HTTPS://Host:1/Path") == "https://Host:1/Path"
