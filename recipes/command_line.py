"""The command line of the recipes. This is not a recipe.

The options are the fields of the recipe's configuration, read by chz. With `--help`, chz ends a program with the status
of a failure; here it is 0.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import chz
from chz.blueprint import EntrypointHelpException, exit_on_entrypoint_error, get_nested_target

T = TypeVar("T")


def run_from_command_line(main: Callable[[T], object], blueprint: chz.Blueprint[T] | None = None) -> None:
    """Call `main` with the configuration from the command line.

    Args:
        main: the recipe; the annotation of its parameter is the class of its configuration.
        blueprint: values of the configuration that replace the defaults of the class.

    `--help` prints all options to stdout and ends with the status 0. A wrong option ends with a message and status 1.
    """
    main(_read(blueprint or chz.Blueprint(get_nested_target(main))))


@exit_on_entrypoint_error
def _read(blueprint: chz.Blueprint[T]) -> T:
    try:
        return blueprint.make_from_argv(sys.argv[1:], allow_hyphens=True)
    except EntrypointHelpException as options:
        print(str(options).rstrip())
        sys.exit(0)
