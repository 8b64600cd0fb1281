"""What is redacted, and what is not, because it only looks like a secret."""

import doctest
import json

import pytest

import tinkerloop.redaction
from tinkerloop import connect
from tinkerloop.errors import TinkerloopError
from tinkerloop.loop import Run, Summary
from tinkerloop.redaction import is_secret, redacted, redacted_arguments

SECRET = "s3cr3t-VALUE"


class Options:
    """An object that is written by its text."""

    def __str__(self):
        return f"Options(api_key='{SECRET}')"


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
        "api_keys",
        "access_tokens",
        "passwords",
        "OPENAI_API_KEY_2",
        "password1",
        "hf_token_2",
        "x-api-key",
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
        "tokens/total",
        "tokens/trained",
        "token_budget",
        "token_0",
        "keys",
        "2",
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
        f"https://b.s3.amazonaws.com/x?X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}",
        f"https://storage.googleapis.com/x?X-Goog-Signature={SECRET}",
        f"https://a.cloudfront.net/x?Signature={SECRET}",
        repr(ValueError(f"it's {{'api_key': '{SECRET}'}}; expected \"x\"")),
        repr(repr(ValueError(f"it's {{'api_key': '{SECRET}'}}; expected \"x\""))),
        repr(f"a\npassword={SECRET}"),
        f"train.py --token {SECRET}",
        f"train.py --api-key '{SECRET} {SECRET}' --steps 3",
        f"x-api-key: {SECRET}",
        f"Authorization: {SECRET}",
        f"Authorization: Token {SECRET}",
        f"api_key = '{SECRET}'",
        f"api_key: {SECRET}",
        f"token: abcdefghijklmnop{SECRET}",
        f"OPENAI_API_KEY_2={SECRET}",
        f"password1={SECRET}",
        f"{{'api_keys': ['{SECRET}', '{SECRET}']}}",
        f"Config(api_key=SecretStr('{SECRET}'))",
        f"Config(token=b'{SECRET}')",
        f"args: api_key='{SECRET}",  # cut by a limit
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
        "unknown token: '<|im_end|>'",
        "the newest token: 151643",
        "pass --token tml-..., or set TINKERLOOP_SERVER_TOKEN to it",
        "--token begins with tml-",
        "no credentials: sign in",
        "max_tokens: 9, tokens/total: 10, token_budget = 11",
        "tokens=[1, 2]",
        "a.password == b.password",
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
        ["--header", f"x-api-key: {SECRET}"],
    ],
)
def test_a_secret_in_the_arguments_is_replaced_and_the_others_stay(arguments):
    shown = redacted_arguments(["train.py", *arguments, "steps=3", "--max-tokens", "9"])
    assert SECRET not in " ".join(shown)
    assert [shown[0], *shown[-3:]] == ["train.py", "steps=3", "--max-tokens", "9"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (["--api-key", SECRET, "--steps", 3], ["--api-key", "***", "--steps", 3]),
        (("--token", 123), ["--token", "***"]),
        ({"api_keys": [SECRET], "max_tokens": [1]}, {"api_keys": "***", "max_tokens": [1]}),
        (
            {f"http://me:{SECRET}@a": 1, f"http://me:{SECRET}2@a": 2},
            {"http://***@a": 1, "http://***@a (2)": 2},
        ),
    ],
)
def test_a_secret_in_a_value_is_replaced(value, shown):
    assert redacted(value) == shown


def test_a_long_text_takes_no_long_time():
    text = "ab" * 100_000  # twice the work for each further letter would never end
    assert redacted(text) == text


def test_no_file_of_a_run_folder_holds_a_secret(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--api-key", SECRET, f"api_key={SECRET}", f"http://me:{SECRET}@host"])
    config = {"service": f"http://me:{SECRET}@host", "nested": [{"api_key": SECRET}], "repr": f"C(token='{SECRET}')"}
    with Run(tmp_path, config) as run:
        run.describe(options=Options())
    with pytest.raises(OSError, match="refused"), Run(tmp_path, config):
        raise OSError(f"refused: http://me:{SECRET}@host, {{'api_key': '{SECRET}'}}, it's \"x\"")
    written = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert {"config.json", "environment.json", "starts.jsonl", "summary.json", "facts.json"} <= written.keys()
    assert [name for name, text in written.items() if SECRET in text] == []


def test_the_reason_of_an_end_holds_no_secret(tmp_path, capsys):
    with Run(tmp_path) as run:
        run.finish(Summary(1, f"lost http://me:{SECRET}@host", {}, None))
    assert SECRET not in (tmp_path / "summary.json").read_text() + capsys.readouterr().err


def test_connect_prints_and_raises_no_password(monkeypatch, capsys):
    monkeypatch.setattr("tinkerloop.bridges.UrlServiceClient", lambda url: url)
    assert connect(f"http://me:{SECRET}@host") == f"http://me:{SECRET}@host"
    assert capsys.readouterr().err == "service: Tinker at http://***@host\n"
    with pytest.raises(TinkerloopError) as refused:
        connect(f"grpc://me:{SECRET}@host")
    assert SECRET not in str(refused.value)
