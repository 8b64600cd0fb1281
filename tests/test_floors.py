"""Modules import only from their own floor and from those below; no two need each other at import (ARCHITECTURE.md)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import tinkerloop

PACKAGE = Path(tinkerloop.__file__).parent
BOTTOM = {"_lazy", "errors", "messages", "datum", "clients", "model_info", "tokenizers", "images"}
COLUMN = ("renderers", "data", "loop", "callbacks", "supervised", "cli")
ENGINE = ("local", "local.nn", "local.runtime", "local.client")  # "local": the files beside the three folders
CHOOSES_A_SERVICE = {"connection", "cli"}

MODULES = {
    ".".join(["tinkerloop", *file.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): file
    for file in PACKAGE.rglob("*.py")
}


def imports(node: ast.AST, *, at_import: bool) -> Iterator[str]:
    """Yield the modules of the package that a syntax tree imports; `at_import`: only those that importing it loads."""
    for child in ast.iter_child_nodes(node):
        if at_import and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (name.name for name in child.names if name.name in MODULES)
        elif isinstance(child, ast.ImportFrom) and child.module in MODULES:
            full = [f"{child.module}.{name.name}" for name in child.names]
            yield from (name if name in MODULES else child.module for name in full)
        yield from imports(child, at_import=at_import)


def dependencies(*, at_import: bool) -> dict[str, set[str]]:
    trees = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in MODULES.items()}
    return {name: set(imports(tree, at_import=at_import)) - {name} for name, tree in trees.items()}


def place(module: str) -> str:
    """Return the folder or top-level file of a module; in `local`, its folder there."""
    _, *parts = module.split(".")
    if parts[:1] == ["local"] and ".".join(parts[:2]) in ENGINE:
        return ".".join(parts[:2])
    return parts[0] if parts else ""


def may_import(importer: str, imported: str) -> bool:
    if importer == imported or imported in {*BOTTOM, ""}:  # "": the package itself, for its version
        return True
    if importer in COLUMN and imported in COLUMN:
        return COLUMN.index(imported) < COLUMN.index(importer)
    if importer in ENGINE and imported in ENGINE:
        return ENGINE.index(imported) < ENGINE.index(importer)
    if imported in ENGINE:
        return importer in CHOOSES_A_SERVICE
    return importer not in {*BOTTOM, *COLUMN[:4], *ENGINE}  # files that belong to no floor, such as plots.py


def test_no_module_imports_from_a_floor_above():
    upwards = [
        f"{importer} -> {imported}"
        for importer, needed in dependencies(at_import=False).items()
        if importer not in ("tinkerloop", "tinkerloop.local")  # these two list the public names
        for imported in needed
        if not may_import(place(importer), place(imported))
    ]
    assert upwards == []


def test_no_two_modules_need_each_other_at_import():
    graph, finished = dependencies(at_import=True), set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in finished:
            for imported in sorted(graph[module]):
                visit(imported, (*path, module))
            finished.add(module)

    for module in sorted(graph):
        visit(module, ())
