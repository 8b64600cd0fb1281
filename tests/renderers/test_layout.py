"""Rules for the files of tinkerloop.renderers: the README lists all, and each imports only files listed below it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tinkerloop import renderers

FOLDER = Path(renderers.__file__).parent
MODULES = sorted(
    str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.py") if path.name != "__init__.py"
)  # such as "core.py" and "parsing/grammar.py"


def listed() -> list[str]:
    """Return the files and folders in the first column of the README's first table, in order."""
    table = (FOLDER / "README.md").read_text(encoding="utf-8").partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall("`([^`]+)`", row)]


def place(module: str) -> int:
    return next(i for i, name in enumerate(listed()) if module == name or module.startswith(name.rstrip("/") + "/"))


def imports(module: str) -> set[str]:
    """Return the modules of tinkerloop.renderers that a module imports, also those imported only for type checking."""
    package, names = "tinkerloop.renderers", set[str]()
    for node in ast.walk(ast.parse((FOLDER / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and f"{node.module}.".startswith(f"{package}."):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    files = {name.removeprefix(f"{package}.").replace(".", "/") + ".py" for name in names}
    return files.intersection(MODULES)


def test_the_readme_lists_every_file() -> None:
    assert all((FOLDER / name).exists() for name in listed())
    assert [module for module in MODULES if not any(module.startswith(name) for name in listed())] == []


def test_a_file_imports_only_files_below_it() -> None:
    upwards = [
        (module, imported)
        for module in MODULES
        for imported in imports(module)
        if place(imported) <= place(module)
        and not (module.startswith("families/") and imported.startswith("families/"))
    ]
    assert upwards == []
