"""The public names of `tinkerloop`, and the cost of its import."""

import subprocess
import sys

import pytest

import tinkerloop


def loaded_by(statement):
    heavy = ("tinker", "torch", "transformers", "datasets")
    code = f"import sys\n{statement}\nprint(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize(
    "module",
    [
        "tinkerloop",
        "tinkerloop.data",
        "tinkerloop.renderers",
        "tinkerloop.callbacks",
        "tinkerloop.clients",
        "tinkerloop.testing",
    ],
)
def test_importing_loads_neither_torch_nor_transformers(module):
    assert loaded_by(f"import {module}") == []


def test_inspecting_a_file_with_the_built_in_tokenizer_loads_no_heavy_package(tmp_path):
    file = tmp_path / "chats.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}\n')
    statement = f"from tinkerloop.cli.main import main; main(['inspect', {str(file)!r}])"
    assert loaded_by(statement) == []


def test_importing_the_package_alone_imports_no_large_module():
    code = "import sys, tinkerloop; print(*(name for name in ('numpy', 'PIL') if name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_importing_starts_no_thread_and_touches_no_signal():
    code = (
        "import signal, threading\nbefore = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)\n"
        "import tinkerloop\n"
        "assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before\n"
        "assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_listed_name_exists_and_is_listed_in_order():
    assert all(hasattr(tinkerloop, name) for name in tinkerloop.__all__)
    assert tinkerloop.__all__ == sorted(tinkerloop.__all__)
