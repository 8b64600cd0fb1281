"""The device of an engine: what was given, what is there, and what to do."""

import pytest
import torch

from tinkerloop import connect
from tinkerloop.cli.main import main
from tinkerloop.errors import TinkerloopError
from tinkerloop.local.runtime.device import usable_device


def test_without_a_name_it_is_the_gpu_if_there_is_one():
    assert usable_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert usable_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nonsense", "device type at start of device string: nonsense"),
        (f"cuda:{max(torch.cuda.device_count(), 1)}", "built without CUDA|finds no GPU|the last is cuda:"),
    ],
)
def test_a_device_that_is_not_there_is_named_with_what_is_there(name, problem, tmp_path):
    with pytest.raises(TinkerloopError, match=f"the device '{name}' cannot be used: .*({problem}).* Choose \"cpu\""):
        connect("local", root=tmp_path, device=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("command", [["serve", "--model", "tiny", "--port", "0"], ["run"]])
def test_a_server_says_that_there_is_no_gpu(command, tmp_path, capsys):
    script = [__file__] if command == ["run"] else []
    assert main([*command, "--root", str(tmp_path), "--device", "cuda", *script]) == 2
    assert capsys.readouterr().err.startswith(f"tinkerloop {command[0]}: the device 'cuda' cannot be used: ")
