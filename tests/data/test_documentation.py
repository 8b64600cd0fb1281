"""The examples in the documentation of data and of the supervised layer print what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import tinkerloop

PACKAGE = Path(tinkerloop.__file__).parent


@pytest.mark.parametrize("readme", ["data/README.md", "supervised/README.md"])
def test_the_examples_of_a_readme(readme: str) -> None:
    failed, tried = doctest.testfile(str(PACKAGE / readme), module_relative=False)
    assert (failed, tried > 5) == (0, True)


@pytest.mark.parametrize(
    "module",
    [
        "message_checks",
        "data.adapters",
        "data.batches",
        "data.content",
        "data.datums",
        "data.file_readers",
        "data.permutation",
        "data.row_checks",
        "data.split",
    ],
)
def test_the_examples_of_a_module(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"tinkerloop.{module}"))
    assert (failed, tried > 0) == (0, True)


@pytest.mark.parametrize("folder", ["data", "supervised"])
def test_a_readme_names_every_file(folder: str) -> None:
    readme = (PACKAGE / folder / "README.md").read_text(encoding="utf-8")
    files = {path.name for path in (PACKAGE / folder).glob("*.py")} - {"__init__.py"}
    assert {name for name in files if f"| `{name}` |" not in readme} == set()
