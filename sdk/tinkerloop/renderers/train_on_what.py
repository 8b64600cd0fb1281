"""Token weights: `TrainOnWhat` determines the weight of each message, and each part of a message has a factor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

from tinkerloop.errors import RenderError
from tinkerloop.messages import CheckedConversation
from tinkerloop.renderers.pieces import Part


class TrainOnWhat(StrEnum):
    """Which tokens of a conversation carry weight. Role headers and separators carry weight only with `ALL_TOKENS`.

    The default depends on the function. It is the same as in the Tinker Cookbook, so that the same call trains the same
    tokens:

    - `Renderer.build_supervised_example`: `LAST_ASSISTANT_MESSAGE`
    - `Renderer.build_supervised_examples`: `LAST_ASSISTANT_TURN`
    - `conversation_to_datum`, `conversation_datums`, `render_files`, `ChatDatasetBuilderCommonConfig` and
      `tinkerloop inspect`: `ALL_ASSISTANT_MESSAGES`
    """

    LAST_ASSISTANT_MESSAGE = "last_assistant_message"
    LAST_ASSISTANT_TURN = "last_assistant_turn"
    """The last assistant message, and earlier ones after the same user message, e.g. those with tool calls."""
    ALL_ASSISTANT_MESSAGES = "all_assistant_messages"
    ALL_MESSAGES = "all_messages"
    ALL_TOKENS = "all_tokens"
    ALL_USER_AND_SYSTEM_MESSAGES = "all_user_and_system_messages"
    CUSTOMIZED = "customized"
    """The messages whose `trainable` is true."""


_FIXED = (Part.SCAFFOLD, Part.IMAGE)
"""The parts whose weight the user cannot set."""
_FULL_WEIGHT = dict.fromkeys(Part, 1.0) | {Part.IMAGE: 0.0}


class TokenWeights(NamedTuple):
    """The weights of messages and the factors of parts. The weight of a token is the product of the two."""

    of_message: list[float]
    of_part: dict[Part, float]

    def for_labels(self, labels: Iterable[tuple[int, Part]]) -> list[float]:
        """Return one weight for each (message index, part). Index -1 (no message) has the weight of scaffold."""
        of_part = self.of_part
        of_message = [*self.of_message, of_part[Part.SCAFFOLD]]  # index -1 is the last element
        return [of_message[message] * of_part[part] for message, part in labels]


def token_weights(
    conversation: CheckedConversation,
    train_on_what: TrainOnWhat | str,
    part_weights: Mapping[Part | str, float] | None = None,
) -> TokenWeights:
    """Return the weights of a conversation's messages and the factors of their parts.

    Args:
        train_on_what: which messages carry weight. The weight of such a message is its `weight`, 1 by default.
        part_weights: factors for parts, e.g. `{"reasoning": 0}`. Parts that are not given have the factor 1.

    Raises:
        RenderError: the mode or a part is unknown; a factor is not a finite number; `trainable` is missing from a
            message in mode `CUSTOMIZED`, or given in another mode.
    """
    of_message = message_weights(conversation, train_on_what)
    of_part = _FULL_WEIGHT.copy()
    for key, value in (part_weights or {}).items():
        part = key if isinstance(key, Part) else Part.__members__.get(str(key).upper(), Part.SCAFFOLD)
        if part in _FIXED:
            known = ", ".join(p.name.lower() for p in Part if p not in _FIXED)
            raise RenderError(f"part_weights has the unknown part {key!r}; expected parts are {known}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf"):
            raise RenderError(f"part_weights: the weight of {key!r} must be a finite number, got {value!r}")
        of_part[part] = float(value)
    of_part[Part.SCAFFOLD] = float(train_on_what == TrainOnWhat.ALL_TOKENS)
    return TokenWeights(of_message, of_part)


def message_weights(conversation: CheckedConversation, train_on_what: TrainOnWhat | str) -> list[float]:
    """Return the weight of each message.

    For messages of user, assistant, user, assistant, the result is `[0, 1, 0, 1]` with `ALL_ASSISTANT_MESSAGES` and
    `[0, 0, 0, 1]` with `LAST_ASSISTANT_MESSAGE`.

    Raises:
        RenderError: the mode is unknown; `trainable` is missing from a message in mode `CUSTOMIZED`, or given in
            another mode.
    """
    try:
        mode = TrainOnWhat(train_on_what)
    except ValueError:
        raise RenderError(
            f"unknown train_on_what {train_on_what!r}; expected one of {', '.join(TrainOnWhat)}"
        ) from None
    messages = conversation.messages
    has_trainable = [m.trainable is not None for m in messages]
    if mode is TrainOnWhat.CUSTOMIZED:
        if not all(has_trainable):
            missing = has_trainable.index(False)
            raise RenderError(
                f"messages[{missing}] has no 'trainable'; train_on_what='customized' needs 'trainable' on every message"
            )
    elif any(has_trainable):
        first = has_trainable.index(True)
        raise RenderError(
            f"messages[{first}] has 'trainable', which train_on_what={mode.value!r} would ignore; use 'customized' or "
            "remove 'trainable'"
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
