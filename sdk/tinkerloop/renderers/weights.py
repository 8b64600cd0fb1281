"""`TrainOnWhat` as one weight for each message."""

from __future__ import annotations

from tinkerloop.errors import RenderError
from tinkerloop.renderers.conversation import Conversation
from tinkerloop.renderers.types import TrainOnWhat


def message_weights(conversation: Conversation, train_on_what: TrainOnWhat | str) -> list[float]:
    """(number of messages,): what each message's own tokens weigh.

    Raises:
        RenderError: an unknown mode; `trainable` missing from a message in CUSTOMIZED, or present in another mode.
    """
    try:
        mode = TrainOnWhat(train_on_what)
    except ValueError:
        raise RenderError(f"train_on_what={train_on_what!r}; known are {', '.join(TrainOnWhat)}") from None
    messages = conversation.messages
    marked = [i for i, m in enumerate(messages) if m.trainable is not None]
    if mode is TrainOnWhat.CUSTOMIZED:
        if len(marked) < len(messages):
            missing = min(set(range(len(messages))) - set(marked))
            raise RenderError(f"messages[{missing}]: train_on_what='customized' needs 'trainable' on every message")
    elif marked:
        raise RenderError(
            f"messages[{marked[0]}] has 'trainable', which train_on_what={mode.value!r} does not read; use 'customized'"
        )
    last = len(messages) - 1

    def chosen(i: int, role: str) -> bool:
        match mode:
            case TrainOnWhat.LAST_ASSISTANT_MESSAGE:
                return i == last and role == "assistant"
            case TrainOnWhat.LAST_ASSISTANT_TURN:
                return i > conversation.last_user and role == "assistant"
            case TrainOnWhat.ALL_ASSISTANT_MESSAGES:
                return role == "assistant"
            case TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES:
                return role in ("user", "system")
            case TrainOnWhat.CUSTOMIZED:
                return bool(messages[i].trainable)
            case TrainOnWhat.ALL_MESSAGES | TrainOnWhat.ALL_TOKENS:
                return True

    return [m.weight if chosen(i, m.role) else 0.0 for i, m in enumerate(messages)]
