"""Tools: the schema of a function, checked arguments, and errors that the model sees."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from tests.rollouts.conftest import QUESTION, ScriptedSampler, params, run
from tinkerloop.errors import RolloutError
from tinkerloop.rollouts import Tool, ToolEnvironment
from tinkerloop.rollouts.episodes import run_episode
from tinkerloop.rollouts.trajectory import End, Trajectory


def add(a: int, b: int = 0, *, unit: Literal["m", "km"] | None = None) -> str:
    """Add two lengths.

    The result has the unit of the arguments.

    Args:
        a: the first length,
            in the given unit.
        b (int): the second length: 0 if left out.

    Returns:
        The sum.
    """
    return f"{a + b}{unit or ''}"


class Point(BaseModel):
    x: float
    y: Annotated[float, Field(ge=0)] = 0.0


def mirror(point: Point) -> Point:
    """Mirror a point."""
    return Point(x=-point.x, y=point.y)


async def divide(a: float, b: float) -> float:
    """Divide two numbers."""
    return a / b


def call(name: str, arguments: Any) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def play(tools: Any, script: list[str], reward: Any = lambda reply: float(reply.text == "4")) -> Trajectory:
    sampler = ScriptedSampler(script)
    environment = ToolEnvironment(QUESTION, tools, reward)
    return run(run_episode(environment, sampler, sampler.renderer, sampling_params=params(max_tokens=200), seed=0))  # type: ignore[arg-type]


def results(tools: Any, *calls: str) -> list[str]:
    """Return the tool results that follow one reply with `calls`."""
    return [m["content"] for m in play(tools, ["\n".join(calls), "4"]).messages if m["role"] == "tool"]


def test_the_declaration_comes_from_the_signature_and_the_docstring() -> None:
    assert Tool.from_function(add).declaration == {
        "name": "add",
        "description": "Add two lengths.\n\nThe result has the unit of the arguments.",
        "parameters": {
            "type": "object",
            "additionalProperties": False,
            "required": ["a"],
            "properties": {
                "a": {"type": "integer", "description": "the first length, in the given unit."},
                "b": {"type": "integer", "default": 0, "description": "the second length: 0 if left out."},
                "unit": {"anyOf": [{"enum": ["m", "km"], "type": "string"}, {"type": "null"}], "default": None},
            },
        },
    }


def test_a_tool_is_called_and_the_episode_ends_with_the_reward_of_the_last_reply() -> None:
    trajectory = play([add], [call("add", {"a": 2, "b": 2}), "4"])
    assert [(m["role"], m["content"]) for m in trajectory.messages[2:]] == [("tool", "4"), ("assistant", "4")]
    assert trajectory.messages[2]["name"] == "add"
    assert [turn.reward for turn in trajectory.turns] == [0.0, 1.0]
    assert [turn.metrics for turn in trajectory.turns] == [{"tool_calls": 1.0, "tool_errors": 0.0}, {}]
    assert trajectory.end is End.DONE


def test_the_prompt_declares_the_tools() -> None:
    sampler = ScriptedSampler(["4"])
    environment = ToolEnvironment(QUESTION, [add], lambda reply: 0.0)
    run(run_episode(environment, sampler, sampler.renderer, sampling_params=params(), seed=0))
    prompt = sampler.renderer.tokenizer.decode(sampler.requests[0][0].to_ints())
    assert '"name": "add"' in prompt
    assert "the first length, in the given unit." in prompt


@pytest.mark.parametrize(
    "name, arguments, result",
    [
        ("add", {"a": 1, "b": 2, "unit": "km"}, "3km"),
        ("add", {"a": 1}, "1"),
        ("divide", {"a": 1, "b": 8}, "0.125"),
        ("mirror", {"point": {"x": 2}}, '{"x":-2.0,"y":0.0}'),
        ("add", {"a": "x"}, "error: the arguments of add do not fit: a: Input should be a valid integer, unable to"),
        (
            "add",
            {"b": 1, "c": 2},
            "error: the arguments of add do not fit: a: Missing required argument; c: Unexp",
        ),
        ("add", {"a": 1, "unit": "mile"}, "error: the arguments of add do not fit: unit: Input should be 'm' or 'km'"),
        ("mirror", {"point": {"x": 1, "y": -1}}, "error: the arguments of mirror do not fit: point.y: Input should be"),
        ("add", {"a": "\ud800"}, "error: the arguments of add do not fit: Invalid JSON"),
        ("divide", {"a": 1, "b": 0}, "error: ZeroDivisionError: float division by zero"),
        ("multiply", {}, "error: there is no tool 'multiply'; the tools are add, divide, mirror"),
    ],
)
def test_the_result_of_a_call_is_its_value_or_says_why_it_failed(name: str, arguments: Any, result: str) -> None:
    (text,) = results([add, divide, mirror], call(name, arguments))
    assert text.startswith(result)
    assert text.startswith("error: ") or text == result


def test_a_call_that_cannot_be_parsed_gets_a_result_too() -> None:
    trajectory = play([add], [f"{call('add', {'a': 1})}\n<tool_call>\n{{nonsense\n</tool_call>", "4"])
    texts = [m["content"] for m in trajectory.messages if m["role"] == "tool"]
    assert texts[0] == "1"
    assert texts[1].startswith("error: the call is not valid: not JSON: ")
    assert trajectory.turns[0].metrics == {"tool_calls": 2.0, "tool_errors": 1.0}


def test_the_calls_of_a_reply_are_carried_out_in_their_order() -> None:
    @dataclass
    class Counter:
        value: int = 1

        def increase(self) -> int:
            self.value += 1
            return self.value

        def double(self) -> int:
            self.value *= 2
            return self.value

    counter = Counter()
    assert results([counter.increase, counter.double], call("increase", {}), call("double", {})) == ["2", "4"]


def test_an_error_whose_text_is_not_valid_unicode_is_a_valid_message() -> None:
    def read(path: str) -> str:
        raise OSError("\udcff.txt")

    assert results([read], call("read", {"path": "x"})) == [r"error: OSError: \udcff.txt"]


def test_a_value_that_is_not_json_is_a_failure_of_the_environment() -> None:
    def leak() -> object:
        return object()

    with pytest.raises(RolloutError, match="the tool 'leak' must return a string or a JSON-serializable value"):
        results([leak], call("leak", {}))


def test_a_tool_can_have_another_name_than_its_function() -> None:
    assert results([Tool.from_function(add, name="plus")], call("plus", {"a": 3})) == ["3"]


def no_type(a):  # type: ignore[no-untyped-def]
    return a


def positional(a: int, /) -> int:
    return a


def variable(*a: int) -> int:
    return len(a)


def without_schema(a: type[BaseException] | ScriptedSampler) -> int:
    return 0


def unknown_type(a: Missing) -> int:  # type: ignore[name-defined]  # noqa: F821
    return 0


@pytest.mark.parametrize(
    "function, problem",
    [
        (no_type, "the parameter 'a' of the tool 'no_type' must have a type and be passed by name"),
        (positional, "the parameter 'a' of the tool 'positional' must have a type and be passed by name"),
        (variable, "the parameter 'a' of the tool 'variable' must have a type and be passed by name"),
        (without_schema, "a type in the signature of the tool 'without_schema' has no JSON schema"),
        (unknown_type, "a type in the signature of the tool 'unknown_type' has no JSON schema"),
    ],
)
def test_a_function_that_cannot_be_a_tool_is_rejected_at_once(function: Any, problem: str) -> None:
    with pytest.raises(RolloutError, match=problem):
        ToolEnvironment(QUESTION, [function], lambda reply: 0.0)


def test_two_tools_of_one_name_are_rejected() -> None:
    with pytest.raises(RolloutError, match="two tools have the name 'add'"):
        ToolEnvironment(QUESTION, [add, Tool.from_function(divide, name="add")], lambda reply: 0.0)
