"""Environments: where an episode begins, and how each reply is answered and rewarded.

An environment is created for one episode. Its methods may be plain functions or coroutine functions. A plain one may
block, because it runs in a thread, so that other episodes continue. There are at most 64 such threads. Methods are
called one at a time, but not always in the same thread. A method that neither blocks nor computes for long is better
written as `async def`, because a thread costs about 0.1 ms per call.

    class GuessingGame:
        def __init__(self, secret: int):
            self.secret = secret

        def start(self) -> Start:
            return Start([{"role": "user", "content": "Guess a number from 1 to 9."}])

        def step(self, reply: Parsed) -> Outcome:
            if reply.text.strip() == str(self.secret):
                return Outcome(reward=1.0, done=True)
            return Outcome(messages=[{"role": "user", "content": "Wrong. Guess again."}])
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tinkerloop.errors import RolloutError
from tinkerloop.renderers import Parsed
from tinkerloop.rollouts.plain_calls import call_in_thread


@dataclass(frozen=True)
class Start:
    """The beginning of an episode.

    Attributes:
        messages: the messages before the first reply.
        tools: declarations of the tools that the assistant may call.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Any] = ()


@dataclass(frozen=True)
class Outcome:
    """The answer of an environment to one reply.

    Attributes:
        reward: the reward for the reply.
        messages: the messages that follow the reply, such as tool results. Required unless `done`; if `done`, they are
            logged, but no reply to them is sampled.
        done: True if the episode is over.
        metrics: named numbers to log, such as whether the reply had the right form.

    Raises:
        RolloutError: the reward or a metric is not a finite number, or `done` is not a truth value.
    """

    reward: float = 0.0
    messages: Sequence[Mapping[str, Any]] = ()
    done: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reward", _finite("the reward", self.reward))
        if not isinstance(self.done, bool | int | np.bool_):  # "false" would count as true
            raise RolloutError(f"done must be True or False, got {self.done!r:.80}")
        object.__setattr__(self, "done", bool(self.done))
        metrics = {name: _finite(f"the metric {name!r}", value) for name, value in self.metrics.items()}
        object.__setattr__(self, "metrics", metrics)


class Environment(Protocol):
    """One episode's environment: any object with these two methods, plain or `async`.

    If it also has a method `close`, that method is called once when the episode has ended, also after an error.
    """

    def start(self) -> Start | Awaitable[Start]:
        """Return the messages before the first reply, and the tools. Called once, first."""
        ...

    def step(self, reply: Parsed) -> Outcome | Awaitable[Outcome]:
        """Return the answer to a reply: reward, messages, and whether the episode is over.

        It is also called for a reply that was cut or broke off (`reply.termination`), after which the episode ends.
        """
        ...


Reward = Callable[[Parsed], Any]
"""Function, plain or `async`, from a parsed reply to its reward: a number, or a pair (number, metrics)."""


def one_turn(messages: Sequence[Mapping[str, Any]], reward: Reward, tools: Sequence[Any] = ()) -> Environment:
    """Return the environment of a task with one reply.

    Args:
        messages: the messages before the reply.
        reward: function from the parsed reply to its reward. See `Reward`.
        tools: declarations of the tools that the assistant may call.
    """
    return _OneTurn(Start(messages, tools), reward)


@dataclass(frozen=True)
class _OneTurn:
    beginning: Start
    reward: Reward

    async def start(self) -> Start:
        return self.beginning

    async def step(self, reply: Parsed) -> Outcome:
        return await rewarded(self.reward, reply)


async def rewarded(reward: Reward, reply: Parsed, metrics: Mapping[str, float] | None = None) -> Outcome:
    """Return the outcome that ends an episode with the reward of its last reply, and with `metrics` too."""
    value = await invoke(reward, reply)
    number, more = value if isinstance(value, tuple) else (value, {})
    return Outcome(number, done=True, metrics={**(metrics or {}), **more})


async def invoke(function: Callable[..., Any], *args: Any) -> Any:
    """Call `function(*args)` and return its value. A plain function runs in a thread, a coroutine function does not."""
    if inspect.iscoroutinefunction(function):
        return await function(*args)
    value = await call_in_thread(function, *args)
    return await value if inspect.isawaitable(value) else value


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RolloutError(f"{name} must be a finite number, got {value!r}")
    return number
