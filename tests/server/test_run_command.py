"""The command `tinkerloop run`: an unchanged script trains on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tinkerloop.cli.run_script import run_command, run_with_retries, script_environment
from tinkerloop.server.base_models import write_built_in_tokenizer
from tinkerloop.tokenizers import get_tokenizer

SCRIPT = """
import os, sys
import tinker

service = tinker.ServiceClient()
client = service.create_lora_training_client(base_model="Org/Model-1B", rank=4).result()
tokenizer = client.get_tokenizer()
tokens = tokenizer.encode(sys.argv[1])
datum = tinker.Datum(
    model_input=tinker.ModelInput.from_ints(tokens[:-1]),
    loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)},
)
client.forward_backward([datum], "cross_entropy").result()
client.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
sampler = client.save_weights_and_get_sampling_client().result()
print(tokenizer.decode(tokens), sampler.get_base_model(), sampler.get_tokenizer().decode(tokens))
print(client.save_state("end").result().path)
service.close("success").result()
sys.exit(7)
"""


def write_model(folder: Path) -> None:
    """Write the built-in model to a folder, as transformers does."""
    from tinkerloop.local.nn.tiny_model import tiny_model

    tiny_model().save_pretrained(folder)
    write_built_in_tokenizer(folder)


@pytest.mark.slow
def test_an_unchanged_script_trains_with_a_hub_name_that_stands_for_a_folder(tmp_path):
    write_model(tmp_path / "model")
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "tinkerloop.cli", "run", "--root", str(tmp_path / "root")]
    command += ["--model", f"Org/Model-1B={tmp_path / 'model'}", str(tmp_path / "script.py"), "--a text-"]
    environment = {**os.environ, "TINKER_API_KEY": "tml-the-key-of-the-hosted-service", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 7, done.stderr
    first, path = done.stdout.splitlines()
    assert first == "--a text- Org/Model-1B --a text-"
    assert (tmp_path / "root" / path.removeprefix("tinker://").replace(":", "_") / "checkpoint.json").exists()
    assert "uses the embedded engine at http://127.0.0.1:" in done.stderr.splitlines()[0]


def in_script(code: str, **folders: str) -> str:
    environment = {**os.environ, **script_environment("http://127.0.0.1:1", folders)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_script_has_the_url_and_a_key_that_is_no_secret(monkeypatch):
    monkeypatch.setenv("TINKER_API_KEY", "tml-secret")
    code = "import os; print(os.environ['TINKER_BASE_URL'], os.environ['TINKER_API_KEY'])"
    assert in_script(code) == "http://127.0.0.1:1 tml-local"


@pytest.mark.parametrize("end", ["raise RuntimeError('out of luck')", "raise SystemExit(1)"])
def test_a_run_is_resumed_by_the_command_that_started_the_script(end, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.orig_argv", ["tinkerloop", "run", "--root", "my root", "train.py", "--api-key", "s3cr3t"])
    code = f"from tinkerloop.loop import Run\nwith Run({str(tmp_path)!r}): {end}"
    environment = {**os.environ, **script_environment("http://127.0.0.1:1", {})}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=500)
    assert "anew, by: tinkerloop run --root 'my root' train.py --api-key '***'\n" in done.stderr
    started = json.loads((tmp_path / "environment.json").read_text())
    assert started["command"] == ["tinkerloop", "run", "--root", "my root", "train.py", "--api-key", "***"]


def test_processes_of_the_script_find_the_tokenizer_too(tmp_path):
    folder = str(write_built_in_tokenizer(tmp_path / "tokenizer"))
    load = "from transformers import AutoTokenizer; print(len(AutoTokenizer.from_pretrained('Org/Model', fast=True)))"
    code = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {load!r}]))"
    assert in_script(code, **{"Org/Model": folder}) == str(len(get_tokenizer("tiny")))


def test_a_sitecustomize_of_the_user_still_runs(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.customised = True")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert in_script("print(customised)") == "True"


@pytest.mark.parametrize("code, status", [("raise SystemExit(3)", 3), ("1 / 0", 1)])
def test_the_exit_status_is_that_of_the_script(code, status, capfd):
    assert run_command([sys.executable, "-c", code], os.environ) == (status, False)


def test_a_script_that_a_signal_ends_has_its_status():
    assert run_command([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], os.environ)[0] == 128 + 9


@pytest.mark.skipif(shutil.which("sh") is None, reason="the test sends a signal with sh")
def test_a_signal_is_passed_on_to_the_script():
    code = "import signal, os, time\nsignal.signal(signal.SIGTERM, lambda *_: os._exit(5))\n"
    code += f"os.kill({os.getpid()}, signal.SIGTERM)\ntime.sleep(600)"
    assert run_with_retries([sys.executable, "-c", code], os.environ, retry=9) == 5
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


IN_TERMINAL = """
import os, signal, sys
from tinkerloop.cli.run_script import run_command

terminal = os.open(sys.argv[1], os.O_RDWR)  # the terminal of this session, in whose foreground this process is
if sys.argv[2] == "background":
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    if os.fork():
        sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
    os.setpgid(0, 0)
os.dup2(terminal, 0)
if sys.argv[3] == "from elsewhere":
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
count = "import signal, sys, time; n = []; signal.signal(signal.SIGINT, lambda *_: n.append(1)); "
count += "print('READY', os.getppid(), flush=True); time.sleep(1); sys.exit(len(n))"
sys.exit(run_command([sys.executable, "-c", "import os; " + count], os.environ)[0])
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
@pytest.mark.parametrize("place", ["foreground", "background"])
@pytest.mark.parametrize("input_is", ["the terminal", "from elsewhere"])
def test_an_interrupt_reaches_the_script_once(place, input_is):
    import pty

    master, slave = pty.openpty()
    command = [sys.executable, "-c", IN_TERMINAL, os.ttyname(slave), place, input_is]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        runner = int(process.stdout.readline().split()[1])
        if place == "foreground":
            os.write(master, b"\x03")  # Ctrl-C
        else:
            os.kill(runner, signal.SIGINT)
    os.close(master)
    os.close(slave)
    assert process.returncode == 1


@pytest.mark.parametrize("retry, status", [(1, 1), (2, 0), (9, 0)])
def test_a_script_that_failed_is_started_again_at_most_so_often(retry, status, tmp_path):
    code = f"starts = {str(tmp_path / 'starts')!r}; open(starts, 'a').write('x'); exit(len(open(starts).read()) < 3)"
    assert run_with_retries([sys.executable, "-c", code], os.environ, retry) == status
    assert len((tmp_path / "starts").read_text()) == min(retry + 1, 3)
