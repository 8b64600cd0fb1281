"""`Renderer`, the class that users hold: the core, and on top of it several examples, episodes and OpenAI messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tinkerloop.messages import Message, ToolSpec
from tinkerloop.renderers.core import RendererCore
from tinkerloop.renderers.episode import Episode
from tinkerloop.renderers.format import Options
from tinkerloop.renderers.openai_messages import from_openai_message, to_openai_message
from tinkerloop.renderers.pieces import Part
from tinkerloop.renderers.rendered import Rendered
from tinkerloop.renderers.splitting import split_examples
from tinkerloop.renderers.train_on_what import TrainOnWhat, token_weights

__all__ = ["Options", "Renderer"]


class Renderer(RendererCore):
    """Messages to tokens and back, for one chat format."""

    def build_supervised_examples(
        self,
        messages: Sequence[Mapping[str, Any]],
        train_on_what: TrainOnWhat | str = TrainOnWhat.LAST_ASSISTANT_TURN,
        *,
        tools: Sequence[Any] | None = None,
        part_weights: Mapping[Part | str, float] | None = None,
        allow_zero_weight: bool = False,
    ) -> list[Rendered]:
        """Return examples in which every trained reply follows exactly the prompt it would be sampled from.

        This is one example if the format keeps history as it was sampled, several if it rewrites history. A mode that
        trains other messages than replies gives one. Arguments and errors are those of `build_supervised_example`.
        """
        conversation = self.read(messages, tools)
        weights = token_weights(conversation, train_on_what, part_weights)
        trained = [i for i, weight in enumerate(weights.of_message) if weight]
        if trained and all(conversation.role(i) == "assistant" for i in trained):
            examples = split_examples(self, conversation, weights, trained, self._encoder.encode)
        else:
            examples = [self.example(conversation, weights)]
        return self._require_weight(examples, train_on_what, allow_zero_weight)

    def episode(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        *,
        on_rewrite: Literal["refuse", "segment"] = "refuse",
    ) -> Episode:
        """Begin a conversation of several turns in which sampled ids stay as they were sampled; see `Episode`."""
        return Episode(self, messages, tools, on_rewrite=on_rewrite)

    def create_conversation_prefix_with_tools(
        self, tools: Sequence[ToolSpec], system_prompt: str = ""
    ) -> list[Message]:
        """Return messages to put before a conversation so that it declares `tools`: one system message."""
        return [Message(role="system", content=system_prompt, tools=list(tools))]

    def to_openai_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return a message in the shape of OpenAI's API, in plain JSON values."""
        return to_openai_message(message)

    def from_openai_message(self, message: Mapping[str, Any]) -> Message:
        """Return a message of OpenAI's API as `parse_response` returns messages; undoes `to_openai_message`."""
        return from_openai_message(message)
