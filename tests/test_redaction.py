"""What is redacted, and what is not, because it only looks like a secret."""

import doctest
import json

import pytest

import tinkerloop.redaction
from tinkerloop import connect
from tinkerloop.errors import TinkerloopError
from tinkerloop.loop import Run
from tinkerloop.redaction import is_secret, redacted, redacted_arguments

SECRET = "s3cr3t-VALUE"


def test_the_examples_of_the_docstrings_hold():
    assert doctest.testmod(tinkerloop.redaction).failed == 0


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "DB_PASSWORD",
        "api_key",
        "apiKey",
        "api-key",
        "--api-key",
        "config.api_key",
        "TINKER_API_KEY",
        "apikey",
        "token",
        "hf_token",
        "access-token",
        "accessToken",
        "client_secret",
        "aws_secret_access_key",
        "private_key",
        "Authorization",
        "wandb_key",
    ],
)
def test_a_name_of_a_secret_is_known(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "max_tokens",
        "tokens",
        "tokenizer",
        "pad_token",
        "eos_token",
        "key",
        "messages_key",
        "keyboard",
        "seed",
        "keep",
        "",
    ],
)
def test_a_name_that_only_looks_like_one_is_not(name):
    assert not is_secret(name)


@pytest.mark.parametrize(
    "text",
    [
        f"https://me:{SECRET}@host:8000/v1",
        f"postgresql+psycopg://me:{SECRET}@host/db",
        f"https://{SECRET}@github.com/a/b",
        f"https://me:pa@{SECRET}@host/",
        f"see https://host/v1?a=1&api_key={SECRET}&b=2",
        f"https://host/blob?sig={SECRET}",
        f"https://host/?key={SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"Client(url='http://host', api_key='{SECRET} {SECRET}')",
        f"{{'password': '{SECRET}'}}",
        json.dumps({"password": SECRET}),
        f"token={SECRET}",
    ],
)
def test_a_secret_in_a_text_is_replaced(text):
    assert "***" in redacted(text)
    assert SECRET not in redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://localhost:8000/v1?limit=3",
        "tinker://run/weights/0001",
        "me@example.com",
        "Config(max_tokens=9, pad_token='<pad>', api_key=None)",
        "the password is asked for later",
    ],
)
def test_a_text_without_secrets_stays_as_it_is(text):
    assert redacted(text) == text


def test_the_host_of_a_redacted_url_stays_readable():
    assert redacted(f"https://me:{SECRET}@host:8000/v1") == "https://***@host:8000/v1"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--api-key", SECRET],
        ["--api_key", SECRET],
        [f"--api-key={SECRET}"],
        [f"api_key={SECRET} {SECRET}"],
        [f"config.hf_token={SECRET}"],
        [f"service=https://me:{SECRET}@host"],
        ["--header", f"Authorization: Bearer {SECRET}"],
    ],
)
def test_a_secret_in_the_arguments_is_replaced_and_the_others_stay(arguments):
    shown = redacted_arguments(["train.py", *arguments, "steps=3", "--max-tokens", "9"])
    assert SECRET not in " ".join(shown)
    assert [shown[0], *shown[-3:]] == ["train.py", "steps=3", "--max-tokens", "9"]


def test_no_file_of_a_run_folder_holds_a_secret(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--api-key", SECRET, f"api_key={SECRET}", f"http://me:{SECRET}@host"])
    config = {"service": f"http://me:{SECRET}@host", "nested": [{"api_key": SECRET}], "repr": f"C(token='{SECRET}')"}
    with pytest.raises(OSError, match="refused"), Run(tmp_path, config):
        raise OSError(f"refused: http://me:{SECRET}@host")
    written = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert {"config.json", "environment.json", "starts.jsonl", "summary.json"} <= written.keys()
    assert [name for name, text in written.items() if SECRET in text] == []


def test_connect_prints_and_raises_no_password(monkeypatch, capsys):
    monkeypatch.setattr("tinkerloop.bridges.UrlServiceClient", lambda url: url)
    assert connect(f"http://me:{SECRET}@host") == f"http://me:{SECRET}@host"
    assert capsys.readouterr().err == "service: Tinker at http://***@host\n"
    with pytest.raises(TinkerloopError) as refused:
        connect(f"grpc://me:{SECRET}@host")
    assert SECRET not in str(refused.value)
