"""How the reference reads docstrings.

- `chz` classes: the `doc` of a field is its docstring, and its `default` its value.
- Examples with `>>>` are code.
- A line `a, b: as for x` of a list of arguments stands for both arguments.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1(?=\S).*)*", re.MULTILINE)
_ARGUMENTS = re.compile(r"^( +)(\*{0,2}\w+(?:, \*{0,2}\w+)+)(: .*)$", re.MULTILINE)


class ReadDocstrings(griffe.Extension):
    """Extension of griffe, which reads the package for the reference."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Write the examples of a docstring as code, and each argument on a line of its own."""
        if obj.docstring is None:
            return
        text = _EXAMPLE.sub(lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```", obj.docstring.value)
        obj.docstring.value = _ARGUMENTS.sub(_one_line_each, text)

    def on_attribute(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Replace the value and the docstring of an attribute that is a `chz.field`."""
        if not isinstance(attr.value, griffe.ExprCall) or str(attr.value.function) != "chz.field":
            return
        given = {one.name: one.value for one in attr.value.arguments if isinstance(one, griffe.ExprKeyword)}
        attr.value = given.get("default")
        attr.labels.clear()
        if "doc" in given:
            attr.docstring = griffe.Docstring(ast.literal_eval(str(given["doc"])), parent=attr)


def _one_line_each(found: re.Match[str]) -> str:
    indent, names, text = found.groups()
    return "\n".join(f"{indent}{name}{text}" for name in names.split(", "))
