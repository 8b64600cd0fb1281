"""`Renderer`, the class for users: `RendererCore` plus splitting into examples, episodes and OpenAI messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tinkerloop.messages import Message, ToolSpec
from tinkerloop.renderers.appending import AppendingRenderer
from tinkerloop.renderers.episode import Episode
from tinkerloop.renderers.format import Options
from tinkerloop.renderers.openai_messages import from_openai_message, to_openai_message
from tinkerloop.renderers.pieces import Part
from tinkerloop.renderers.rendered import Rendered
from tinkerloop.renderers.splitting import split_examples
from tinkerloop.renderers.train_on_what import TrainOnWhat, token_weights

__all__ = ["Options", "Renderer"]


class Renderer(AppendingRenderer):
    """Converts messages to tokens and sampled tokens back to messages, in one chat format."""

    def build_supervised_examples(
        self,
        messages: Sequence[Mapping[str, Any]],
        train_on_what: TrainOnWhat | str = TrainOnWhat.LAST_ASSISTANT_TURN,
        *,
        tools: Sequence[Any] | None = None,
        part_weights: Mapping[Part | str, float] | None = None,
        allow_zero_weight: bool = False,
    ) -> list[Rendered]:
        """Return examples in which every trained reply follows exactly the prompt from which it would be sampled.

        The result is one example if the format keeps history as it was sampled, and several if it rewrites history. If
        a message of another role is trained too, the result is always one example. Arguments and errors are those of
        `build_supervised_example`.
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
        """Begin an `Episode`: a conversation of several turns in which sampled ids are never changed."""
        return Episode(self, messages, tools, on_rewrite=on_rewrite)

    def create_conversation_prefix_with_tools(
        self, tools: Sequence[ToolSpec], system_prompt: str = ""
    ) -> list[Message]:
        """Return a list of one system message that declares `tools`, to put at the start of a conversation.

        Without a system prompt, the conversation gets the same tokens as with the argument `tools`.
        """
        return [Message(role="system", content=system_prompt, tools=list(tools))]

    def to_openai_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return a message in the shape of OpenAI's API, as a JSON-serializable dictionary."""
        return to_openai_message(message)

    def from_openai_message(self, message: Mapping[str, Any]) -> Message:
        """Return a message of OpenAI's API in the shape of `parse_response`. Inverse of `to_openai_message`."""
        return from_openai_message(message)
