"""`RendererCore`: converts one conversation to tokens and one sampled reply to a message, in any chat format.

A chat format implements `Format`: how messages are written, as pieces, and what replies consist of, as a grammar.
Supervised examples, prompts, weights, stop sequences, parsing and streaming are all derived from these two, so they
cannot contradict each other.

`splitting` and `episode` use this class. `base.Renderer`, the class for users, adds their functions to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import date
from itertools import chain, repeat
from operator import index
from typing import TYPE_CHECKING, Any, Literal, cast

from tinkerloop._lazy import tinker
from tinkerloop.errors import RenderError, ZeroWeightError
from tinkerloop.message_checks import read_conversation
from tinkerloop.messages import CheckedConversation
from tinkerloop.renderers.assembly import Assembler, Encode
from tinkerloop.renderers.format import Format, Options
from tinkerloop.renderers.next_turn import before_text, with_next_turn
from tinkerloop.renderers.parsing.parsed import MessageDelta, Parsed
from tinkerloop.renderers.parsing.reply_parser import ReplyParser
from tinkerloop.renderers.parsing.token_texts import TokenTexts
from tinkerloop.renderers.pieces import SEAM, Part, Piece, Pieces, scaffold, text
from tinkerloop.renderers.rendered import Rendered
from tinkerloop.renderers.train_on_what import TokenWeights, TrainOnWhat, token_weights
from tinkerloop.renderers.written_check import check_all_is_written
from tinkerloop.tokenizers.encoders import Encoder, encoder_of
from tinkerloop.tokenizers.places import Place

if TYPE_CHECKING:
    from tinkerloop.tokenizers.loading import Tokenizer


def check_tags_in_replies(choice: object) -> Literal["refuse", "text"]:
    """Return `choice` if it is a value that the option `tags_in_replies` allows; otherwise raise `RenderError`."""
    if choice not in ("refuse", "text"):
        raise RenderError(f"tags_in_replies must be 'refuse' or 'text', got {choice!r}")
    return cast("Literal['refuse', 'text']", choice)


def _text_of(pieces: Iterable[tuple[int, Piece]]) -> str:
    return "".join([piece.text for _, piece in pieces])


class RendererCore(Format):
    """Renders one conversation and parses one reply, in one chat format.

    Args:
        tokenizer: a tokenizer that has the control tokens of the format (such as `<|im_end|>`). It may lack tokens that
            only some conversations need, such as `<tool_response>`; such conversations then raise `RenderError`.
        options: the options of the format. None means the defaults of the class.
        name: the name of the renderer in error messages. None means `family`.
        image_processor: counts the tokens of images. If None, it is found by `model_name`.
        model_name: the name of the model, used only to find the image processor.
        max_length: the default `max_length` of `Rendered.to_datum`.
        encoder: encodes text. By default, the fastest encoder that gives the same ids as the tokenizer.
        tags_in_replies: what to do with a trained reply whose text or reasoning spells a tag of the format, such as
            `<tool_call>`, and with such a prefill. The tag in the text would be encoded as ordinary text. A model that
            means the tag samples its control token instead. `"refuse"` raises an error. `"text"` keeps the ordinary
            text.

    Raises:
        RenderError: the tokenizer lacks a control token that every reply needs, or `tags_in_replies` is unknown.
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
        tags_in_replies: Literal["refuse", "text"] = "refuse",
    ):
        self.tokenizer = tokenizer
        self._encoder = encoder_of(tokenizer) if encoder is None else encoder
        self.options: Any = self.Options() if options is None else options
        self.name = name or self.family
        self.image_processor = image_processor
        self.model_name = model_name
        self.max_length = max_length
        self.tags_in_replies: Literal["refuse", "text"] = check_tags_in_replies(tags_in_replies)
        self._prepare()

    def _prepare(self) -> None:
        """Create the attributes that are derived from tokenizer and options. Unpickling creates them again."""
        self.grammar = self.make_grammar()
        control = dict.fromkeys((*self.control, *sorted(self.grammar.control)))
        self._assembler = Assembler(self._encoder, control, self.name)
        self._token_texts = TokenTexts(self.grammar, self._encoder, self._assembler.ids)
        # Every reply needs a prompt and an end: look up their tokens now. Other tokens are looked up in the first text.
        self.get_stop_sequences()
        question = read_conversation(_ANY_QUESTION, prompting=True, normalize=self.normalize)
        self.assemble(zip(repeat(0), self.opening(question, 1)))

    # ---- rendering

    def pieces(self, conversation: CheckedConversation) -> list[tuple[int, Piece]]:
        """Return the conversation as (message index, piece) pairs. The index is -1 for pieces of no message."""
        pieces = list(zip(repeat(-1), self.preamble(conversation)))
        for i, message in enumerate(conversation.messages):
            turn = self._assistant_turn if message.role == "assistant" else self.message
            pieces += zip(repeat(i), turn(conversation, i))
        return pieces

    def check_written(
        self, conversation: CheckedConversation, pieces: Sequence[tuple[int, Piece]], first: int = 0
    ) -> None:
        """Check that `pieces` contain every part of the messages from index `first` on, and every declared tool.

        Raises:
            RenderError: a part is missing, and `leaves_out` does not give a reason.
        """
        check_all_is_written(conversation, pieces, format_name=self.name, leaves_out=self.leaves_out, first=first)

    def _assistant_turn(self, conversation: CheckedConversation, index: int) -> Pieces:
        seam = (SEAM,) if conversation.is_final(index) else ()
        opening, reply = self.opening(conversation, index), self.sampled_reply(conversation, index)
        return chain(opening, seam, reply, self.after_reply(conversation, index))

    def sampled_reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        """Like `Format.reply`, but raises if the reply has reasoning that its prompt rules out.

        Raises:
            RenderError: the reply is the last message and has reasoning, although its prompt rules reasoning out.
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

        For example, `[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]` becomes, with
        `qwen3_instruct`, the tokens of `<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nYo<|im_end|>`. The
        tokens of `Yo<|im_end|>` have weight 1, all others 0.

        Args:
            messages: the conversation, in the shape of OpenAI's API or the Tinker Cookbook.
            train_on_what: which messages carry weight. The weight of such a message is its `weight`, 1 by default.
            tools: declarations of the tools that the assistant may call.
            part_weights: factors for the weights of parts, e.g. `{"reasoning": 0, "tool_call": 1}`.
            allow_zero_weight: if all weights are zero, return the example instead of raising.

        Raises:
            RenderError: the format cannot express the messages.
            ZeroWeightError: all weights are zero.
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
        """Return a checked and finished conversation as tokens and weights.

        Args:
            encode: function to use instead of the encoder's `encode`, e.g. an `EncodeCache`.

        Raises:
            RenderError: the format cannot express the conversation; reasoning carries weight although every prompt of
                the format rules reasoning out; or the text of a trained reply spells a tag of the format (see
                `tags_in_replies`).
        """
        pieces = self.pieces(conversation)
        self.check_written(conversation, pieces)
        if self.tags_in_replies == "refuse":
            self._refuse_tags(conversation, pieces, weights)
        last = next((piece.part for _, piece in reversed(pieces) if piece.part is not Part.SCAFFOLD), None)
        while pieces and pieces[-1][1].part is Part.SCAFFOLD and (last is Part.STOP or not pieces[-1][1].text.strip()):
            pieces.pop()  # remove what comes before the next turn: examples end with the last turn's stop token
        example = self._assembler.assemble(pieces, weights, self.max_length, encode, Place.START)
        if self.disables_reasoning:  # check earlier replies too, because some formats keep their reasoning
            for (message, part), weight in zip(example.span_table.labels, example.span_table.weights, strict=True):
                if weight and part is Part.REASONING:
                    raise self.reasoning_refused(message)
        return example

    def _refuse_tags(
        self, conversation: CheckedConversation, pieces: Iterable[tuple[int, Piece]], weights: TokenWeights
    ) -> None:
        """Raise if the text or the reasoning of a trained reply spells a tag of the format, such as `<think>`.

        Only replies that carry weight are checked. Everything else may quote tags: it is not trained, and in a prompt
        a quotation is ordinary text, too. A tag that the tokenizer lacks is ordinary text for the model, too.
        """
        tags = [tag for tag in self.reply_tags if tag in self._assembler.ids]
        for message, piece in pieces:
            if piece.trusted or piece.part not in _PARTS_WITHOUT_TAGS or conversation.role(message) != "assistant":
                continue
            tag = next((tag for tag in tags if tag in piece.text), None)
            if tag is not None and weights.of_message[message] and weights.of_part[piece.part]:
                raise RenderError(
                    f"messages[{message}]: the {piece.part.name.lower()} of this reply spells {tag!r}, which would be "
                    "trained as ordinary text, although a model samples it as a control token; pass tool calls under "
                    "'tool_calls' and reasoning under 'reasoning_content', or train the ordinary text with "
                    "get_renderer(..., tags_in_replies='text'), or with this option of the data set or the recipe"
                )

    def assemble(self, pieces: Iterable[tuple[int, Piece]], place: Place = Place.AFTER_TOKEN) -> Rendered:
        """Convert (message index, piece) pairs to tokens with weight 0. `place` is the place of the first text."""
        return self._assembler.assemble(pieces, max_length=self.max_length, place=place)

    def assemble_prompt(
        self, conversation: CheckedConversation, role: str = "assistant", prefill: str | None = None
    ) -> Rendered:
        """Like `build_generation_prompt`, for a checked conversation: return the prompt as a `Rendered`."""
        return self.assemble(self._prompt(conversation, role, prefill), Place.START)

    def build_generation_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        role: str = "assistant",
        prefill: str | None = None,
        *,
        tools: Sequence[Any] | None = None,
    ) -> tinker.ModelInput:
        """Return the prompt from which a model samples the next turn.

        For example, `[{"role": "user", "content": "Hi"}]` becomes, with `qwen3_instruct`, the tokens of
        `<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n`.

        Args:
            messages: the conversation so far, in the shape of OpenAI's API or the Tinker Cookbook.
            role: the role of the next turn. For any other role than the assistant's, the prompt ends where the text of
                the next message begins.
            prefill: text with which the prompt already begins the next turn. Pass it to `parse_response` too. If the
                prompt opens reasoning (as with `qwen3_5`, `kimi_k25` and `glm4_7`), this is the beginning of the
                reasoning. Otherwise it is the beginning of the text, and the prompt also contains what the format
                writes before the text of a reply without reasoning, such as an empty reasoning block.
            tools: declarations of the tools that the assistant may call.

        Raises:
            RenderError: the format cannot express the messages, or a message of the role after them; or the prefill of
                a reply spells a tag or a stop token of the format (see `tags_in_replies`).
        """
        return self.assemble_prompt(self.read(messages, tools, prompting=True), role, prefill).model_input

    def _prompt(self, conversation: CheckedConversation, role: str, prefill: str | None) -> list[tuple[int, Piece]]:
        if role == "assistant":
            pieces = self.pieces(conversation)
            self.check_written(conversation, pieces)
            pieces += zip(repeat(len(conversation)), self.opening(conversation, len(conversation)))
            return self._prefilled(conversation, pieces, prefill) if prefill else pieces
        if role in self.roles:
            return self._until_text(conversation, role, prefill)
        raise RenderError(
            f"the chat format {self.name} has no role {role!r}; expected one of {', '.join(sorted(self.roles))}"
        )

    def _until_text(self, conversation: CheckedConversation, role: str, prefill: str | None) -> list[tuple[int, Piece]]:
        """Return the pieces of the conversation with a next message of `role`, up to the text of this message."""
        longer = with_next_turn(conversation, role)
        pieces = self.pieces(longer)
        self.check_written(longer, pieces)
        return before_text(pieces, len(conversation), self.name, prefill)

    def _prefilled(
        self, conversation: CheckedConversation, prompt: list[tuple[int, Piece]], prefill: str
    ) -> list[tuple[int, Piece]]:
        """Return the pieces of a prompt for a reply, and of what the format writes before a text, with a prefill.

        The prefill follows the prompt directly if the prompt opens reasoning, and also if the format writes a reply
        otherwise than its prompt begins, as some chat templates do.
        """
        if self.tags_in_replies == "refuse":
            self._refuse_tags_in_prefill(prefill)
        if not self._opens_reasoning(conversation):
            pieces = self._until_text(conversation, "assistant", prefill)
            if _text_of(pieces).startswith(_text_of(prompt)):
                return pieces
        return [*prompt, (len(conversation), SEAM), (len(conversation), text(prefill))]

    def _opens_reasoning(self, conversation: CheckedConversation) -> bool:
        """Return whether the prompt for the next reply opens a reasoning block and does not close it."""
        block, primer = self.grammar.block(Part.REASONING), self.primer(conversation, len(conversation))
        return block is not None and primer.rfind(block.open) > primer.rfind(block.close)

    def _refuse_tags_in_prefill(self, prefill: str) -> None:
        tags = (tag for tag in (*self.reply_tags, *sorted(self.grammar.ends)) if tag in self._assembler.ids)
        tag = next((tag for tag in tags if tag in prefill), None)
        if tag is not None:
            raise RenderError(
                f"the prefill spells {tag!r}, which would be ordinary text in the prompt, although a model samples it "
                "as a control token; remove it, because the prompt contains what the format writes before a text; use "
                "the renderer or the options with which prompts open reasoning to begin it; or keep the ordinary text "
                "with get_renderer(..., tags_in_replies='text')"
            )

    def read(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, *, prompting: bool = False
    ) -> CheckedConversation:
        """Check and normalize messages, and return them as a conversation.

        Args:
            prompting: True if a reply is to be sampled after the messages. The list of messages may then be empty.

        Raises:
            RenderError: a message has the wrong shape or a role that the format does not have, or the messages are
                empty although `prompting` is False.
        """
        conversation = read_conversation(messages, tools, prompting=prompting, normalize=self.normalize)
        roles = [message.role for message in conversation.messages]
        if not self.roles.issuperset(roles):
            i, role = next((i, role) for i, role in enumerate(roles) if role not in self.roles)
            known = ", ".join(sorted(self.roles))
            raise RenderError(
                f"messages[{i}]: the chat format {self.name} has no role {role!r}; expected one of {known}"
            )
        if not conversation.messages and not conversation.tools and not prompting:
            raise RenderError("expected at least one message, got an empty list")
        return conversation

    # ---- replies

    def get_stop_sequences(self) -> list[int] | list[str]:
        """Return the stop sequences for sampling: token ids, or strings if the format ends a turn with text."""
        if self.grammar.stop_texts:
            return list(self.grammar.stop_texts)
        return [self._assembler.id_of(token) for token in self.grammar.stops]

    def parser(
        self,
        *,
        prefill: str | None = None,
        tools: Sequence[Any] | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
    ) -> ReplyParser:
        """Return a parser for one reply. Call `feed` with ids as they are sampled, then `finish`.

        Args:
            prefill: text with which the prompt already begins the reply. It becomes part of the message: of its
                reasoning if the prompt opens reasoning, otherwise of its text.
            tools: tool declarations, used to convert argument values to the declared types if the format writes values
                without types.
            messages: the conversation to which the reply belongs. Only formats whose prompts end differently after a
                tool result need it. By default, the reply is assumed to follow a user message.
        """
        asked = _ANY_QUESTION if messages is None else messages
        return self.parser_for(self.read(asked, tools, prompting=True), prefill)

    def parser_for(self, conversation: CheckedConversation, prefill: str | None = None) -> ReplyParser:
        """Like `parser`, for a reply to a checked conversation."""
        parser = self.make_parser(conversation)
        primer = self.primer(conversation, len(conversation))
        beginning = (scaffold(primer), SEAM, text(prefill or "")) if primer or prefill else ()
        if beginning or self._prompt_ends_with_token(conversation):
            parser.follow_token()
        parser.prime(self.assemble(zip(repeat(0), beginning)).tokens if beginning else ())
        return parser

    def _prompt_ends_with_token(self, conversation: CheckedConversation) -> bool:
        """Return whether a prompt ends with a token after which the tokenizer writes a space before text."""
        spaced = self._token_texts.spaced
        if spaced:
            with suppress(RenderError):  # a template may not accept the conversation
                return not spaced.isdisjoint(self.assemble_prompt(conversation).tokens[-1:])
        return False

    def make_parser(self, conversation: CheckedConversation) -> ReplyParser:
        """Create a parser that has not read any ids. A format with its own parser class overrides this method."""
        return ReplyParser(self.grammar, self._token_texts, tools=conversation.tools)

    def parse_response(
        self,
        response: Iterable[int],
        *,
        prefill: str | None = None,
        tools: Sequence[Any] | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
    ) -> Parsed:
        """Parse the ids of a sampled reply: `message, termination = renderer.parse_response(ids)`.

        For example, the ids of `<think>\\nhm\\n</think>\\n\\nYo<|im_end|>` become the message
        `{"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Yo"}]}`.

        No sequence of ids makes this raise. Tool calls that cannot be parsed are in the message's
        `unparsed_tool_calls`. The `spans` of the result cover every id. The arguments are those of `parser`.
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
        """Yield the deltas of a complete reply, then the message. To parse ids while they are sampled, use `parser`."""
        parser = self.parser(prefill=prefill, tools=tools, messages=messages)
        ids = list(map(index, response))
        for start in range(0, len(ids), 64):
            yield from parser.feed(ids[start : start + 64])
        yield from parser.finish()[0]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids. Control tokens appear by name, e.g. `<|im_end|>`. No ids make this raise."""
        return self._assembler.decode(ids)

    # ---- identity

    def fingerprint(self) -> str:
        """Return a short hash of everything that determines the tokens: format, version, options and vocabulary."""
        identity = {
            "family": self.family,
            "version": self.version,
            "options": asdict(self.options),
            "vocabulary": [self._encoder.encode(_SAMPLE), self._assembler.ids],
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True, default=date.isoformat).encode()).hexdigest()[:16]

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


_PARTS_WITHOUT_TAGS = (Part.TEXT, Part.REASONING)

_ANY_QUESTION = ({"role": "user", "content": ""},)
"""The conversation that a parsed reply is assumed to follow if the caller passes no messages."""

_SAMPLE = 'The quick brown fox, 1234567890 times:\n\n\tdéjà vu — 你好 👋🏽 {"a": [1, null]}'
"""Text for the fingerprint: different vocabularies encode it to different ids."""
