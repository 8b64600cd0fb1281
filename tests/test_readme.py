"""The code in the documentation runs as it stands.

The blocks of a page run in order, in one namespace and an empty folder that has `recipes/`: Python blocks, and the
commands of console blocks. Commands that need a network or a terminal, or take long, are in blocks of the kind `sh`.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tinkerloop import Log, Stop
from tinkerloop.cli.main import main
from tinkerloop.errors import MissingPackageError

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ELSEWHERE = {"sdk/tinkerloop/renderers/your_own_format.md": "tests/renderers/test_kit.py runs it"}
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "sdk").rglob("*.md")]
    if BLOCK.search(page.read_text(encoding="utf-8"))
)
PRINTS = {
    "README.md": ["step 15  loss", "'perplexity'"],
    "docs/how_to/evaluate.md": ["'test/nll'", "'test/exact'"],
    "docs/how_to/export.md": ["adapter written to adapter", "merged model written to merged", "\n8\n"],
    "docs/how_to/reinforcement_learning.md": ["'policy/kl_k3'", "'rollouts/reward"],
    "docs/how_to/resume.md": ["4 6\n"],
    "docs/how_to/servers.md": ["steps reached"],
    "docs/how_to/sweep.md": ["[(0.001, ", "learning_rate", "0.00047"],
    "docs/how_to/vision.md": ["'loss'"],
    "docs/tutorial/first_run.md": ["16 rows, all used", "report.html", "⟨|im_start|⟩user"],
    "docs/tutorial/your_data.md": ["1 of 5 rows skipped (first: faq.jsonl:3)", "\nUnder the mat.<|im_end|>\n"],
    "docs/tutorial/your_loop.md": ["6 steps reached"],
    "sdk/tinkerloop/local/README.md": ["[None, -"],
    "sdk/tinkerloop/loop/your_own_callback.md": ["on_step"],
    "sdk/tinkerloop/rollouts/README.md": ["'loss'"],
}
"""Texts that the blocks of a page print."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    monkeypatch.delenv("TINKER_BASE_URL", raising=False)
    yield tmp_path
    sys.modules.pop("page", None)


def run(page: str) -> dict[str, Any]:
    """Run the blocks of a page, and return the names that they define."""
    sys.modules["page"] = ModuleType("page")
    names = vars(sys.modules["page"])
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        kind, code = block.groups()
        if kind == "python":
            lines = "\n" * text.count("\n", 0, block.start(2))  # so that a traceback has the line of the page
            exec(compile(lines + code, str(ROOT / page), "exec"), names)
            continue
        for line in code.splitlines():
            program, *arguments = shlex.split(line)
            assert (program, main(arguments)) == ("tinkerloop", 0), line
    return names


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE])
def test_the_code_of_a_page_runs_and_prints_what_it_should(page: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    try:
        names = run(page)
    except MissingPackageError as error:
        pytest.skip(str(error))
    for name in [name for name in names if name.startswith("test_")]:
        names[name]()
    out = capsys.readouterr().out
    assert [text for text in PRINTS.get(page, ()) if text not in out] == []


def test_the_callback_on_the_loops_page_does_what_it_says(folder: Path):
    callback = run("sdk/tinkerloop/loop/README.md")["StopOnSpike"]()
    step = type("Result", (), {"step": 1, "loss": 1.0})
    assert callback.on_step(step) == Log({"worst_loss": 1.0})
    step.loss = 9.0
    assert callback.on_step(step) == Stop("loss 9.00 at step 1")


def test_every_page_that_is_named_here_has_code():
    assert {*PRINTS, *ELSEWHERE} - {*PAGES} == set()
