"""The check of a release names whatever a wheel or an sdist lacks, and whatever does not belong there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location("check_dist", ROOT / ".ci/check_dist.py")
check_dist = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check_dist)

INFO = "tinkerloop_sdk-0.dist-info/"
WHEEL = {str(path.relative_to(ROOT / "sdk")) for path in (ROOT / "sdk/tinkerloop").rglob("*.py")} | {
    "tinkerloop/py.typed",
    f"{INFO}METADATA",
    f"{INFO}licenses/LICENSE",
}


def test_a_whole_wheel_has_no_problem():
    assert check_dist.problems_of_wheel(WHEEL) == []


def test_what_a_wheel_lacks_or_has_too_much_is_named():
    missing = WHEEL - {"tinkerloop/py.typed", f"{INFO}licenses/LICENSE"}
    assert check_dist.problems_of_wheel(missing | {"tests/test_datum.py"}) == [
        "the wheel lacks tinkerloop/py.typed",
        "the wheel contains the folder tests",
        "the wheel lacks the licence",
    ]


def test_a_link_to_a_file_in_the_description_is_named():
    assert check_dist.problems_of_description("[a](https://example.org) `ARCHITECTURE.md` f(x)") == []
    assert check_dist.problems_of_description("[a](docs/a.md)") == ["the description links to the file docs/a.md"]


def test_every_folder_of_an_sdist_is_listed():
    names = {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "sdk/tinkerloop/py.typed"}
    assert check_dist.problems_of_sdist(names) == []
    assert check_dist.problems_of_sdist(names - {"LICENSE"} | {"runs/a/config.json"}) == [
        "the sdist lacks LICENSE",
        "the sdist contains the folder runs",
    ]
