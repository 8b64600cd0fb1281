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
from tinkerloop.message_checks import read_conversation
from tinkerloop.messages import CheckedConversation
from tinkerloop.renderers.assembly import Assembler, Encode
from tinkerloop.renderers.format import Format, Options
from tinkerloop.renderers.parsing.parsed import MessageDelta, Parsed
from tinkerloop.renderers.parsing.reply_parser import ReplyParser
from tinkerloop.renderers.parsing.token_texts import TokenTexts
from tinkerloop.renderers.pieces import SEAM, Part, Piece, Pieces, scaffold, text
from tinkerloop.renderers.rendered import Rendered
from tinkerloop.renderers.train_on_what import TokenWeights, TrainOnWhat, token_weights
from tinkerloop.tokenizers.encoders import Encoder, encoder_of

if TYPE_CHECKING:
    from tinkerloop.tokenizers.loading import Tokenizer


class RendererCore(Format):
    """Renders one conversation and parses one reply, in one chat format.

    Args:
        tokenizer: a tokenizer that has the format's control tokens.
        options: the family's choices; its defaults if None.
        name: the name in errors; the family's if None.
        image_processor: counts the tokens of images; found by `model_name` if None.
        max_length: the default of `Rendered.to_datum`.
        encoder: encodes text; by default the fastest one that agrees with the tokenizer.

    Raises:
        RenderError: the tokenizer lacks a control token of the format.
    """

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
        """Make what is derived from tokenizer and options; it is not pickled but made again."""
        self.grammar = self.make_grammar()
        control = dict.fromkeys((*self.control, *sorted(self.grammar.control)))
        self._assembler = Assembler(self._encoder, control, self.name)
        self._token_texts = TokenTexts(self.grammar, self._encoder, self._assembler.ids)

    # ---- rendering

    def pieces(self, conversation: CheckedConversation) -> list[tuple[int, Piece]]:
        """Return the whole conversation as (message index, piece); the index is -1 for pieces of no message."""
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
        """Return a finished conversation as tokens and weights.

        `[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]` becomes, with `qwen3_instruct`,
        `<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nYo<|im_end|>`, with weight 1 on `Yo<|im_end|>`.

        Args:
            messages: the conversation, in OpenAI's or the Cookbook's shape.
            train_on_what: the messages that carry weight; a message's own `weight` is a factor.
            tools: declarations of the tools the assistant may call.
            part_weights: factors of the weights of parts, e.g. `{"reasoning": 0, "tool_call": 1}`.
            allow_zero_weight: return an example without any weight instead of raising.

        Raises:
            RenderError: messages that this format cannot express.
            ZeroWeightError: no token carries weight.
        """
        conversation = self.read(messages, tools)
        example = self.example(conversation, token_weights(conversation, train_on_what, part_weights))
        return self._require_weight([example], train_on_what, allow_zero_weight)[0]

    def _require_weight(
        self, examples: list[Rendered], train_on_what: TrainOnWhat | str, allow_zero: bool
    ) -> list[Rendered]:
        if not allow_zero and not any(any(example.span_table.weights) for example in examples):
            raise ZeroWeightError(
                f"train_on_what={TrainOnWhat(train_on_what).value!r} trains nothing in this conversation; pass "
                "allow_zero_weight=True if that is intended",
                field="weights",
            )
        return examples

    def example(
        self, conversation: CheckedConversation, weights: TokenWeights, encode: Encode | None = None
    ) -> Rendered:
        """Return a finished, checked conversation with weights. `encode` is as in `Assembler.assemble`.

        Raises:
            RenderError: it cannot be expressed, or reasoning carries weight that no prompt of this format allows.
        """
        pieces = self.pieces(conversation)
        while pieces and pieces[-1][1].part is Part.SCAFFOLD and not pieces[-1][1].text.strip():
            pieces.pop()  # the separator before a next turn: an example ends with the stop token of its last turn
        example = self._assembler.assemble(pieces, weights, self.max_length, encode)
        if self.disables_reasoning:  # also of earlier replies, where a format keeps their reasoning
            for (message, part), weight in zip(example.span_table.labels, example.span_table.weights, strict=True):
                if weight and part is Part.REASONING:
                    raise self.reasoning_refused(message)
        return example

    def assemble(self, pieces: Iterable[tuple[int, Piece]]) -> Rendered:
        """Return (message index, piece) pairs as tokens without weight."""
        return self._assembler.assemble(pieces, max_length=self.max_length)

    def assemble_prompt(
        self, conversation: CheckedConversation, role: str = "assistant", prefill: str | None = None
    ) -> Rendered:
        """Return a conversation and the opening of the next turn as tokens; see `build_generation_prompt`."""
        return self.assemble(self._prompt(conversation, role, prefill))

    def build_generation_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        role: str = "assistant",
        prefill: str | None = None,
        *,
        tools: Sequence[Any] | None = None,
    ) -> tinker.ModelInput:
        """Return the tokens after which a model samples the next turn.

        `[{"role": "user", "content": "Hi"}]` becomes, with `qwen3_instruct`,
        `<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n`.

        Args:
            messages: the conversation so far, in OpenAI's or the Cookbook's shape.
            role: the role that speaks next.
            prefill: text that the turn begins with; pass it to `parse_response` too.
            tools: declarations of the tools the assistant may call.

        Raises:
            RenderError: messages that this format cannot express, or a role that it does not have.
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
        """Return the messages, checked and normalized.

        Args:
            prompting: a reply is asked for after the messages, which may then be empty.

        Raises:
            RenderError: a malformed message, or a role that this format does not have.
        """
        conversation = read_conversation(messages, tools, prompting=prompting, normalize=self.normalize)
        roles = [message.role for message in conversation.messages]
        if not self.roles.issuperset(roles):
            i, role = next((i, role) for i, role in enumerate(roles) if role not in self.roles)
            known = ", ".join(sorted(self.roles))
            raise RenderError(f"messages[{i}]: {self.name} has no role {role!r}; known are {known}")
        if not conversation.messages and not prompting:
            raise RenderError("expected at least one message, got an empty list")
        return conversation

    # ---- replies

    def get_stop_sequences(self) -> list[int] | list[str]:
        """Return what sampling stops at: token ids, or strings for a format that ends turns with text."""
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
        """Return a parser for one reply: `feed` it ids as they are sampled, then `finish` it.

        Args:
            prefill: the prefill of the prompt, which becomes part of the message.
            tools: declarations; they give arguments their types where the format does not write types.
            messages: the conversation that the reply answers. A few formats need it, because their prompts end in
                another way after a tool's result; by default the reply answers a user.
        """
        return self.parser_for(self.read(messages or _ANY_QUESTION, tools, prompting=True), prefill)

    def parser_for(self, conversation: CheckedConversation, prefill: str | None = None) -> ReplyParser:
        """Return a parser for a reply to this checked conversation."""
        parser = self.make_parser(conversation)
        primer = self.primer(conversation, len(conversation))
        beginning = (scaffold(primer), SEAM, text(prefill or "")) if primer or prefill else ()
        parser.prime(self.assemble(zip(repeat(0), beginning)).tokens if beginning else ())
        return parser

    def make_parser(self, conversation: CheckedConversation) -> ReplyParser:
        """Return a parser that has read nothing yet; families with a parser of their own override this."""
        return ReplyParser(self.grammar, self._token_texts, tools=conversation.tools)

    def parse_response(
        self,
        response: Iterable[int],
        *,
        prefill: str | None = None,
        tools: Sequence[Any] | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
    ) -> Parsed:
        """Parse sampled ids: `message, termination = renderer.parse_response(ids)`.

        The ids of `<think>\\nhm\\n</think>\\n\\nYo<|im_end|>` become
        `{"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Yo"}]}`.

        No ids make this raise. Calls that cannot be read are in the message's `unparsed_tool_calls`, and the result's
        `spans` cover every id. The arguments are those of `parser`.
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
        """Yield the deltas of a whole reply, and then the message. To parse ids as they are sampled, use `parser`."""
        parser = self.parser(prefill=prefill, tools=tools, messages=messages)
        ids = list(map(index, response))
        for start in range(0, len(ids), 64):
            yield from parser.feed(ids[start : start + 64])
        yield from parser.finish()[0]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text that ids spell, control tokens by their names. No ids make this raise."""
        return self._encoder.decode_bytes(list(ids)).decode("utf-8", "replace")

    # ---- identity

    def fingerprint(self) -> str:
        """Return a short hash of everything that decides the tokens: family, version, options, vocabulary."""
        identity = {
            "family": self.family,
            "version": self.version,
            "options": asdict(self.options),
            "vocabulary": [self._encoder.encode(_SAMPLE), self._assembler.ids],
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        for derived in ("grammar", "_encoder", "_assembler", "_token_texts"):
            state.pop(derived, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._encoder = encoder_of(self.tokenizer)
        self._prepare()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.options})"


_ANY_QUESTION = ({"role": "user", "content": ""},)
"""The conversation that a reply answers if the caller gives none."""

_SAMPLE = 'The quick brown fox, 1234567890 times:\n\n\tdéjà vu — 你好 👋🏽 {"a": [1, null]}'
"""Text whose ids differ between vocabularies."""
