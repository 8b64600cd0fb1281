"""Token weights: `TrainOnWhat` gives one weight to each message, and each part of a message has a factor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

from tinkerloop.errors import RenderError
from tinkerloop.messages import CheckedConversation
from tinkerloop.renderers.pieces import Part


class TrainOnWhat(StrEnum):
    """The tokens of a conversation that carry weight. Role headers and separators carry it only with `ALL_TOKENS`.

    There are three defaults. They are the Tinker Cookbook's, so that the same call trains the same tokens:

    - `Renderer.build_supervised_example`: `LAST_ASSISTANT_MESSAGE`
    - `Renderer.build_supervised_examples`: `LAST_ASSISTANT_TURN`
    - `conversation_to_datum`, `conversation_datums`, `render_files`, `ChatDatasetBuilderCommonConfig` and
      `tinkerloop inspect`: `ALL_ASSISTANT_MESSAGES`
    """

    LAST_ASSISTANT_MESSAGE = "last_assistant_message"
    LAST_ASSISTANT_TURN = "last_assistant_turn"
    """The last assistant message and the earlier ones that answer the same user message, as with tool calls."""
    ALL_ASSISTANT_MESSAGES = "all_assistant_messages"
    ALL_MESSAGES = "all_messages"
    ALL_TOKENS = "all_tokens"
    ALL_USER_AND_SYSTEM_MESSAGES = "all_user_and_system_messages"
    CUSTOMIZED = "customized"
    """The messages whose `trainable` is true."""


_FIXED = (Part.SCAFFOLD, Part.IMAGE)
"""The parts whose weight the user cannot choose."""
_FULL_WEIGHT = dict.fromkeys(Part, 1.0) | {Part.IMAGE: 0.0}


class TokenWeights(NamedTuple):
    """The weight of a token is that of its message times that of its part."""

    of_message: list[float]
    of_part: dict[Part, float]

    def for_labels(self, labels: Iterable[tuple[int, Part]]) -> list[float]:
        """Return one weight for each (message, part); tokens of no message (-1) are scaffold."""
        of_part = self.of_part
        of_message = [*self.of_message, of_part[Part.SCAFFOLD]]  # index -1 is the last element
        return [of_message[message] * of_part[part] for message, part in labels]


def token_weights(
    conversation: CheckedConversation,
    train_on_what: TrainOnWhat | str,
    part_weights: Mapping[Part | str, float] | None = None,
) -> TokenWeights:
    """Return the weights of a conversation's tokens.

    Args:
        train_on_what: the messages that carry weight; each has its own `weight`, 1 by default.
        part_weights: factors of parts, e.g. `{"reasoning": 0}`; 1 by default.

    Raises:
        RenderError: an unknown mode or part; `trainable` missing from a message in CUSTOMIZED, or present in another
            mode.
    """
    of_message = message_weights(conversation, train_on_what)
    of_part = _FULL_WEIGHT.copy()
    for key, value in (part_weights or {}).items():
        part = key if isinstance(key, Part) else Part.__members__.get(str(key).upper(), Part.SCAFFOLD)
        if part in _FIXED:
            known = ", ".join(p.name.lower() for p in Part if p not in _FIXED)
            raise RenderError(f"part_weights: unknown part {key!r}; known are {known}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf"):
            raise RenderError(f"part_weights: the weight of {key!r} must be a finite number, got {value!r}")
        of_part[part] = float(value)
    of_part[Part.SCAFFOLD] = float(train_on_what == TrainOnWhat.ALL_TOKENS)
    return TokenWeights(of_message, of_part)


def message_weights(conversation: CheckedConversation, train_on_what: TrainOnWhat | str) -> list[float]:
    """Return the weight of each message.

    For user, assistant, user, assistant: ALL_ASSISTANT_MESSAGES gives `[0, 1, 0, 1]`, LAST_ASSISTANT_MESSAGE
    `[0, 0, 0, 1]`.

    Raises:
        RenderError: an unknown mode; `trainable` missing from a message in CUSTOMIZED, or present in another mode.
    """
    try:
        mode = TrainOnWhat(train_on_what)
    except ValueError:
        raise RenderError(f"train_on_what={train_on_what!r}; known are {', '.join(TrainOnWhat)}") from None
    messages = conversation.messages
    has_trainable = [m.trainable is not None for m in messages]
    if mode is TrainOnWhat.CUSTOMIZED:
        if not all(has_trainable):
            missing = has_trainable.index(False)
            raise RenderError(f"messages[{missing}]: train_on_what='customized' needs 'trainable' on every message")
    elif any(has_trainable):
        first = has_trainable.index(True)
        raise RenderError(
            f"messages[{first}] has 'trainable', which train_on_what={mode.value!r} does not read; use 'customized'"
        )
    match mode:
        case TrainOnWhat.LAST_ASSISTANT_MESSAGE:
            chosen = [i == len(messages) - 1 and m.role == "assistant" for i, m in enumerate(messages)]
        case TrainOnWhat.LAST_ASSISTANT_TURN:
            last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=-1)
            last_question = max((i for i in range(last) if messages[i].role == "user"), default=-1)
            chosen = [last_question < i and m.role == "assistant" for i, m in enumerate(messages)]
        case TrainOnWhat.ALL_ASSISTANT_MESSAGES:
            chosen = [m.role == "assistant" for m in messages]
        case TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES:
            chosen = [m.role in ("user", "system") for m in messages]
        case TrainOnWhat.CUSTOMIZED:
            chosen = [bool(m.trainable) for m in messages]
        case TrainOnWhat.ALL_MESSAGES | TrainOnWhat.ALL_TOKENS:
            chosen = [True] * len(messages)
    return [m.weight if trained else 0.0 for m, trained in zip(messages, chosen, strict=True)]
