"""Multi-turn sampling in which what was sampled stays what was sampled.

Rendering a conversation again after every turn gives other ids than the model sampled (a parsed call is written with
other spaces, a trailing newline is lost), which breaks the prefix that a server has cached and trains on tokens that
were never sampled. An episode only appends: the sampled ids as they came, then the new messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from operator import index
from typing import Any, Literal

from tinkerloop._lazy import tinker
from tinkerloop.errors import EpisodeError, RenderError
from tinkerloop.messages import CheckedConversation, read_message
from tinkerloop.renderers.core import RendererCore
from tinkerloop.renderers.parsing.parsed import Parsed, ParseTermination
from tinkerloop.renderers.pieces import Part, Piece
from tinkerloop.renderers.rendered import Kind, Marks, Rendered, model_input


@dataclass
class Segment:
    """One unbroken sequence of an episode. `logprobs` is 0 where nothing was sampled."""

    tokens: list[int] = field(default_factory=list)
    marks: Marks = field(default_factory=lambda: Marks([], [], []))
    logprobs: list[float] = field(default_factory=list)
    images: list[tuple[int, Any]] = field(default_factory=list)

    def extend(self, rendered: Rendered) -> None:
        """Appends what was rendered; it was not sampled."""
        at, tokens = len(self.tokens), rendered.tokens
        if rendered.images:
            self.images += [(position + at, image) for position, image in rendered.images]
        self.append(tokens, *rendered.marks, [0.0] * len(tokens))

    def append(
        self, tokens: list[int], starts: list[int], kinds: list[Kind], weights: list[float], logprobs: list[float]
    ) -> None:
        """Appends tokens and their spans, whose `starts` are counted from the first of these tokens."""
        at = len(self.tokens)
        marks = self.marks
        marks.starts.extend([at + start for start in starts])
        marks.kinds.extend(kinds)
        marks.weights.extend(weights)
        self.tokens += tokens
        self.logprobs += logprobs


class Episode:
    """A conversation that grows: `prompt()`, `add_sampled(ids)`, `add(messages)`, `prompt()`, ...

    Args:
        messages: the conversation before the first reply.
        tools: declarations of the tools the assistant may call.
        on_rewrite: what to do when the format writes earlier turns differently once new messages follow them
            (reasoning is left out of history): `refuse` with an `EpisodeError`, or begin a new `segment`, rendered
            from the messages. `examples()` then gives one example for each segment.
    """

    def __init__(
        self,
        renderer: RendererCore,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        *,
        on_rewrite: Literal["refuse", "segment"] = "refuse",
    ):
        if on_rewrite not in ("refuse", "segment"):
            raise EpisodeError(f"on_rewrite is 'refuse' or 'segment', got {on_rewrite!r}")
        self.renderer = renderer
        self._conversation = renderer.read(messages, tools, prompting=True)
        self.messages: list[Mapping[str, Any]] = list(messages)
        self.segments: list[Segment] = [Segment()]
        self._on_rewrite = on_rewrite
        self._parsed: Parsed | None = None  # the last reply, until messages follow it
        self._unsettled: list[tuple[int, str | None]] = []  # replies that a user's message may yet rewrite, as sampled
        self.segments[-1].extend(renderer.assemble_prompt(self._conversation))

    @property
    def tokens(self) -> list[int]:
        """The ids of the current segment."""
        return self.segments[-1].tokens

    def prompt(self) -> tinker.ModelInput:
        """What to sample the next reply from."""
        if self._parsed is not None:
            raise EpisodeError("the last turn is a reply; add the messages that follow it first")
        segment = self.segments[-1]
        return model_input(segment.tokens[:], segment.images)

    def add_sampled(self, ids: Iterable[int], logprobs: Iterable[float] | None = None) -> Parsed:
        """Appends a sampled reply, verbatim, and returns it parsed."""
        if self._parsed is not None:
            raise EpisodeError("two replies in a row; add the messages between them first")
        ids = list(map(index, ids))
        given = [0.0] * len(ids) if logprobs is None else [float(x) for x in logprobs]
        if len(given) != len(ids):
            raise EpisodeError(f"expected {len(ids)} logprobs, one for each sampled id, got {len(given)}")
        parser = self.renderer.parser_of(self._conversation)
        parser.feed(ids)
        self._parsed = parsed = parser.finish()[1]
        segment = self.segments[-1]
        turn, spans = len(self.messages), parsed.spans
        starts = [span.start for span in spans]
        kinds = [(turn, span.part) for span in spans]
        segment.append(ids, starts, kinds, [1.0] * len(spans), given)
        self.messages.append(parsed.message)
        return parsed

    def add(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Appends what others say after a reply: tool results, the user's next message.

        Raises:
            EpisodeError: there is no reply to follow; an assistant's message or tools among the new ones; the reply
                broke off inside its reasoning or a tool call; or the format rewrites what has been sampled.
        """
        if self._parsed is None:
            raise EpisodeError("there is no reply yet that these messages follow; call add_sampled first")
        said = self.renderer.read(messages, None)
        if said.tools:
            raise EpisodeError("tools among the new messages; an episode declares its tools when it begins")
        new, roles = said.messages, {message.role for message in said.messages}
        if "assistant" in roles:
            raise EpisodeError("an assistant's message among the new ones; replies come through add_sampled")
        if broken := _where_broken(self._parsed):
            raise EpisodeError(f"the last reply is {self._parsed.termination.value} {broken}; nothing can follow it")
        try:
            reply = self.renderer.lifted(read_message(self.messages[-1]))
        except RenderError as error:
            raise EpisodeError(f"nothing can follow the last reply, which is no message: {error}") from error
        before = self._conversation
        index = len(before)
        after = CheckedConversation((*before.messages, reply, *new), before.tools, prompting=True)
        asked = "user" in roles
        latest, rewritten = None, None
        if "system" in roles or not self.renderer.has_extension_property:
            latest = index, self._written(_finished(after, index), index)
            rewritten = self._rewritten(after, index, [*self._unsettled, latest] if asked else [latest])
        if rewritten is not None and self._on_rewrite == "refuse":
            raise EpisodeError(
                f"{self.renderer.name} writes messages[{rewritten}] differently once these messages follow; "
                "use on_rewrite='segment', or a format that preserves history"
            )
        begins_anew = rewritten is not None
        rendered = self.renderer.assemble_prompt(after) if begins_anew else self._following(after, index)
        # Nothing has changed until here, so what is refused leaves the episode as it was.
        self._conversation, self._parsed = after, None
        if asked or begins_anew:
            self._unsettled.clear()
        elif latest is not None:
            self._unsettled.append(latest)
        self.messages += messages
        if begins_anew:
            self.segments.append(Segment())
        self.segments[-1].extend(rendered)

    def examples(self) -> list[Rendered]:
        """One example for each segment, in which exactly the sampled ids have weight."""
        limit = self.renderer.max_length
        return [Rendered(s.tokens[:], s.marks.copy(), tuple(s.images), limit) for s in self.segments]

    def _rewritten(
        self, after: CheckedConversation, index: int, replies: Sequence[tuple[int, str | None]]
    ) -> int | None:
        """The first message that the format writes differently in `after`, or not after what precedes it.

        A user's message, added after reply `index`, may have caused the former, for `replies` as they were sampled;
        the latter are system messages that a format moves to the front.
        """
        changed = (i for i, written in replies if self._written(after, i) != written)
        moved = (i for i in range(index + 1, len(after)) if not any(True for _ in self.renderer.message(after, i)))
        return next(chain(changed, moved), None)

    def _written(self, conversation: CheckedConversation, index: int) -> str | None:
        """Reply `index` as the format writes it in this conversation, None where it has no words for it."""
        try:
            pieces = (*self.renderer.opening(conversation, index), *self.renderer.sampled_reply(conversation, index))
        except RenderError:  # a model may sample what its prompt rules out, such as reasoning
            return None
        return "".join(piece.text for piece in pieces)

    def _following(self, conversation: CheckedConversation, index: int) -> Rendered:
        """The rest of reply `index`, the new messages and the opening of the next reply."""
        renderer = self.renderer
        pieces: list[tuple[int, Piece]] = []
        assert self._parsed is not None
        if not self._is_stopped(self._parsed):
            written = renderer.reply(_without_reasoning(_finished(conversation, index)), index)
            stops = [piece for piece in written if piece.part is Part.STOP]
            pieces += [(index, piece._replace(part=Part.SCAFFOLD)) for piece in stops]
        pieces += zip(repeat(index), renderer.after_reply(conversation, index))
        end = len(conversation)
        for i in range(index + 1, end):
            pieces += zip(repeat(i), renderer.message(conversation, i))
        pieces += zip(repeat(end), renderer.opening(conversation, end))
        return renderer.assemble(pieces)

    def _is_stopped(self, parsed: Parsed) -> bool:
        """Whether a reply ends as the format ends one, whatever else is wrong with it."""
        stopped = parsed.termination is ParseTermination.STOP_SEQUENCE
        return stopped or (bool(parsed.ids) and parsed.ids[-1] in self.renderer.get_stop_sequences())


def _finished(conversation: CheckedConversation, index: int) -> CheckedConversation:
    """The conversation up to and with message `index`."""
    return CheckedConversation(conversation.messages[: index + 1], conversation.tools)


def _without_reasoning(conversation: CheckedConversation) -> CheckedConversation:
    """The conversation with a last message that does not reason, which every format has words for."""
    *before, last = conversation.messages
    return replace(conversation, messages=(*before, last._replace(reasoning=None)))


def _where_broken(parsed: Parsed) -> str | None:
    """Where a reply ended that nothing can follow: inside a block, or before its last ids."""
    if parsed.broke_off_in is not None:
        return f"inside its {parsed.broke_off_in.name}"
    return "after its end" if parsed.spans and parsed.spans[-1].part is Part.SCAFFOLD else None
