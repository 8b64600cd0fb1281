"""Compilation of Hugging Face chat templates as in transformers, without importing transformers.

Each template is compiled twice: once as it is, and once with literals that are `MarkedText`. Both run in Jinja's
sandbox and within the limits of `template_limits`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import GeneratorType
from typing import Any, NamedTuple

from tinkerloop.errors import RenderError
from tinkerloop.renderers.marked_text import join_marked, marked_json, own, own_strings
from tinkerloop.renderers.template_limits import check_number, check_size, count_steps


class CompiledTemplate(NamedTuple):
    """A chat template, compiled as it is (`plain`) and with marked literals (`marked`)."""

    plain: Any
    marked: Any


@functools.lru_cache(maxsize=16)
def compile_template(source: str) -> CompiledTemplate:
    """Compile a chat template, with the functions that transformers gives to templates.

    When the compiled template is rendered and calls `raise_exception`, a `RenderError` is raised.

    Raises:
        RenderError: the template has a syntax error, or is nested too deeply.
    """
    from jinja2 import TemplateSyntaxError

    try:
        return CompiledTemplate(*[environment.from_string(source) for environment in _environments()])
    except TemplateSyntaxError as error:
        raise RenderError(f"the chat template has a syntax error: {error.message} in line {error.lineno}") from error
    except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
        raise RenderError(
            f"the chat template cannot be compiled, because it is nested too deeply or too large: {error}"
        ) from error


def named_sources(tokenizer: Any, chosen: str | None) -> dict[str, str]:
    """Return the templates of a tokenizer that can be needed, by name, as transformers chooses them.

    `chosen` is a template to use instead, or the name of one. With None, a tokenizer with several templates uses
    `tool_use` for conversations with tools, if it has one, and `default` for all others.

    Raises:
        RenderError: the tokenizer has no template, or several of which none is the default.
    """
    known = getattr(tokenizer, "chat_template", None)
    if isinstance(known, (list, tuple)):  # the form in `tokenizer_config.json`
        known = {one["name"]: one["template"] for one in known}
    if isinstance(known, Mapping):
        if chosen is not None:
            return {"default": known.get(chosen, chosen)}
        if "default" not in known:
            raise RenderError(
                f"the tokenizer has several chat templates and none is called 'default': {sorted(known)}; choose "
                "one with TemplateOptions(chat_template=NAME)"
            )
        return {name: known[name] for name in ("default", "tool_use") if name in known}
    source = known if chosen is None else chosen
    if not isinstance(source, str):
        raise RenderError("the tokenizer has no chat_template; pass one as TemplateOptions(chat_template=...)")
    return {"default": source}


def _raise_exception(message: str) -> None:
    raise RenderError(f"the chat template raises an error for this conversation: {message}")


def _json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the values of a loop or of a filter such as `map`, and count each as a step."""
    for value in values:
        count_steps()
        yield value


