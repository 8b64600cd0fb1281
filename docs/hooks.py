"""Hooks of the site: pages that are kept beside the code become part of it, and links between files lead to pages.

A page of the package, such as `sdk/tinkerloop/loop/README.md`, has the address `loop/README.md`. Every recipe and the
notebook become a page too. A link names a file of the repository, seen from the file that contains the link, so the
same link works in the repository and on the site. A page that would load something from elsewhere is an error.
"""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path
from posixpath import dirname, relpath
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("*.md", "benchmarks/*.md", "recipes/*.md", "tests/*.md", "sdk/tinkerloop/**/*.md")
NOTEBOOK = ROOT / "docs/look_inside.ipynb"
TABLE_CODE = re.compile(r"`[^`\n]+`(?=.*\|$)", re.MULTILINE)
"""Code in a row of a table. There GitHub wants `\\|` for a bar; Python-Markdown wants the bar alone."""
FROM_ELSEWHERE = re.compile(r"""<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^>]*>""")
STUB = "*`make docs` fills this page with the text of the docstrings.*\n\n"
"""The line of a page of the reference for those who read it in the repository."""
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")

_sources: dict[str, Path] = {}
"""Mapping from the address of a page to the file in the repository."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside `docs/` to the files of the site."""
    _sources.clear()
    _sources.update({file.src_uri: Path(file.abs_src_path or "") for file in files})
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            uri = str(path.relative_to(ROOT)).removeprefix("sdk/tinkerloop/")
            uri = "index.md" if uri == "README.md" else uri
            files.append(_generated(config, uri, path, path.read_text(encoding="utf-8")))
    for path in sorted((ROOT / "recipes").glob("*.py")):
        files.append(_generated(config, f"recipes/{path.stem}.md", path, program_page(path)))
    files.append(_generated(config, "LICENSE.md", ROOT / "LICENSE", f"```text\n{(ROOT / 'LICENSE').read_text()}```\n"))
    files.append(_generated(config, "look_inside.md", NOTEBOOK, notebook_page(json.loads(NOTEBOOK.read_text()))))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Replace each link to a file of the repository by a link to its page. mkdocs reports a link that has no page.

    The line for readers of the repository is removed from the pages of the reference.
    """
    source = _sources[page.file.src_uri]
    addresses = {path: uri for uri, path in _sources.items()}

    def address(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / link[1]))
        return relpath(addresses[target], dirname(page.file.src_uri) or ".") if target in addresses else link[1]

    markdown = markdown.replace(STUB, "")
    markdown = TABLE_CODE.sub(lambda code: code[0].replace("\\|", "|"), markdown)
    return LINK.sub(address, markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Raise an error if the page would load a script, a style, a font or an image from another address."""
    if found := FROM_ELSEWHERE.search(output):
        raise PluginError(f"{page.file.src_uri} would load something from elsewhere: {found[0]}")
    return output


def program_page(path: Path) -> str:
    """Return a program as Markdown: its docstring, which is Markdown too, then its code."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    code = "\n".join(source.splitlines()[tree.body[0].end_lineno :]).strip()
    return f"# {path.name}\n\n{ast.get_docstring(tree)}\n\n````python\n{code}\n````\n"


def notebook_page(notebook: dict[str, Any]) -> str:
    """Return a notebook as Markdown, with the stored outputs that are HTML or text."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output["data"]
            if "text/html" in data:
                parts.append(f'<div class="output">\n{"".join(data["text/html"])}\n</div>')
            else:
                parts.append(f"```text\n{''.join(data['text/plain'])}\n```")
    return "\n\n".join(parts) + "\n"


def _generated(config: Any, uri: str, source: Path, text: str) -> File:
    _sources[uri] = source
    return File.generated(config, uri, content=text)
