"""The command `tinkerloop serve`: its options, its token, its log, and how it stops."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import tinker

from tests.server.conftest import RawClient, forked_server
from tinkerloop.cli.engine_options import read_models
from tinkerloop.cli.main import main
from tinkerloop.errors import TinkerloopError
from tinkerloop.loopback import check_token


@contextmanager
def serving(*options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command in a process of its own. The value is the process and the server's URL."""
    command = [sys.executable, "-m", "tinkerloop.cli", "serve", "--port", "0", "--model", "tiny", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().split()[-1]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_sigterm_ends_the_server_after_the_queued_save(tmp_path):
    with forked_server(tmp_path / "root") as (process, url), RawClient(url) as raw:
        model = raw.model()
        for number in range(1, 30):
            raw.step(model, number)
        raw.ask("save_weights", model_id=model, seq_id=30, path="last")
        process.terminate()
        assert "queued requests are executed first" in process.finish()
        assert (tmp_path / "root" / model.replace(":", "_") / "weights/last/checkpoint.json").exists()


@pytest.mark.slow
def test_a_token_is_needed_and_never_logged(tmp_path):
    token = "tml-0123456789-secret"
    with serving("--root", str(tmp_path), TINKERLOOP_SERVER_TOKEN=token) as (process, url):
        with (
            tinker.ServiceClient(base_url=url, api_key="tml-another-key") as stranger,
            pytest.raises(tinker.AuthenticationError, match="not the token of this server"),
        ):
            stranger.create_lora_training_client("tiny").result()
        with tinker.ServiceClient(base_url=url, api_key=token) as service:
            assert service.create_lora_training_client("tiny", rank=4).result().get_info().lora_rank == 4
        httpx.get(f"{url}/api/v1/checkpoints?api_key={token}", headers={"X-API-Key": token})
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=300)
    assert "POST /api/v1/create_model 200" in log
    assert "GET /api/v1/checkpoints?api_key=*** 200" in log
    assert token not in log


def test_other_machines_need_a_token():
    check_token("127.0.0.1", None)
    check_token("::1", None)
    check_token("0.0.0.0", "tml-0123456789")
    for host, token in (("0.0.0.0", None), ("example.org", None), ("127.0.0.1", "0123456789"), ("0.0.0.0", "tml-1")):
        with pytest.raises(TinkerloopError, match="tml-"):
            check_token(host, token)


def test_models_are_given_by_name_and_folder(tmp_path):
    (tmp_path / "config.json").touch()
    assert read_models(["tiny", f"Org/Model={tmp_path}"]) == {"tiny": "tiny", "Org/Model": str(tmp_path)}
    for wrong in (["huge"], ["=x"], ["name="], [f"name={tmp_path / 'none'}"], ["tiny", f"tiny={tmp_path}"]):
        with pytest.raises(TinkerloopError):
            read_models(wrong)


def test_the_command_names_what_is_wrong(capsys, tmp_path):
    assert main(["serve"]) == 2
    assert main(["serve", "--model", "tiny", "--host", "0.0.0.0", "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "pass --model" in error
    assert "a token is needed" in error


REFUSED = [
    (["serve"], "pass --model"),
    (["serve", "--model", "none"], "not of the form NAME=FOLDER"),
    (
        ["serve", "--model", "tiny", "--device", "gpu"],
        "expected a torch device, such as cpu, cuda or cuda:1, got 'gpu'",
    ),
    (["serve", "--model", "tiny", "--dtype", "int8"], "expected one of bfloat16, "),
    (["serve", "--model", "tiny", "--max-models", "0"], "expected a whole number of at least 1, got '0'"),
    (["serve", "--model", "tiny", "--silent-seconds", "9"], "expected a whole number of at least 30, got '9'"),
    (["serve", "--model", "tiny", "--host", "0.0.0.0"], "a token is needed"),
    (["serve", "--model", "tiny", "--token", "short"], "the token must begin with 'tml-'"),
    (["run", "none.py"], "there is no script 'none.py' in "),
    (["run", "json.tool"], "there is no script 'json.tool' in .*; for a module, pass -m before its name"),
    (["run", "-m", "no_such_package.module"], "there is no module 'no_such_package' in "),
    (["run", "--retry", "-1", __file__], "expected a whole number of at least 0, got '-1'"),
    (["run", "--model", "name=none", __file__], "none has no config.json"),
    (["chat", "tiny", "--max-tokens", "0"], "expected a whole number of at least 1, got '0'"),
    (["chat", "tiny", "--temperature", "nan"], "expected a number of at least 0, got 'nan'"),
]


@pytest.mark.parametrize(("command", "error"), REFUSED, ids=lambda part: " ".join(part) if type(part) is list else "")
def test_what_is_wrong_is_refused_before_torch_is_imported(command, error):
    code = """
import sys
from tinkerloop.cli.main import main
try:
    status = main(sys.argv[1:])
except SystemExit as ended:
    status = ended.code
assert "torch" not in sys.modules
sys.exit(status)
"""
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert re.search(error, done.stderr)


@pytest.mark.parametrize("written", ["99999", "-1", "http"])
def test_what_is_no_port_is_refused_before_anything_is_loaded(written, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--model", "tiny", f"--port={written}"])
    assert ended.value.code == 2
    assert f"expected a port from 0 to 65535, got '{written}'" in capsys.readouterr().err
