"""The command line: `tinkerloop COMMAND ...`.

A command is a module that defines `add_arguments(parser)` and `run(arguments) -> int`. The first line of the module's
docstring is the help text of the command. To add a command, add its module to `COMMANDS`. The module of a command is
imported only when the command is used; its help text is read from its file.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.resources
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from tinkerloop._lazy import tinker
from tinkerloop._version import __version__
from tinkerloop.errors import TinkerloopError
from tinkerloop.redaction import redacted
from tinkerloop.terminal import printable

COMMANDS = {
    "chat": "tinkerloop.cli.chat",
    "estimate": "tinkerloop.cli.estimate",
    "export": "tinkerloop.cli.export",
    "inspect": "tinkerloop.cli.inspect",
    "report": "tinkerloop.cli.report",
    "rollouts": "tinkerloop.cli.show_rollouts",
    "run": "tinkerloop.cli.run_script",
    "runs": "tinkerloop.cli.runs",
    "serve": "tinkerloop.cli.serve",
}
"""Mapping from the name of a command to its module."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of the command line.

    Args:
        argv: the command-line arguments without the program name; None uses `sys.argv`.

    Returns:
        The exit status: that of the command, or 2 after an error such as a missing file.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv[0] if argv else "--help"
    parser = argparse.ArgumentParser(prog="tinkerloop", description="Fine-tune language models with Tinker primitives.")
    parser.add_argument(
        "--version", action="version", version=f"tinkerloop {__version__}", help="Print the version and exit."
    )
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    module = None
    for command, path in COMMANDS.items():
        if name != command:
            commands.add_parser(command, help=_first_line(path) if name in ("-h", "--help") else None)
            continue
        module = importlib.import_module(path)
        module.add_arguments(commands.add_parser(command, description=module.__doc__, formatter_class=_HelpFormatter))
    arguments = parser.parse_args(argv or ["--help"])
    assert module is not None, "argparse should have rejected the unknown command"
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _shown_by(arguments.command, warnings.showwarning)
            return module.run(arguments)
    except Exception as error:
        if not isinstance(error, TinkerloopError | OSError) and not _is_of_tinker(error):
            raise
        print(f"tinkerloop {arguments.command}: {printable(redacted(str(error)))}", file=sys.stderr)
        return 2


def _is_of_tinker(error: Exception) -> bool:
    """Return true if tinker has raised the error. Tinker, whose import takes seconds, is not imported for that."""
    return "tinker" in sys.modules and isinstance(error, tinker.TinkerError)


def _shown_by(command: str, others: Callable[..., None]) -> Callable[..., None]:
    """Return a function that prints a `UserWarning` as one line, without its place in the code of the package.

    `others` prints all other warnings.
    """

    def show(message: Warning | str, category: type[Warning], *args: Any, **options: Any) -> None:
        if category is UserWarning:
            print(f"tinkerloop {command}: warning: {printable(redacted(str(message)))}", file=sys.stderr)
        else:
            others(message, category, *args, **options)

    return show


def _first_line(module: str) -> str:
    """Return the first line of the docstring of a module, without importing it."""
    path = importlib.resources.files(module.rpartition(".")[0]) / f"{module.rpartition('.')[2]}.py"
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


class _HelpFormatter(argparse.HelpFormatter):
    """Formatter that wraps each paragraph of a description for itself, and leaves indented ones as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip("\n").split("\n\n")
        return "\n\n".join(
            part if part.startswith(" ") else super(_HelpFormatter, self)._fill_text(part, width, indent)
            for part in paragraphs
        )
