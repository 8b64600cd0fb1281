"""Compilation of Hugging Face chat templates as in transformers, without importing transformers."""

from __future__ import annotations

import functools
import json
from typing import Any

from tinkerloop.errors import RenderError


@functools.lru_cache(maxsize=16)
def compile_template(source: str) -> Any:
    """Compile a chat template to a sandboxed Jinja template, with the functions that transformers gives to templates.

    When the compiled template is rendered and calls `raise_exception`, a `RenderError` is raised.

    Raises:
        RenderError: the template has a syntax error.
    """
    from jinja2 import TemplateSyntaxError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    class Generation(Extension):
        """The tag `{% generation %}`, with which some templates mark replies. It has no effect on the text.

        The tag is not needed, because `template` finds replies by comparing prompts with the text.
        """

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise RenderError(f"the chat template raises an error for this conversation: {message}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise RenderError(f"the chat template has a syntax error: {error.message} in line {error.lineno}") from error
