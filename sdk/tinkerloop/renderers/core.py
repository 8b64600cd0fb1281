"""`RendererCore`: one conversation to tokens, and one sampled reply back to a message, for every chat format.

A family states its `Format`: how messages are written, as pieces, and what replies consist of, as a grammar. Supervised
examples, prompts, weights, stop sequences, parsing and streaming all follow from these two, so they cannot disagree.

`splitting` and `episode` work on this class; `base.Renderer`, which users hold, adds what these two do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain, repeat
from operator import index
from typing import TYPE_CHECKING, Any

from tinkerloop._lazy import tinker
from tinkerloop.errors import RenderError, ZeroWeightError
from tinkerloop.messages import CheckedConversation, read_conversation
from tinkerloop.renderers.assembly import Assembler, Encode
from tinkerloop.renderers.format import Format, Options
from tinkerloop.renderers.parsing.parsed import MessageDelta, Parsed
from tinkerloop.renderers.parsing.reply_parser import ReplyParser
from tinkerloop.renderers.parsing.vocabulary import Vocabulary
from tinkerloop.renderers.pieces import SEAM, Part, Piece, Pieces, scaffold, text
from tinkerloop.renderers.rendered import Rendered
from tinkerloop.renderers.train_on_what import TokenWeights, TrainOnWhat, weights_of
from tinkerloop.tokenizers.encoders import Encoder, encoder_of

if TYPE_CHECKING:
    from tinkerloop.tokenizers.loading import Tokenizer


class RendererCore(Format):
    """Messages to tokens and back, for one chat format."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        options: Options | None = None,
        *,
        name: str | None = None,
        image_processor: Any = None,
        model_name: str | None = None,
        max_length: int | None = None,
        encoder: Encoder | None = None,
    ):
        self.tokenizer = tokenizer
        self._encoder = encoder_of(tokenizer) if encoder is None else encoder
        self.options: Any = self.Options() if options is None else options
        self.name = name or self.family
        self.image_processor = image_processor
        self.model_name = model_name
        self.max_length = max_length
        self._prepare()

    def _prepare(self) -> None:
        """Everything that follows from the identity."""
        self.grammar = self.make_grammar()
        control = dict.fromkeys((*self.control, *sorted(self.grammar.control)))
        self._assembler = Assembler(self._encoder, control, self.name)
        self._vocabulary = Vocabulary(self.grammar, self._encoder, self._assembler.ids)

    # ---- rendering

    def pieces(self, conversation: CheckedConversation) -> list[tuple[int, Piece]]:
        """The whole conversation as (message index, piece), -1 for what is of no message."""
        pieces = list(zip(repeat(-1), self.preamble(conversation)))
        for i, message in enumerate(conversation.messages):
            turn = self._assistant_turn if message.role == "assistant" else self.message
            pieces += zip(repeat(i), turn(conversation, i))
        return pieces

    def _assistant_turn(self, conversation: CheckedConversation, index: int) -> Pieces:
        seam = (SEAM,) if conversation.is_final(index) else ()
        opening, reply = self.opening(conversation, index), self.sampled_reply(conversation, index)
        return chain(opening, seam, reply, self.after_reply(conversation, index))

    def sampled_reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        """Return the pieces of reply `index`, as `Format.reply` does.

        Raises:
            RenderError: the reply is the last of its conversation and reasons, which its prompt rules out.
        """
        reasons = conversation[index].reasoning and conversation.is_final(index)
        if reasons and self.rules_out_reasoning(conversation, index):
            raise self.reasoning_refused(index)
        return self.reply(conversation, index)

    def build_supervised_example(
        self,
        messages: Sequence[Mapping[str, Any]],
        train_on_what: TrainOnWhat | str = TrainOnWhat.LAST_ASSISTANT_MESSAGE,
        *,
        tools: Sequence[Any] | None = None,
        part_weights: Mapping[Part | str, float] | None = None,
        allow_zero_weight: bool = False,
    ) -> Rendered:
        """A conversation as tokens and weights.

        Args:
            messages: the conversation, in OpenAI's or the Cookbook's shape.
            train_on_what: which messages are learned; a message's `weight` multiplies.
            tools: declarations of the tools the assistant may call.
            part_weights: multiplies the weight of parts, e.g. `{"reasoning": 0, "tool_call": 1}`.
            allow_zero_weight: whether an example in which nothing is learned is wanted.

        Raises:
            RenderError: messages that this format cannot say.
            ZeroWeightError: nothing would be learned.
        """
        conversation = self.read(messages, tools)
        example = self.example(conversation, weights_of(conversation, train_on_what, part_weights))
        return self._with_weight([example], train_on_what, allow_zero_weight)[0]

    def _with_weight(self, examples: list[Rendered], train_on_what: TrainOnWhat | str, allow: bool) -> list[Rendered]:
        if not allow and not any(any(example.marks.weights) for example in examples):
            raise ZeroWeightError(
                f"train_on_what={TrainOnWhat(train_on_what).value!r} trains nothing in this conversation; pass "
                "allow_zero_weight=True if that is meant",
                field="weights",
            )
        return examples

    def example(
        self, conversation: CheckedConversation, weights: TokenWeights, encode: Encode | None = None
    ) -> Rendered:
        """A finished conversation, weighed. `encode` is as in `Assembler.assemble`."""
        pieces = self.pieces(conversation)
        while pieces and pieces[-1][1].part is Part.SCAFFOLD and not pieces[-1][1].text.strip():
            pieces.pop()  # what separates the last turn from a next one: an example ends with what ends its last turn
        example = self._assembler.assemble(pieces, weights, self.max_length, encode)
        if self.disables_reasoning:  # also of earlier replies, where a format keeps their reasoning
            for (message, part), weight in zip(example.marks.kinds, example.marks.weights, strict=True):
                if weight and part is Part.REASONING:
                    raise self.reasoning_refused(message)
        return example

    def assemble(self, pieces: Iterable[tuple[int, Piece]]) -> Rendered:
        """Pieces as tokens without weight."""
        return self._assembler.assemble(pieces, max_length=self.max_length)

    def assemble_prompt(
        self, conversation: CheckedConversation, role: str = "assistant", prefill: str | None = None
    ) -> Rendered:
        """A conversation and the opening of the next turn, as tokens."""
        return self.assemble(self._prompt(conversation, role, prefill))

    def build_generation_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        role: str = "assistant",
        prefill: str | None = None,
        *,
        tools: Sequence[Any] | None = None,
    ) -> tinker.ModelInput:
        """The tokens after which a model writes the next turn.

        Args:
            role: who speaks next.
            prefill: text that the turn begins with; pass it to `parse_response` too.
        """
        return self.assemble_prompt(self.read(messages, tools, prompting=True), role, prefill).model_input

    def _prompt(self, conversation: CheckedConversation, role: str, prefill: str | None) -> list[tuple[int, Piece]]:
        pieces, index = self.pieces(conversation), len(conversation)
        if role == "assistant":
            pieces += zip(repeat(index), self.opening(conversation, index))
        elif role in self.roles:
            pieces.append((index, scaffold(self.header(role))))
        else:
            raise RenderError(f"{self.name} has no role {role!r}; known are {', '.join(sorted(self.roles))}")
        if prefill:
            pieces += ((index, SEAM), (index, text(prefill)))
        return pieces

    def read(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, *, prompting: bool = False
    ) -> CheckedConversation:
        """Messages, checked for what this format can say."""
        conversation = read_conversation(messages, tools, prompting=prompting, lift=self.lifted)
        roles = [message.role for message in conversation.messages]
        if not self.roles.issuperset(roles):
            i, role = next((i, role) for i, role in enumerate(roles) if role not in self.roles)
            known = ", ".join(sorted(self.roles))
            raise RenderError(f"messages[{i}]: {self.name} has no role {role!r}; known are {known}")
        if not conversation.messages and not prompting:
            raise RenderError("there are no messages")
        return conversation

    # ---- replies

    def get_stop_sequences(self) -> list[int] | list[str]:
        """What sampling stops at: token ids, or strings for a format that ends turns with text."""
        if self.grammar.stop_texts:
            return list(self.grammar.stop_texts)
        return [self._assembler.ids[token] for token in self.grammar.stops]

    def parser(
        self,
        *,
        prefill: str | None = None,
        tools: Sequence[Any] | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
    ) -> ReplyParser:
        """A parser for a reply to this format's prompt: `feed` it ids as they come, then `finish` it.

        Args:
            prefill: the prefill of the prompt, which becomes part of the message.
            tools: declarations; they give arguments their types where the format does not write them.
            messages: the conversation that the reply answers, for the few formats in which a prompt begins the reply
                otherwise after a tool's result; by default the reply answers a user.
        """
        return self.parser_of(self.read(messages or _A_QUESTION, tools, prompting=True), prefill)

    def parser_of(self, conversation: CheckedConversation, prefill: str | None = None) -> ReplyParser:
        """The parser of a reply to this conversation."""
        parser = self.make_parser(conversation)
        primer = self.primer(conversation, len(conversation))
        begun = (scaffold(primer), SEAM, text(prefill or "")) if primer or prefill else ()
        parser.prime(self.assemble(zip(repeat(0), begun)).tokens if begun else ())
        return parser

    def make_parser(self, conversation: CheckedConversation) -> ReplyParser:
        """An unprimed parser, for families that read replies with a machine of their own."""
        return ReplyParser(self.grammar, self._vocabulary, tools=conversation.tools)

    def parse_response(
        self,
        response: Iterable[int],
        *,
        prefill: str | None = None,
        tools: Sequence[Any] | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
    ) -> Parsed:
        """Sampled ids as a message and the way it ended: `message, termination = renderer.parse_response(ids)`.

        Never raises for any ids. What cannot be read is kept: `unparsed_tool_calls` in the message, and `spans`, which
        account for every id. The arguments are those of `parser`.
        """
        parser = self.parser(prefill=prefill, tools=tools, messages=messages)
        parser.feed(response)
        return parser.finish()[1]

    def parse_response_streaming(
        self,
        response: Iterable[int],
        *,
        prefill: str | None = None,
        tools: Sequence[Any] | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
    ) -> Iterator[MessageDelta]:
        """The deltas of a whole reply, and at the end the message; `parser` takes ids as they come."""
        parser = self.parser(prefill=prefill, tools=tools, messages=messages)
        ids = list(map(index, response))
        for start in range(0, len(ids), 64):
            yield from parser.feed(ids[start : start + 64])
        yield from parser.finish()[0]

    def decode(self, ids: Iterable[int]) -> str:
        """The text that ids spell, control tokens by their names; never raises."""
        return self._encoder.decode_bytes(list(ids)).decode("utf-8", "replace")

    # ---- identity

    def fingerprint(self) -> str:
        """A short hash of all that decides the tokens: family, version, options, vocabulary."""
        identity = {
            "family": self.family,
            "version": self.version,
            "options": asdict(self.options),
            "vocabulary": [self._encoder.encode(_SAMPLE), self._assembler.ids],
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        for derived in ("grammar", "_encoder", "_assembler", "_vocabulary"):
            state.pop(derived, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._encoder = encoder_of(self.tokenizer)
        self._prepare()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.options})"


_A_QUESTION = ({"role": "user", "content": ""},)
"""What a reply answers unless the caller says so."""

_SAMPLE = 'The quick brown fox, 1234567890 times:\n\n\tdéjà vu — 你好 👋🏽 {"a": [1, null]}'
"""Text whose ids tell vocabularies apart."""
