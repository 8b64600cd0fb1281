"""Every path that a page of the repository names exists, and the reference has every public name."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("sdk", "docs", "recipes", "tests", "benchmarks", ".ci")
HISTORY = {"CHANGELOG.md"}  # names paths that are gone
TYPES = {"Batches", "Content", "ContentPart", "MessageDelta", "Pieces", "Role"}
"""Public names that are types of others, or are in the reference of another module."""
PAGES = sorted(
    page
    for page in [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]
    if page.name not in HISTORY
)


def words(text: str) -> list[str]:
    """Return the words in backticks outside blocks of code, such as the two of `python benchmarks/loop.py`."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [word for span in re.findall(r"`([^`\n]+)`", text) for word in span.split()]


def is_path(word: str) -> bool:
    """Tell whether a word names a source file, a page, or a path in one of the repository's folders."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?(::\w+)?", word):
        return False
    return word.startswith(tuple(f"{folder}/" for folder in FOLDERS)) or word.partition("::")[0].endswith(
        (".py", ".md", ".toml")
    )


def links(text: str) -> list[str]:
    """Return the targets of links, without those that lead out of the repository or stay on the page."""
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target.partition("#")[0] for target in targets if not re.match(r"\w+:|#", target)]


def missing(page: Path) -> list[str]:
    """Return what a page names and nobody finds: links from its folder, paths from there or a folder above it."""
    text = page.read_text(encoding="utf-8")
    broken = [target for target in links(text) if not (page.parent / target).exists()]
    paths = [word.partition("::")[0] for word in words(text) if is_path(word)]
    bases = [ROOT, *(folder for folder in page.parents if folder.is_relative_to(ROOT))]
    return broken + [path for path in paths if not any((base / path).exists() for base in bases)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_on_a_page_exists(page):
    assert missing(page) == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs/reference").glob("*.md")), ids=lambda page: page.name)
def test_a_page_of_the_reference_says_how_it_is_filled(page):
    assert page.read_text(encoding="utf-8").partition("\n\n")[2].startswith("*`make docs` fills this page")


@pytest.mark.parametrize("module", ["loop", "renderers"])
def test_every_public_name_is_in_the_reference(module):
    page = (ROOT / f"docs/reference/{module}.md").read_text(encoding="utf-8")
    listed = re.findall(rf"^::: tinkerloop\.{module}\.(\w+)$", page, re.MULTILINE)
    public = importlib.import_module(f"tinkerloop.{module}").__all__
    assert sorted(listed) == sorted({*public} - TYPES)


def test_a_wrong_path_is_found(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(
        "`sdk/tinkerloop/datum.py` `recipes/base` [a](README.md#words) [b](https://example.org/c) `metrics.jsonl`\n"
        "`sdk/tinkerloop/nowhere.py` `python recipes/nowhere` [c](gone.md) `nowhere.py`\n"
        "```python\nopen('recipes/none.py')  # `recipes/none.py`\n```\n"
    )
    assert missing(page) == ["gone.md", "sdk/tinkerloop/nowhere.py", "recipes/nowhere", "nowhere.py"]
