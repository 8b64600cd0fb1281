"""What trains: `TrainOnWhat` as one weight for each message, and a factor for each part of it."""

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
"""The parts whose weight is not a matter of taste."""
_WHOLE = dict.fromkeys(Part, 1.0) | {Part.IMAGE: 0.0}


class TokenWeights(NamedTuple):
    """A token weighs what its message weighs times what its part weighs."""

    of_message: list[float]
    of_part: dict[Part, float]

    def of(self, kinds: Iterable[tuple[int, Part]]) -> list[float]:
        """The weights of tokens of a message and part; what is of no message (-1) is scaffold."""
        of_part = self.of_part
        of_message = [*self.of_message, of_part[Part.SCAFFOLD]]  # the last is that of message -1
        return [of_message[message] * of_part[part] for message, part in kinds]


def weights_of(
    conversation: CheckedConversation,
    train_on_what: TrainOnWhat | str,
    part_weights: Mapping[Part | str, float] | None = None,
) -> TokenWeights:
    """What the tokens of a conversation weigh.

    Raises:
        RenderError: an unknown mode or part; `trainable` missing from a message in CUSTOMIZED, or present in another
            mode.
    """
    of_message = message_weights(conversation, train_on_what)
    of_part = _WHOLE.copy()
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
    """(number of messages,): what each message's own tokens weigh.

    Raises:
        RenderError: an unknown mode; `trainable` missing from a message in CUSTOMIZED, or present in another mode.
    """
    try:
        mode = TrainOnWhat(train_on_what)
    except ValueError:
        raise RenderError(f"train_on_what={train_on_what!r}; known are {', '.join(TrainOnWhat)}") from None
    messages = conversation.messages
    marked = [m.trainable is not None for m in messages]
    if mode is TrainOnWhat.CUSTOMIZED:
        if not all(marked):
            missing = marked.index(False)
            raise RenderError(f"messages[{missing}]: train_on_what='customized' needs 'trainable' on every message")
    elif any(marked):
        first = marked.index(True)
        raise RenderError(
            f"messages[{first}] has 'trainable', which train_on_what={mode.value!r} does not read; use 'customized'"
        )
    match mode:
        case TrainOnWhat.LAST_ASSISTANT_MESSAGE:
            chosen = [i == len(messages) - 1 and m.role == "assistant" for i, m in enumerate(messages)]
        case TrainOnWhat.LAST_ASSISTANT_TURN:
            last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=-1)
            asked = max((i for i in range(last) if messages[i].role == "user"), default=-1)
            chosen = [i > asked and m.role == "assistant" for i, m in enumerate(messages)]
        case TrainOnWhat.ALL_ASSISTANT_MESSAGES:
            chosen = [m.role == "assistant" for m in messages]
        case TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES:
            chosen = [m.role in ("user", "system") for m in messages]
        case TrainOnWhat.CUSTOMIZED:
            chosen = [bool(m.trainable) for m in messages]
        case TrainOnWhat.ALL_MESSAGES | TrainOnWhat.ALL_TOKENS:
            chosen = [True] * len(messages)
    return [m.weight if trained else 0.0 for m, trained in zip(messages, chosen, strict=True)]
