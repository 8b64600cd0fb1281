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
    match mode:
        case TrainOnWhat.LAST_ASSISTANT_MESSAGE:
            chosen = [i == len(messages) - 1 and m.role == "assistant" for i, m in enumerate(messages)]
        case TrainOnWhat.LAST_ASSISTANT_TURN:
            chosen = [i > conversation.last_user and m.role == "assistant" for i, m in enumerate(messages)]
        case TrainOnWhat.ALL_ASSISTANT_MESSAGES:
            chosen = [m.role == "assistant" for m in messages]
        case TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES:
            chosen = [m.role in ("user", "system") for m in messages]
        case TrainOnWhat.CUSTOMIZED:
            chosen = [bool(m.trainable) for m in messages]
        case TrainOnWhat.ALL_MESSAGES | TrainOnWhat.ALL_TOKENS:
            chosen = [True] * len(messages)
    return [m.weight if trained else 0.0 for m, trained in zip(messages, chosen, strict=True)]
