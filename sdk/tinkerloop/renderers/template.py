"""`template`: renders with any Hugging Face `chat_template`.

For each conversation it checks which tokens can be trained, and that no text of a message becomes a control token.

`TemplateWriter` runs the template twice: on the conversation, and on a copy in which each string is a `MarkedText`,
which records where each character of the result comes from. The two results must be equal. Only the template's
literals can become control tokens (such as `<|im_end|>`); the strings of messages are encoded as ordinary text, and
each of them must be written completely. Otherwise a `RenderError` is raised; nothing is guessed. A reply can be
trained only if two things hold: the template's own prompt for this reply is a prefix of the rendered conversation,
and the text from the end of this prompt to the reply's stop token belongs to this reply alone.

Reasoning is passed as users of transformers pass it: in fields of the message, in a typed part of its content, or in
the text as `<think>\\n...\\n</think>\\n\\n`. The text is used only for templates that name these tags and read
reasoning nowhere else (QwQ, SmolLM3).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from tinkerloop.errors import BrokenReplyError, RenderError
from tinkerloop.message_checks import read_conversation
from tinkerloop.messages import CheckedConversation
from tinkerloop.renderers import base
from tinkerloop.renderers.appending import RewrittenError, finished
from tinkerloop.renderers.assembly import Encode
from tinkerloop.renderers.families.harmony import HarmonyParser
from tinkerloop.renderers.parsing.grammar import Grammar
from tinkerloop.renderers.parsing.parsed import Parsed
from tinkerloop.renderers.parsing.reply_parser import ReplyParser
from tinkerloop.renderers.pieces import Part, Piece, Pieces, scaffold
from tinkerloop.renderers.rendered import Rendered
from tinkerloop.renderers.template_checks import ReasoningLostError, check_same_ids
from tinkerloop.renderers.template_compiler import named_sources
from tinkerloop.renderers.template_grammar import learn_grammar
from tinkerloop.renderers.template_replies import (
    difference,
    divided,
    end_of_reply,
    has_other_text,
    has_own_token_at,
    pieces_from,
    text_of,
)
from tinkerloop.renderers.template_writer import TemplateWriter
from tinkerloop.renderers.train_on_what import TokenWeights
from tinkerloop.tokenizers.places import Place

_SWITCHES = ("enable_thinking", "thinking")
"""The variables with which templates turn reasoning on and off."""
_FAMILY_OF = {"<｜Assistant｜><think>": "deepseek_r1_distill", "<|im_middle|>": "kimi_k2"}
"""The renderers of model families whose own templates cannot train all replies, by a text in these templates."""
_CONVERSATION = (
    {"role": "user", "content": "a question"},
    {"role": "assistant", "content": "\n an answer "},
    {"role": "user", "content": " the next\n"},
    {"role": "assistant", "content": "é"},
)
"""A conversation to compare ids. Its white space shows which tokens strip it."""
_CACHED = ("_headers", "_named_tags", "_primer", "_stop_pattern")
"""The cached properties of `Template`."""


@dataclass(frozen=True)
class TemplateOptions(base.Options):
    """Options of the renderer `template`: the chat template and its variables."""

    chat_template: str | None = None
    """A chat template to use instead of the tokenizer's, or the name of one of the tokenizer's templates. Without it, a
    tokenizer with several templates uses `tool_use` (if it exists) for conversations with tools, else `default`."""
    variables: tuple[tuple[str, Any], ...] = ()
    """Variables passed to the template in addition to messages and tools, e.g. `(("enable_thinking", False),)`."""
    today: date | None = None
    """The date that the template gets as the current date. With None, the template uses its default."""


class Template(base.Renderer):
    """Renders with the tokenizer's `chat_template`, or with the template that is given in the options."""

    family = "template"
    Options = TemplateOptions
    _is_trial = False
    """True for a renderer that is created only to try other variables of the template."""

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self._check_ids()  # not in `_prepare`: a copy and a renderer that was pickled need no second check

    def _prepare(self) -> None:
        added = [str(token) for token in getattr(self.tokenizer, "added_tokens_decoder", {}).values()]
        self.control = tuple(token for token in added if token.strip())
        special = getattr(self.tokenizer, "special_tokens_map", {})
        variables = {k: str(v) for k, v in special.items() if isinstance(v, str)} | dict(self.options.variables)
        if self.options.today is not None:
            variables["strftime_now"] = self.options.today.strftime
        sources = named_sources(self.tokenizer, self.options.chat_template)
        self._writer = TemplateWriter(sources, variables, self.control, self.name)
        super()._prepare()

    def _check_ids(self) -> None:
        """Raise if the ids of conversations differ from those of `apply_chat_template`, which encodes a whole text."""
        for messages, prompting in ((_CONVERSATION, False), (_CONVERSATION[:-1], True), (_CONVERSATION[:1], True)):
            with contextlib.suppress(RenderError):  # the template may not accept it
                pieces = self._writer.pieces(read_conversation(messages, prompting=prompting))
                break
        else:
            return
        whole = self.tokenizer.encode(text_of(pieces), add_special_tokens=False)
        check_same_ids(whole, self.assemble(pieces, Place.START).tokens, self.decode)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        for derived in ("_writer", "_learned", *_CACHED):
            state.pop(derived, None)
        return state

    def make_grammar(self) -> Grammar:
        def write(messages: Any, tools: Any = None, prompting: bool = False) -> list[tuple[int, Piece]]:
            return self._writer.pieces(read_conversation(messages, tools, prompting=prompting))

        eos = getattr(self.tokenizer, "eos_token", None)
        self._learned = learn_grammar(write, self.control, self._writer.source, eos)
        if not self._learned.is_harmony:
            self._writer.form = replace(self._writer.form, tags=self._learned.grammar.tags)
        return self._learned.grammar

    def make_parser(self, conversation: CheckedConversation) -> ReplyParser:
        parser = HarmonyParser if self._learned.is_harmony else ReplyParser
        return parser(self.grammar, self._token_texts, tools=conversation.tools)

    @property
    def reply_tags(self) -> Sequence[str]:
        """All control tokens that the template names, because most templates have blocks that the grammar does not."""
        return self._named_tags

    @functools.cached_property
    def _named_tags(self) -> list[str]:
        source = self._writer.source
        return [token for token in self.control if token in source and token not in self.grammar.stops]

    # ---- what `RendererCore` calls

    def check_written(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing, because `check_nothing_is_lost` compares the conversation with the template's placeholders."""

    def pieces(self, conversation: CheckedConversation) -> list[tuple[int, Piece]]:
        try:
            pieces = self._writer.pieces(conversation)
        except ReasoningLostError as error:
            remedy = self._remedy(conversation, lambda renderer, c: bool(renderer._writer.pieces(c)))
            raise RenderError(f"{error}, or {remedy}") from error
        if conversation.prompting:
            return pieces
        pieces = self._with_stop(conversation, pieces)
        replies = [i for i, m in enumerate(conversation.messages) if m.role == "assistant"]
        starts = {self._start(conversation, pieces, i): i for i in replies}
        known = {start: i for start, i in starts.items() if start is not None}
        alone = {start: i for start, i in known.items() if self._is_alone(conversation, pieces, start, i, known)}
        reasoning = self.grammar.block(Part.REASONING)
        return list(divided(conversation, pieces, alone, self._stop_pattern, reasoning.close if reasoning else ""))

    def _with_stop(self, conversation: CheckedConversation, pieces: list[tuple[int, Piece]]) -> list[tuple[int, Piece]]:
        """Add the stop token of the last reply, if the template writes it only as the start of the next turn."""
        token = self._unwritten_stop(conversation)
        return [*pieces, (-1, scaffold(token))] if token else pieces

    def _unwritten_stop(self, conversation: CheckedConversation) -> str:
        last = conversation.messages[-1] if conversation.messages else None
        if last is None or last.role != "assistant":
            return ""
        return self._learned.unwritten_stops.get(bool(last.tool_calls), "")

    def _is_alone(
        self,
        conversation: CheckedConversation,
        pieces: list[tuple[int, Piece]],
        start: int,
        reply: int,
        starts: Iterable[int],
    ) -> bool:
        """Return whether the text from the first character of a reply to its stop token belongs to this reply alone.

        If a template ends earlier replies in another way than the last one, the next stop token belongs to a later
        message. The text up to this token was not sampled. Therefore no other reply and no text of another message may
        be in between, and the same text must end the reply if the conversation ends with this reply.
        """
        end = end_of_reply(pieces, start, self._stop_pattern)
        if end is None or any(start < other <= end for other in starts) or has_other_text(pieces, start, end, reply):
            return False
        if has_own_token_at(pieces, start, self._headers):
            return False
        if conversation.is_final(reply):
            return True
        text = text_of(pieces)
        sampled = self._as_sampled(finished(conversation, reply), text[:start], text[start:end])
        return sampled is not None and sampled.endswith(text[start:end])

    @functools.cached_property
    def _headers(self) -> tuple[str, ...]:
        """The tokens of the template that no reply contains.

        DeepSeek V3's template ends a prompt after a tool result without a header, but writes one before a call there.
        """
        return tuple(token for token in self._named_tags if token not in self.grammar.control)

    def _as_sampled(self, conversation: CheckedConversation, prompt: str, written: str) -> str | None:
        """Return the text of the last reply of a conversation, up to its stop token, as it is sampled from a prompt.

        Return None if the template cannot write the reply, or does not write it between its prompt and a stop token.

        Args:
            written: the text of this reply in a longer conversation, whose origins are known. If the reply is written
                in the same way here, no origins are followed; they are, if reasoning may be lost in both.
        """
        if not conversation.messages[-1].reasoning:
            expected = prompt + written
            with contextlib.suppress(RenderError):
                text = self._writer.text(conversation, len(expected)) + self._unwritten_stop(conversation)
                if text.startswith(expected):
                    return written
        try:
            pieces = self._with_stop(conversation, self._writer.pieces(conversation))
        except RenderError:
            return None
        text = text_of(pieces)
        end = end_of_reply(pieces, len(prompt), self._stop_pattern) if text.startswith(prompt) else None
        return None if end is None else text[len(prompt) : end]

    @functools.cached_property
    def _stop_pattern(self) -> re.Pattern[str]:
        stops = sorted(self.grammar.stops, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, stops)))

    def _start(self, conversation: CheckedConversation, pieces: list[tuple[int, Piece]], index: int) -> int | None:
        """Return the position of the first character of reply `index` in the text of `pieces`.

        Return None if the prompt for the reply is not a prefix of this text.
        """
        whole = text_of(pieces)
        prompt = self._prompt_of(conversation, index, whole)
        return len(prompt) if whole.startswith(prompt) else None

    def _prompt_of(self, conversation: CheckedConversation, index: int, whole: str) -> str:
        """Return the text of the prompt for reply `index`. `whole` is the text of the conversation."""
        prompting = _prompting(conversation, index)
        with contextlib.suppress(RenderError):
            if whole.startswith(text := self._writer.text(prompting, len(whole))):
                return text
        return text_of(self._writer.pieces(prompting))

    def example(
        self, conversation: CheckedConversation, weights: TokenWeights, encode: Encode | None = None
    ) -> Rendered:
        """Like `RendererCore.example`, but also checks the prompt of each trained reply.

        Raises:
            RenderError: a reply carries weight, but the template's prompt for this reply is not a prefix of the
                rendered conversation, or another message begins before the reply's stop token.
        """
        example = super().example(conversation, weights, encode)
        stops = {message for message, part in example.span_table.labels if part is Part.STOP}
        for i, weight in enumerate(weights.of_message):
            if conversation.role(i) != "assistant":
                continue  # the end of other turns is unknown, so only their text can carry weight
            if weight and i not in stops:
                remedy = "train only the last message, or use build_supervised_examples"
                if conversation.is_final(i):
                    remedy = self._remedy(conversation, lambda renderer, c, i=i: renderer._trains(c, i))
                raise RenderError(
                    f"messages[{i}]: this reply cannot be trained here, because the template does not write it between "
                    f"its prompt and its stop token, as it would be sampled{self._difference(conversation, i)}; "
                    f"{remedy}"
                )
        return example

    def _difference(self, conversation: CheckedConversation, index: int) -> str:
        """Return how the prompt for reply `index` and the rendered conversation differ, for the error message."""
        prompt = text_of(self._writer.pieces(_prompting(conversation, index)))
        pieces = self._writer.pieces(conversation)
        continued, written = difference(prompt, text_of(pieces))
        if not continued:
            has_header = has_own_token_at(pieces, len(prompt), self._headers)
            return f" (the prompt ends before the header in {written!r})" if has_header else ""
        return f" (the prompt continues with {continued!r}, the conversation with {written!r})"

    def _trains(self, conversation: CheckedConversation, index: int) -> bool:
        """Return whether reply `index` can be trained."""
        return any(owner == index and piece.part is Part.STOP for owner, piece in self.pieces(conversation))

    def _remedy(self, conversation: CheckedConversation, works: Callable[[Template, CheckedConversation], bool]) -> str:
        """Return what makes a rejected conversation work, for the error message. Each remedy is tried.

        Args:
            works: returns whether a renderer accepts a conversation. It may raise `RenderError`.
        """
        if self._is_trial:
            return ""
        source, remedies = self._writer.source, list[str]()
        for name, value in itertools.product(_SWITCHES, (True, False)):
            if name not in source or (name, value) in self.options.variables:
                continue
            other = copy.copy(self)
            for cached in _CACHED:  # they depend on the variables
                vars(other).pop(cached, None)
            other.options = replace(self.options, variables=(*self.options.variables, (name, value)))
            other._is_trial = True
            with contextlib.suppress(RenderError):
                other._prepare()
                if works(other, conversation):
                    remedies.append(f"use TemplateOptions(variables=(({name!r}, {value}),))")
                    break
        *earlier, last = conversation.messages
        if last.role == "assistant" and not last.reasoning:
            reasoned = replace(conversation, messages=(*earlier, last._replace(reasoning="because")))
            with contextlib.suppress(RenderError):
                if works(self, reasoned):
                    remedies.append("give every reply reasoning ('reasoning_content')")
        family = next((repr(name) for text, name in _FAMILY_OF.items() if text in source), "for this model family")
        return ", or ".join(remedies) or (
            f"no variable of the template changes this, so use the renderer {family}, or another template with "
            "TemplateOptions(chat_template=...)"
        )

    def opening(self, conversation: CheckedConversation, index: int) -> Pieces:
        return ()  # `pieces` already contains the opening

    @functools.cached_property
    def _primer(self) -> str:
        return self._primer_of(read_conversation([{"role": "user", "content": "q"}], prompting=True))

    def _primer_of(self, conversation: CheckedConversation) -> str:
        """Return the end of the prompt from the token that opens reasoning, if the prompt begins the reply with it."""
        block = self.grammar.block(Part.REASONING)
        if block is None or self._learned.is_harmony:
            return ""
        own = itertools.takewhile(lambda pair: pair[1].trusted, reversed(self._writer.pieces(conversation)))
        ending = "".join(reversed([piece.text for _, piece in own]))
        start = ending.rfind(block.open)
        return ending[start:] if start >= 0 else ""

    def primer(self, conversation: CheckedConversation, index: int) -> str:
        if conversation.last_user == len(conversation) - 1 or index != len(conversation):
            return self._primer
        return self._primer_of(conversation)

    def following(
        self, conversation: CheckedConversation, index: int, parsed: Parsed, first: int
    ) -> list[tuple[int, Piece]]:
        """Like `AppendingRenderer.following`, but compares the template's whole text up to the end of the reply.

        Appending is enough if the text for the longer conversation begins with the prompt of the reply, and goes on
        with the reply as it was sampled. If the reply ends with another token than the template writes there, or with
        none, the template's token is appended too.

        Raises:
            BrokenReplyError: the template cannot write the reply, so no message can follow it.
        """
        try:
            pieces = self._writer.pieces(conversation)
        except RenderError as error:
            if self._cannot_write(conversation, index):
                raise BrokenReplyError(
                    f"no message can follow the last reply, because the chat template cannot write it: {error}; end "
                    "the episode here"
                ) from error
            raise
        text = text_of(pieces)
        prompt = self._prompt_of(conversation, index, text)
        end = end_of_reply(pieces, len(prompt), self._stop_pattern) if text.startswith(prompt) else None
        written = "" if end is None else text[len(prompt) : end]
        sampled = self._as_sampled(finished(conversation, index), prompt, written)
        if end is None or written != sampled or has_other_text(pieces, len(prompt), end, index):
            was, now = difference(prompt + (sampled or ""), text)
            raise RewrittenError(
                f"with the new messages, the chat template would write messages[{index}], or the text before it, in "
                f"another way than it was sampled ({now!r} instead of {was!r})"
            )
        if has_own_token_at(pieces, len(prompt), self._headers):
            raise RewrittenError(
                f"with the new messages, the chat template would write a header before messages[{index}], which was "
                "sampled without one"
            )
        end_token = max((token for token in self.grammar.stops if text.endswith(token, 0, end)), key=len)
        is_stopped = bool(parsed.ids) and parsed.ids[-1] == self._assembler.id_of(end_token)
        return list(pieces_from(pieces, end if is_stopped else end - len(end_token)))

    def _cannot_write(self, conversation: CheckedConversation, index: int) -> bool:
        """Return whether the template cannot write reply `index`, or writes it only as text, as an unparsed call."""
        try:
            self._writer.pieces(finished(conversation, index))
        except RenderError:
            return True
        return bool(conversation[index].unparsed)


def _prompting(conversation: CheckedConversation, index: int) -> CheckedConversation:
    """Return the conversation that prompts for reply `index`."""
    return CheckedConversation(conversation.messages[:index], conversation.tools, prompting=True)


PRESETS: Sequence[tuple[str, type[base.Renderer], base.Options]] = (("template", Template, TemplateOptions()),)
