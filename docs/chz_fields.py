"""Documentation of `chz` classes: the `doc` of a field is its docstring, and its `default` its value."""

from __future__ import annotations

import ast
from typing import Any

import griffe


class ChzFields(griffe.Extension):
    """Extension of griffe, which reads the package for the reference."""

    def on_attribute(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Replace the value and the docstring of an attribute that is a `chz.field`."""
        if not isinstance(attr.value, griffe.ExprCall) or str(attr.value.function) != "chz.field":
            return
        given = {one.name: one.value for one in attr.value.arguments if isinstance(one, griffe.ExprKeyword)}
        attr.value = given.get("default")
        attr.labels.clear()
        if "doc" in given:
            attr.docstring = griffe.Docstring(ast.literal_eval(str(given["doc"])), parent=attr)
