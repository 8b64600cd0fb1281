"""Try the installed package with one extra: `python check_installed.py EXTRA`, with EXTRA "none" for no extra."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import tinkerloop
from tinkerloop.errors import MissingPackageError

extra = sys.argv[1]
assert importlib.util.find_spec("tests") is None, "the wheel installed the tests"
shown = subprocess.run([Path(sys.executable).with_name("tinkerloop"), "--help"], capture_output=True, text=True)
assert shown.returncode == 0, shown.stderr
if importlib.util.find_spec("torch") is None or importlib.util.find_spec("peft") is None:
    try:
        tinkerloop.connect("local")
    except MissingPackageError as error:
        if "tinkerloop-sdk[local]" not in str(error):
            raise
    else:
        sys.exit("connect('local') must fail without the extra `local`")
else:
    client = tinkerloop.connect("local").create_lora_training_client(base_model="tiny", rank=4)
    assert client.get_tokenizer().encode("A")
if extra == "serve":
    from tinkerloop.server.running import ServerOptions, background_server

    with background_server(ServerOptions({"tiny": "tiny"})) as url:
        client = tinkerloop.connect(url).create_lora_training_client(base_model="tiny", rank=4)
        assert client.model_id
if extra == "testing":
    from tinkerloop.callbacks import StopOnNonFinite
    from tinkerloop.testing import RENDERER_CHECKS, check_callback

    check_callback(StopOnNonFinite)
    assert RENDERER_CHECKS
print(f"{extra}: tinkerloop {tinkerloop.__version__} works")
