"""Check the contents of the wheel and the sdist in a folder: `python .ci/check_dist.py dist`. Needs no network."""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SDIST = {".ci", "benchmarks", "docs", "recipes", "sdk", "tests"}
"""The folders of the repository that the sdist contains."""


def problems_of_wheel(names: set[str]) -> list[str]:
    """Return what is wrong with the paths in a wheel: each module and `py.typed`, the licence, and nothing else."""
    package = {str(p.relative_to(ROOT / "sdk")) for p in (ROOT / "sdk/tinkerloop").rglob("*.py")} | {
        "tinkerloop/py.typed"
    }
    info = {name.split("/")[0] for name in names if name.split("/")[0].endswith(".dist-info")}
    problems = [f"the wheel lacks {name}" for name in sorted(package - names)]
    problems += [
        f"the wheel contains the folder {top}"
        for top in sorted({n.split("/")[0] for n in names} - info)
        if top != "tinkerloop"
    ]
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        problems.append("the wheel lacks the licence")
    return problems


def problems_of_description(metadata: str) -> list[str]:
    """Return what is wrong with the description on a package index: links to files, which lead nowhere there."""
    links = re.findall(r"\]\(((?!https?:)[^)]+)\)", metadata)
    return [f"the description links to the file {link}" for link in links]


def problems_of_sdist(names: set[str]) -> list[str]:
    """Return what is wrong with the paths in an sdist, given without their first folder."""
    wanted = {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "sdk/tinkerloop/py.typed"}
    problems = [f"the sdist lacks {name}" for name in sorted(wanted - names)]
    folders = {name.split("/")[0] for name in names if "/" in name}
    return problems + [f"the sdist contains the folder {folder}" for folder in sorted(folders - SDIST)]


def main(folder: Path) -> None:
    """Print each problem and exit with 1 if there is one."""
    (wheel,) = folder.glob("tinkerloop_sdk-*.whl")
    (sdist,) = folder.glob("tinkerloop_sdk-*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        problems = problems_of_wheel(names)
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        problems += problems_of_description(archive.read(metadata).decode())
    with tarfile.open(sdist) as archive:
        problems += problems_of_sdist({m.name.split("/", 1)[1] for m in archive if m.isfile()})
    for problem in problems:
        print(problem)
    print(f"{wheel.name}, {sdist.name}: {'wrong' if problems else 'as listed'}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
