"""A name stands for one thing in the whole package."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import tinkerloop

PACKAGE = Path(tinkerloop.__file__).parent
SHARED = {
    "add_arguments": "every command of cli/ has one",
    "run": "every command of cli/ has one; loop/run.py is about a run",
    "main": "the command line's, and the Cookbook's supervised.train.main",
    "data": "the package, and the Cookbook's path supervised.data",
    "loop": "loop/loop.py holds the loop itself",
    "report": "the package, and the command that writes a report",
    "rollouts": "rollouts/rollouts.py holds the rollouts themselves",
}
"""Names that two places have on purpose, and why."""


def definitions() -> dict[str, set[str]]:
    """Return every public class, function, type alias and module name with the modules that define it.

    A function or class in the module of its own name is one thing with it; a private module's names are its own.
    """
    places: dict[str, set[str]] = defaultdict(set)
    for file in sorted(PACKAGE.rglob("*.py")):
        module = file.parent if file.name == "__init__.py" else file.with_suffix("")
        if not module.name.startswith("_"):
            for name in [module.name, *defined_in(ast.parse(file.read_text()))]:
                places[name].add(str(module.relative_to(PACKAGE)))
    return {name: where for name, where in places.items() if not name.startswith("_")}


def defined_in(tree: ast.Module) -> Iterator[str]:
    """Yield what a module defines, constants (upper case, and so type variables) aside."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            yield from (name for name in names if name[0].isupper() and not name.isupper())


def test_no_public_name_stands_for_two_things():
    doubled = {name: sorted(where) for name, where in definitions().items() if len(where) > 1 and name not in SHARED}
    assert not doubled


def test_every_exception_to_the_rule_is_still_needed():
    found = definitions()
    assert [name for name in SHARED if len(found.get(name, ())) < 2] == []
