"""The code in the documentation runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def code_blocks(file):
    return re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(), re.S)


def test_the_loop_of_your_own_in_the_readme_runs():
    (code,) = code_blocks("README.md")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "step 15  loss" in done.stdout
    assert "'perplexity'" in done.stdout


def test_the_callback_on_the_loops_page_does_what_it_says():
    from tinkerloop import Log, Stop

    namespace = {}
    exec(code_blocks("sdk/tinkerloop/loop/README.md")[0], namespace)
    callback = namespace["StopOnSpike"]()
    step = type("Result", (), {"step": 1, "loss": 1.0})
    assert callback.on_step(step) == Log({"worst_loss": 1.0})
    step.loss = 9.0
    assert callback.on_step(step) == Stop("loss 9.00 at step 1")


def test_the_engines_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(code_blocks("sdk/tinkerloop/local/README.md")[0], {})
    assert capsys.readouterr().out.startswith("[None, -")


def test_the_page_of_rollouts_trains_and_logs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(code_blocks("sdk/tinkerloop/rollouts/README.md")[0], {})
    assert "'loss'" in capsys.readouterr().out
    assert (tmp_path / "runs/letters/rollouts.jsonl").exists()


def test_the_page_for_your_own_callback_runs(capsys):
    namespace = {}
    for code in code_blocks("sdk/tinkerloop/loop/your_own_callback.md"):
        exec(code, namespace)
    namespace["test_the_run_ends_after_two_steps_without_a_lower_loss"]()
    assert "on_step" in capsys.readouterr().out