def _limited(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter with limits on its numbers and on the size of its result."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            check_number(value)
        return _checked(function(*args, **kwargs))

    return call


def _checked(value: Any) -> Any:
    """Return a value that the template created, after checking its size. Values that are yielded one by one count."""
    if isinstance(value, (str, list, tuple, Mapping, range)):
        check_size(len(value))
    else:
        count_steps()
    return _counted(value) if isinstance(value, GeneratorType) else value


_PADDING = frozenset(("center", "expandtabs", "ljust", "rjust", "zfill"))
_WIDTH = re.compile(r"\d{5,}|\*|\{[^}]*\{")
"""A large or computed width in a format string."""


def _check_format(text: Any) -> None:
    if isinstance(text, str) and _WIDTH.search(text):
        raise RenderError(f"the chat template formats text with a large or computed width: {text[:60]!r}")


@functools.cache
def _environments() -> tuple[Any, Any]:
    """Return two Jinja environments, for plain and for marked text."""
    from jinja2 import nodes
    from jinja2.compiler import CodeGenerator
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.visitor import NodeTransformer

    class Generation(Extension):
        """The tag `{% generation %}`, with which some templates mark replies. It has no effect on the text.

        The tag is not needed, because `template` finds replies by comparing prompts with the text.
        """

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class CountLoops(NodeTransformer):
        """Replaces `for x in values` by `for x in values | counted`."""

        def visit_For(self, node: nodes.For) -> nodes.Node:
            self.generic_visit(node)
            node.iter = nodes.Filter(node.iter, "counted", [], [], None, None, lineno=node.lineno)
            return node

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("+", "*", "**", "%"))

        def _parse(self, source: str, name: Any, filename: Any) -> Any:
            return CountLoops().visit(super()._parse(source, name, filename))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            count_steps()
            if operator == "**":
                check_number(right)
                check_number(left.bit_length() * right if isinstance(left, int) and isinstance(right, int) else 0)
            elif operator == "%":
                _check_format(left)
            elif operator == "*":
                numbers = [value for value in (left, right) if isinstance(value, int)]
                if len(numbers) == 2:
                    check_number(sum(number.bit_length() for number in numbers))
                elif numbers:
                    check_size(max(numbers[0], 0) * len(left if isinstance(right, int) else right))
            elif isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
                check_size(len(left) + len(right))
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore
            if getattr(obj, "__name__", "") in _PADDING:
                for value in args:
                    check_number(value)
            return _checked(super().call(context, obj, *args, **kwargs))

        def wrap_str_format(self, value: Any) -> Any:
            if getattr(value, "__name__", "") in ("format", "format_map"):
                _check_format(getattr(value, "__self__", None))
            return super().wrap_str_format(value)

        def joined(self, texts: Iterable[Any]) -> str:
            """Return the concatenation of texts, for the operator `~`."""
            return _checked("".join(map(str, texts)))

    class Generator(CodeGenerator):
        def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
            self.write("environment.joined((")
            for part in node.nodes:
                self.visit(part, frame)
                self.write(", ")
            self.write("))")

    class MarkingGenerator(Generator):
        """Writes each literal of the template as `environment.own(literal)`."""

        def visit_Const(self, node: nodes.Const, frame: Any) -> None:
            if isinstance(node.value, str):
                self.write(f"environment.own({node.value!r})")
            elif isinstance(node.value, (dict, list, tuple)):
                self.write(f"environment.own_strings({node.value!r})")
            else:
                super().visit_Const(node, frame)

        def visit_TemplateData(self, node: nodes.TemplateData, frame: Any) -> None:
            self.write(f"environment.own({node.data!r})")

        def _output_const_repr(self, group: Iterable[Any]) -> str:
            return f"environment.own({''.join(group)!r})"

    class MarkedSandbox(Sandbox):
        code_generator_class = MarkingGenerator
        concat = staticmethod(join_marked)  # pyright: ignore
        own = staticmethod(functools.lru_cache(maxsize=4096)(own))
        own_strings = staticmethod(own_strings)

        def joined(self, texts: Iterable[Any]) -> str:
            return join_marked(texts)

    Sandbox.code_generator_class = Generator

    def join(values: Iterable[Any], separator: Any = "", attribute: Any = None) -> Any:
        if attribute is not None:
            values = [marked.getattr(value, attribute) for value in values]
        return (separator if hasattr(separator, "_runs") else own(separator)).join(values)

    options = {"trim_blocks": True, "lstrip_blocks": True, "extensions": [loopcontrols, Generation]}
    plain, marked = Sandbox(**options), MarkedSandbox(**options)
    for environment, filters in (
        (plain, {"tojson": _json}),
        (marked, {"tojson": marked_json, "join": join, "safe": lambda value: value}),
    ):
        environment.globals["raise_exception"] = _raise_exception
        environment.globals.pop("lipsum")  # writes random text
        environment.filters.update(filters)
        environment.filters = {name: _limited(f) for name, f in environment.filters.items()} | {"counted": _counted}
    return plain, marked
