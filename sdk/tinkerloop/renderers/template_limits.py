"""Limits on the work and on the text of a chat template, which may come from an unknown source.

A template is a program: it can loop, nest and grow a string without end. Steps are counted, not seconds, so the result
never depends on the speed of the machine, and no signal or thread is needed. The limits grow with the conversation:

    steps  <=  200,000 + 2,000 for each message, tool and call + 20 for each character of the conversation
    characters of one text  <=  1,000,000 + 50 for each character of the conversation
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from tinkerloop.errors import RenderError

LARGEST_NUMBER = 100_000
"""The largest width, count or range that a template may ask for in one operation."""
_CHARACTERS_PER_STEP = 100


class TemplateLimitError(RenderError):
    """Error for a chat template that reaches a limit."""


class _Budget:
    """The steps that are left, and the limits for the error messages."""

    def __init__(self, items: int, characters: int):
        self.all_steps = self.steps = 200_000 + 2_000 * items + 20 * characters
        self.characters = 1_000_000 + 50 * characters


_BUDGET: ContextVar[_Budget | None] = ContextVar("template_budget", default=None)


@contextlib.contextmanager
def limited(items: int, characters: int) -> Iterator[None]:
    """Limit the steps and texts of the templates that run in this context.

    Args:
        items: the number of messages, tools and calls of the conversation.
        characters: the number of characters of the conversation.
    """
    token = _BUDGET.set(_Budget(items, characters))
    try:
        yield
    finally:
        _BUDGET.reset(token)


def count_steps(steps: int = 1) -> None:
    """Count steps of the running template.

    Raises:
        TemplateLimitError: the limit of steps is reached.
    """
    budget = _BUDGET.get()
    if budget is None:
        return
    budget.steps -= steps
    if budget.steps < 0:
        raise TemplateLimitError(
            f"the chat template does not end: it took more than the limit of {budget.all_steps} steps for this "
            "conversation; use another template"
        )


def check_size(size: int) -> None:
    """Check the number of characters or elements of a value that the template is about to create, and count its steps.

    Raises:
        TemplateLimitError: a limit is reached.
    """
    budget = _BUDGET.get()
    limit = budget.characters if budget else 1_000_000
    if size > limit:
        raise TemplateLimitError(
            f"the chat template writes too much: a text or list of {size} elements is longer than the limit of {limit} "
            "for this conversation; use another template"
        )
    count_steps(1 + size // _CHARACTERS_PER_STEP)


def check_number(value: object) -> None:
    """Check a number that decides how much an operation of the template creates.

    Raises:
        TemplateLimitError: the number is larger than `LARGEST_NUMBER`.
    """
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        shown = value if value.bit_length() < 1000 else f"a number of {value.bit_length()} bits"
        raise TemplateLimitError(
            f"the chat template asks for {shown} elements in one operation, more than the limit of {LARGEST_NUMBER}; "
            "use another template"
        )
