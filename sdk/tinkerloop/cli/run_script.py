"""Run a Tinker script on this machine, unchanged: with a server of the embedded engine for the life of the script.

    tinkerloop run --model Qwen/Qwen3-0.6B=models/qwen script.py --its --options
    tinkerloop run --model Qwen/Qwen3-0.6B=models/qwen -m package.module --its --options

The script runs in a process of its own, with TINKER_BASE_URL and TINKER_API_KEY set. Its tokenizers are loaded from the
folders of --model. The exit status is that of the script. A script that resumes by itself when it is started again can
be started again after a failure, with --retry.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path

from tinkerloop.cli.engine_options import add_engine_arguments, read_models
from tinkerloop.cli.hub_names import environment_of
from tinkerloop.cli.number_options import at_least
from tinkerloop.errors import TinkerloopError
from tinkerloop.loop.start_environment import COMMAND_VARIABLE
from tinkerloop.loopback import LOCAL_KEY
from tinkerloop.redaction import redacted_arguments
from tinkerloop.terminal import printable
from tinkerloop.tokenizers.loading import BUILT_IN

_SITE = Path(__file__).parent / "script_site"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    parser.add_argument(
        "-m", dest="as_module", action="store_true", help="SCRIPT is the name of a module, as in `python -m`."
    )
    parser.add_argument(
        "--retry",
        type=at_least(0),
        default=0,
        metavar="N",
        help="Start the script again at most N times after it failed or was killed, so that it resumes (default: 0). "
        "It is not started again after Ctrl-C or SIGTERM.",
    )
    parser.add_argument("script", metavar="SCRIPT", help="The script, or with -m the module.")
    parser.add_argument("script_arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="The script's arguments.")


def run(arguments: argparse.Namespace) -> int:
    models = read_models([*arguments.model, *(name for name in BUILT_IN if name not in arguments.model)])
    _check_script(arguments.script, arguments.as_module)
    # What is wrong is refused before these imports, which take seconds.
    from tinkerloop.local.runtime.checkpoint_store import default_root
    from tinkerloop.server.base_models import write_built_in_tokenizer
    from tinkerloop.server.running import ServerOptions, background_server

    options = ServerOptions(models, root=arguments.root, device=arguments.device, dtype=arguments.dtype)
    command = [*(["-m"] if arguments.as_module else []), arguments.script, *arguments.script_arguments]
    with tempfile.TemporaryDirectory() as folder, background_server(options) as url:
        built_in = str(write_built_in_tokenizer(Path(folder)))
        folders = {name: built_in if place in BUILT_IN else place for name, place in models.items()}
        print(
            f"tinkerloop run: {printable(shlex.join(redacted_arguments(command)))} uses the embedded engine at {url} "
            f"(models: {', '.join(models)}; checkpoints: {arguments.root or default_root()})",
            file=sys.stderr,
            flush=True,
        )
        environment = {**os.environ, **script_environment(url, folders)}
        return run_with_retries([sys.executable, *command], environment, arguments.retry)


def _check_script(script: str, as_module: bool) -> None:
    """Check that the script is there, without importing anything.

    Raises:
        TinkerloopError: the file or folder does not exist, or Python finds no module with the name.
    """
    here = os.getcwd()
    if as_module and not _has_module(script):
        raise TinkerloopError(
            f"-m {script}: there is no module {script.partition('.')[0]!r} in {here} or on the path of "
            f"{sys.executable}; start the command in the folder of the module, or install it"
        )
    if not as_module and script != "-" and not os.path.exists(script):  # "-" is the standard input
        where = "" if os.path.isabs(script) else f" in {here}"
        is_name = all(part.isidentifier() for part in script.split(".")) and not script.endswith(".py")
        hint = "; for a module, pass -m before its name" * (is_name and _has_module(script))
        raise TinkerloopError(f"there is no script {script!r}{where}{hint}")


def _has_module(name: str) -> bool:
    """Return true if `python -m` finds the module, or the package that contains it."""
    first = name.partition(".")[0]
    return first in sys.builtin_module_names or PathFinder.find_spec(first, [os.getcwd(), *sys.path]) is not None


def script_environment(url: str, folders: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables with which a script uses the server at `url`.

    A key of the hosted service that the user has is never sent to the server.
    `folders` maps the names of models to the folders with their tokenizers.
    """
    path = os.pathsep.join(filter(None, [str(_SITE), os.environ.get("PYTHONPATH", "")]))
    return {
        "TINKER_BASE_URL": url,
        "TINKER_API_KEY": LOCAL_KEY,
        "PYTHONPATH": path,
        COMMAND_VARIABLE: json.dumps(sys.orig_argv),  # the script is resumed by this command, not by its own
        **environment_of(folders),
    }


def run_with_retries(command: Sequence[str], environment: Mapping[str, str], retry: int) -> int:
    """Run a command until it succeeds or a signal is passed on to it, at most `retry` times more. Return its status."""
    for attempt in range(1, retry + 1):
        status, was_stopped = run_command(command, environment)
        if status == 0 or was_stopped:
            return status
        print(f"tinkerloop run: exit status {status}; retry {attempt} of {retry}", file=sys.stderr, flush=True)
        time.sleep(1.0)
    return run_command(command, environment)[0]


def run_command(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, bool]:
    """Run a command, and pass signals on to it.

    Returns:
        The exit status, 128 + n if signal n ended the command; and whether this process got a signal to stop.
    """
    with subprocess.Popen(command, env=dict(environment)) as process, _passing_signals_to(process) as signals:
        status = process.wait()
    return status if status >= 0 else 128 - status, bool(signals)


@contextmanager
def _passing_signals_to(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Send the signals that this process gets to `process`. Ctrl-C in a terminal reaches both without our help.

    So a SIGINT is passed on only while this process is not in the foreground of its terminal.
    The value is the list of the signals so far.
    """
    signals: list[int] = []

    def send(number: int, frame: object) -> None:
        signals.append(number)
        if number != signal.SIGINT or not _is_in_foreground():
            process.send_signal(number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, send) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_in_foreground() -> bool:
    """Return true if Ctrl-C in the terminal reaches this process and its children, wherever their input is from."""
    if os.name == "nt":
        return True  # a SIGINT comes from the console, which sends it to all its processes
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False  # no terminal
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False  # the terminal is closed
    finally:
        os.close(terminal)
