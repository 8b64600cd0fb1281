"""Environments of skyrl-gym, and others with its interface: `init(prompt)` and `step(action)` on texts.

def create() -> Environment:
    extras = {"reward_spec": {"ground_truth": "4"}}
    return SkyRLEnvironment(skyrl_gym.make("gsm8k", extras=extras), [{"role": "user", "content": "2 + 2 ="}])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tinkerloop.renderers import Parsed
from tinkerloop.rollouts.environments import Outcome, Start


class SkyRLEnvironment:
    """An environment that passes the text of each reply to an environment of skyrl-gym.

    The metrics of a turn are the finite numbers in the metadata of its step, and at the end also those of
    `get_metrics`. Metadata of other types is not logged.

    Args:
        environment: a `skyrl_gym` text environment for one episode.
        prompt: the messages that its `init` is given.
        action: function from a reply to the text that `step` is given. By default it is the text without reasoning and
            tool calls. For an environment that reads the tags of tool calls itself, pass
            `lambda reply: renderer.decode(reply.ids)`.
    """

    def __init__(
        self,
        environment: Any,
        prompt: Sequence[Mapping[str, Any]],
        *,
        action: Callable[[Parsed], str] = lambda reply: reply.text,
    ):
        self._environment, self._prompt, self._action = environment, prompt, action

    def start(self) -> Start:
        """Return the messages that `init` returns."""
        messages, _ = self._environment.init([dict(message) for message in self._prompt])
        return Start(messages)

    def step(self, reply: Parsed) -> Outcome:
        """Return the observations of a step as messages, with its reward.

        Raises:
            NotImplementedError: the environment replaced the text of the reply, which was sampled as it is.
        """
        action = self._action(reply)
        step = self._environment.step(action)
        if step.get("postprocessed_action") not in (None, action):
            raise NotImplementedError(
                "the environment replaced the text of a reply (postprocessed_action), but sampled tokens are never "
                "changed; use an environment that accepts replies as they are, and end replies with `stop`"
            )
        metrics = _numbers(step.get("metadata"))
        if step["done"]:
            metrics |= _numbers(self._environment.get_metrics())
        return Outcome(float(step["reward"]), step["observations"], step["done"], metrics)

    def close(self) -> None:
        """Release what the environment holds."""
        self._environment.close()


def _numbers(values: Mapping[str, Any] | None) -> dict[str, float]:
    return {k: float(v) for k, v in (values or {}).items() if isinstance(v, int | float) and math.isfinite(v)}
