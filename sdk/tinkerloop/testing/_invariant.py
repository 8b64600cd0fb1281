"""An invariant of chat formats: a function that draws a conversation and raises an error if the format breaks it.

The first sentence of the function's docstring is the invariant. `RENDERER_CHECKS` contains all of them by name.
"""

from __future__ import annotations

import difflib
import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from tinkerloop.errors import CheckFailedError
from tinkerloop.extras import needs_extra
from tinkerloop.messages import ToolSpec
from tinkerloop.renderers import Rendered, Renderer
from tinkerloop.testing.format_claims import DECLARED_TOOLS, FormatClaims, Messages, fitted
from tinkerloop.testing.message_strategies import CONTROL, random_conversations, spellings

with needs_extra("testing", "the check kit of renderers"):
    from hypothesis import strategies as st

T = TypeVar("T")


@dataclass
class Subject:
    """The renderer under test, what its format claims, and the source of drawn values.

    It has a copy of the renderer in which tags in the texts of replies are ordinary text, so that texts can quote tags.
    """

    renderer: Renderer
    claims: FormatClaims
    template: str | None
    template_variables: Mapping[str, Any]
    control: frozenset[int]
    """The ids of all control tokens that the tokenizer has."""
    twins: Callable[[], Sequence[Renderer]]
    """Returns copies of the renderer: one by pickle, and one by `copy.deepcopy`."""
    data: st.DataObject
    shown: list[tuple[str, Any]] = field(default_factory=list)
    """What was drawn, for the error message."""

    @property
    def tools(self) -> list[ToolSpec] | None:
        """Declarations of tools, if the format can declare tools."""
        return DECLARED_TOOLS if self.claims.tools else None

    def draw(self, strategy: st.SearchStrategy[T], label: str) -> T:
        """Draw a value, and show it under `label` if the check fails."""
        value = self.data.draw(strategy, label)
        self.shown.append((label, value))
        return value

    def conversation(self, *, later_system: bool = True, **options: Any) -> Messages:
        """Draw a conversation that the format claims to express."""
        claims = self.claims if later_system else replace(self.claims, later_system=False)
        return self.draw(random_conversations(claims, **options), "conversation")

    def maybe_tools(self) -> list[ToolSpec] | None:
        """Draw whether tools are declared, and return them or None."""
        return self.tools if self.draw(st.booleans(), "tools are declared") else None

    def hostile_texts(self) -> st.SearchStrategy[str]:
        """Return a strategy for texts that spell control tokens: all of the format at once, or one, or nearly one."""
        own = sorted(self.renderer._assembler.ids)
        return st.just(" ".join(own)) | spellings(own or CONTROL) | spellings(CONTROL)

    def show(self, messages: Sequence[Mapping[str, Any]]) -> Messages:
        """Return what the format can express of a fixed conversation, and show it if the check fails."""
        kept = fitted(messages, self.claims)
        self.shown.append(("conversation", kept))
        return kept

    def example(
        self, messages: Sequence[Mapping[str, Any]], mode: str = "last_assistant_message", **options: Any
    ) -> Rendered:
        """Render an example, which may train nothing."""
        return self.renderer.build_supervised_example(messages, mode, allow_zero_weight=True, **options)

    def prompt(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """Render a prompt, and return its ids."""
        return self.renderer.build_generation_prompt(messages, **options).to_ints()

    def controls_in(self, tokens: Sequence[int]) -> list[int]:
        """Return the control tokens among `tokens`."""
        return [token for token in tokens if token in self.control]

    def equal_tokens(self, tokens: Sequence[int], expected: Sequence[int], problem: str) -> None:
        """Raise an error that shows both token sequences side by side, unless they are equal."""
        if list(tokens) != list(expected):
            raise CheckFailedError(f"{problem}\n{aligned(self.renderer, expected, tokens)}")

    def begins_with(self, tokens: Sequence[int], expected: Sequence[int], problem: str) -> None:
        """Like `equal_tokens`, for the first of `tokens`."""
        self.equal_tokens(tokens[: len(expected)], expected, problem)


Invariant = Callable[[Subject], None]


def require(condition: object, problem: str) -> None:
    """Raise `CheckFailedError` with `problem`, unless the condition is true."""
    if not condition:
        raise CheckFailedError(problem)


def require_equal(value: Any, expected: Any, what: str) -> None:
    """Raise an error that names `what` and both values, unless they are equal."""
    if value != expected:
        raise CheckFailedError(f"{what}: expected {expected!r}, got {value!r}")


def nfc(text: str) -> str:
    """Return the text in the normal form NFC, in which many tokenizers encode it."""
    return unicodedata.normalize("NFC", text)


def sampled(example: Rendered) -> list[int]:
    """Return the tokens of an example that carry weight, as a model would sample them."""
    return [token for token, weight in zip(example.tokens, example.weights, strict=True) if weight]


def all_control_ids(renderer: Renderer) -> frozenset[int]:
    """Return the ids of the control tokens of the format and of public formats that the tokenizer has."""
    found = (renderer._encoder.id_of(token) for token in {*CONTROL, *renderer._assembler.ids})
    return frozenset(token for token in found if token is not None)


def aligned(renderer: Renderer, expected: Sequence[int], given: Sequence[int], context: int = 3) -> str:
    """Return two token sequences as rows, one token of each in a row; rows that differ begin with `>`."""
    rows = [("", "expected", "got")]
    matcher = difflib.SequenceMatcher(None, expected, given, autojunk=False)
    blocks = matcher.get_opcodes()
    for number, (kind, a, b, c, d) in enumerate(blocks):
        left, right = list(expected[a:b]), list(given[c:d])
        size = max(len(left), len(right))
        pairs = [
            (
                f"{'' if kind == 'equal' else '>'} {a + i}",
                _named(renderer, left[i]) if i < len(left) else "",
                _named(renderer, right[i]) if i < len(right) else "",
            )
            for i in range(size)
        ]
        if kind == "equal":
            head = 0 if number == 0 else context
            tail = 0 if number + 1 == len(blocks) else context
            if size > head + tail:
                pairs = [*pairs[:head], (f"  ... {size - head - tail} equal tokens", "", ""), *pairs[size - tail :]]
        rows += pairs
    widths = [max(len(row[column]) for row in rows if row[1] or row[2]) for column in range(2)]
    return "\n".join(f"  {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}".rstrip() for row in rows)


def _named(renderer: Renderer, token: int) -> str:
    return f"{token} {renderer.decode([token])!r}"


def shown(label: str, value: Any) -> str:
    """Return a drawn value as text; a conversation has one line for each message."""
    if label == "conversation":
        lines = [f"  {i} {json.dumps(m, ensure_ascii=False, default=repr)}" for i, m in enumerate(value)]
        return "\n".join(["conversation:", *lines])
    return f"{label}: {value!r}"
