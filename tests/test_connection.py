import pytest

import tinkerloop.local
from tinkerloop import connect
from tinkerloop.errors import TinkerloopError


def test_without_a_key_it_is_the_embedded_engine_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    client = connect(root=tmp_path)
    client.close("success")
    assert isinstance(client, tinkerloop.local.ServiceClient)
    assert "the embedded engine" in capsys.readouterr().err


def test_with_a_key_it_is_the_hosted_service_unless_asked_otherwise(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TINKER_API_KEY", "tml-key")
    monkeypatch.setattr("tinkerloop._lazy.tinker.ServiceClient", lambda **options: options, raising=False)
    assert connect() == {}
    assert connect("http://localhost:8000") == {"base_url": "http://localhost:8000"}
    assert "Tinker at http://localhost:8000" in capsys.readouterr().err
    local = connect("local", root=tmp_path)
    local.close("success")
    assert isinstance(local, tinkerloop.local.ServiceClient)


def test_a_url_is_a_client_of_tinkers_own_that_asks_for_nothing_yet(monkeypatch):
    import tinker

    monkeypatch.setenv("TINKER_API_KEY", "tml-key")
    assert isinstance(connect("http://127.0.0.1:9"), tinker.ServiceClient)


def test_an_unknown_service_is_refused():
    with pytest.raises(TinkerloopError, match="'locl'"):
        connect("locl")
