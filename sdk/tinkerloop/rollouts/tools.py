"""Tools: plain functions that a model may call, with checked arguments.

    def add(a: int, b: int) -> int:
        '''Add two numbers.

        Args:
            a: the first number.
            b: the second number.
        '''
        return a + b

    environment = ToolEnvironment(messages, [add], reward=lambda reply: float(reply.text == "4"))

The name, the description and the JSON schema of a tool come from the function: its name, its docstring, and the
types of its parameters. A call that cannot be carried out is answered by a tool result that says why, so that the model
can correct itself: the call is not valid, there is no such tool, the arguments do not fit, or the function raised.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic
import pydantic_core

from tinkerloop.errors import RolloutError
from tinkerloop.messages import Message, ToolCall, ToolSpec
from tinkerloop.renderers import Parsed
from tinkerloop.rollouts.environments import Outcome, Reward, Start, invoke, rewarded


@dataclass(frozen=True)
class Tool:
    """A function that a model may call. `Tool.from_function` creates it.

    Attributes:
        declaration: the name, the description, and the JSON schema of the arguments.
        function: the function, plain or `async`.
        arguments: the validator of the arguments, which returns them as keyword arguments of `function`.
    """

    declaration: ToolSpec
    function: Callable[..., Any]
    arguments: pydantic.TypeAdapter[dict[str, Any]]

    @classmethod
    def from_function(cls, function: Callable[..., Any], *, name: str | None = None) -> Tool:
        """Create a tool from a function whose parameters all have types.

        Args:
            function: the function, plain or `async`. The text of its docstring before "Args:" describes the tool, and
                the texts after "Args:" describe its parameters.
            name: the name of the tool; None: the name of the function.

        Raises:
            RolloutError: the function has no name, a parameter has no type or cannot be passed by name, or a type has
                no JSON schema.
        """
        name = name or getattr(function, "__name__", None)
        if name is None:
            raise RolloutError(f"{function!r} has no name; pass name= to Tool.from_function")
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind not in by_name or parameter.annotation is parameter.empty:
                raise RolloutError(
                    f"the parameter {parameter.name!r} of the tool {name!r} must have a type and be passed by name; "
                    f"write it as '{parameter.name}: TYPE'"
                )
        description, of_parameters = _read_docstring(inspect.getdoc(function) or "")
        try:
            signature: Any = _collector(function)  # `TypeAdapter` accepts functions, but its type does not
            arguments = pydantic.TypeAdapter[dict[str, Any]](signature)
            schema = arguments.json_schema()
        except (pydantic.errors.PydanticUserError, NameError) as error:
            raise RolloutError(f"a type in the signature of the tool {name!r} has no JSON schema: {error}") from error
        for key, value in schema["properties"].items():
            value.pop("title", None)  # the name of the parameter again
            if key in of_parameters:
                value.setdefault("description", of_parameters[key])
        return cls(ToolSpec(name=name, description=description, parameters=schema), function, arguments)


class ToolEnvironment:
    """An environment in which the assistant may call tools. The first reply without a call ends the episode.

    The metrics of a turn with calls are `tool_calls`, the number of calls, and `tool_errors`, the number of those that
    could not be carried out. The calls of one reply are carried out one after the other.

    Args:
        messages: the messages before the first reply.
        tools: functions, or tools that `Tool.from_function` created. A tool with a state of its own for each episode is
            a method of an object that is created together with the environment.
        reward: function from the last reply to the reward of the episode. See `Reward`. It is not called if a limit
            ends the episode after a reply with calls; the reward of such an episode is 0.

    Raises:
        RolloutError: two tools have the same name, or a function cannot be a tool.
    """

    def __init__(
        self, messages: Sequence[Mapping[str, Any]], tools: Iterable[Tool | Callable[..., Any]], reward: Reward
    ):
        self._messages, self._reward = messages, reward
        self._tools: dict[str, Tool] = {}
        for one in tools:
            tool = one if isinstance(one, Tool) else Tool.from_function(one)
            if self._tools.setdefault(tool.declaration["name"], tool) is not tool:
                raise RolloutError(f"two tools have the name {tool.declaration['name']!r}; give one of them another")

    async def start(self) -> Start:
        """Return the messages, and the declarations of the tools."""
        return Start(self._messages, [tool.declaration for tool in self._tools.values()])

    async def step(self, reply: Parsed) -> Outcome:
        """Return the results of the calls of a reply; without a call, end the episode with its reward."""
        calls = reply.message.get("tool_calls", [])
        unparsed = reply.message.get("unparsed_tool_calls", [])
        if not calls and not unparsed:
            return await rewarded(self._reward, reply)
        messages: list[Message] = []
        errors = len(unparsed)
        for call in calls:
            content, is_error = await self._result(call)
            message = Message(role="tool", content=content, name=call.function.name)
            if call.id is not None:
                message["tool_call_id"] = call.id
            messages.append(message)
            errors += is_error
        for i, call in enumerate(unparsed):  # some formats need an id, and such a call has none
            content = f"error: the call is not valid: {call.error}"
            messages.append(Message(role="tool", content=content, tool_call_id=f"invalid:{i}"))
        return Outcome(messages=messages, metrics={"tool_calls": len(messages), "tool_errors": errors})

    async def _result(self, call: ToolCall) -> tuple[str, bool]:
        """Return the text of the result of a call, and whether it is an error."""
        name, arguments = call.function
        if name not in self._tools:
            return f"error: there is no tool {name!r}; the tools are {', '.join(self._tools)}", True
        tool = self._tools[name]
        try:
            keywords = tool.arguments.validate_json(arguments)
        except pydantic.ValidationError as error:
            problems = [
                f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}".removeprefix(": ")
                for problem in error.errors(include_url=False, include_context=False, include_input=False)
            ]
            return f"error: the arguments of {name} do not fit: {'; '.join(problems)}", True
        try:
            value = await invoke(functools.partial(tool.function, **keywords))
        except Exception as error:
            text = f"error: {type(error).__name__}: {error}"
            return text.encode("utf-8", "backslashreplace").decode(), True  # messages must be valid Unicode
        return _as_text(tool, value), False


def _as_text(tool: Tool, value: Any) -> str:
    """Return a string unchanged, and any other value as JSON."""
    if isinstance(value, str):
        return value
    try:
        return pydantic_core.to_json(value).decode()
    except pydantic_core.PydanticSerializationError as error:
        raise RolloutError(
            f"the tool {tool.declaration['name']!r} must return a string or a JSON-serializable value: {error}"
        ) from error


def _collector(function: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """Return a function with the signature of `function` that returns its arguments, for pydantic to validate them."""

    def collect(**arguments: Any) -> dict[str, Any]:
        return arguments

    functools.update_wrapper(collect, function)
    return collect


_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?):\s*$", re.MULTILINE)
_PARAMETER = re.compile(r"^\*{0,2}(\w+)(?:\s*\([^)]*\))?:\s*(.*)$")


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return the description of a function and those of its parameters, from a docstring in Google's style."""
    description, *sections = _SECTION.split(text)
    of_parameters: dict[str, str] = {}
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        if title not in ("Args", "Arguments", "Parameters"):
            continue
        lines = [line for line in inspect.cleandoc(body).splitlines() if line.strip()]
        name = None
        for line in lines:
            if (found := _PARAMETER.match(line)) is not None:  # lines that continue a text are indented
                name = found[1]
                of_parameters[name] = found[2]
            elif name is not None:
                of_parameters[name] += f" {line.strip()}"
    return description.strip(), of_parameters
