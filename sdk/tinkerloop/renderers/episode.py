"""`Episode`: sampling over several turns, in which sampled ids are never rendered again.

If the whole conversation were rendered after every turn, the ids could differ from the sampled ones: for example, a
parsed tool call is written with other spaces, or a trailing newline is lost. The server could not reuse its cached
prefix, and training would use tokens that were never sampled. Therefore an episode only appends: first the sampled ids,
unchanged, then the tokens of the new messages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, Literal

from tinkerloop._lazy import tinker
from tinkerloop.errors import BrokenReplyError, EpisodeError, RenderError
from tinkerloop.message_checks import read_message
from tinkerloop.messages import CheckedConversation
from tinkerloop.renderers.appending import AppendingRenderer, RewrittenError
from tinkerloop.renderers.parsing.parsed import Parsed
from tinkerloop.renderers.pieces import Part
from tinkerloop.renderers.rendered import Rendered, SpanLabel, SpanTable, model_input


@dataclass
class Segment:
    """One token sequence of an episode. Tokens are only ever appended to it.

    `logprobs` has one entry for each token: 0 for tokens that were not sampled. `sampled` has the start, the stop and
    the number of each reply whose ids are in this segment; the replies of an episode are numbered from 0.
    """

    tokens: list[int] = field(default_factory=list)
    span_table: SpanTable = field(default_factory=lambda: SpanTable([], [], []))
    logprobs: list[float] = field(default_factory=list)
    images: list[tuple[int, Any]] = field(default_factory=list)
    sampled: list[tuple[int, int, int]] = field(default_factory=list)

    def extend(self, rendered: Rendered) -> None:
        """Append rendered tokens. Their logprobs are 0, because they were not sampled."""
        offset, tokens = len(self.tokens), rendered.tokens
        if rendered.images:
            self.images += [(position + offset, image) for position, image in rendered.images]
        self.append(tokens, *rendered.span_table, [0.0] * len(tokens))

    def append(
        self, tokens: list[int], starts: list[int], labels: list[SpanLabel], weights: list[float], logprobs: list[float]
    ) -> None:
        """Append tokens with their spans. `starts` are relative to the first appended token."""
        offset = len(self.tokens)
        span_table = self.span_table
        span_table.starts.extend([offset + start for start in starts])
        span_table.labels.extend(labels)
        span_table.weights.extend(weights)
        self.tokens += tokens
        self.logprobs += logprobs


class Episode:
    """A conversation that grows by sampled replies and by the messages that follow them.

        episode = renderer.episode(messages)
        sampled = sample(episode.prompt())           # with a sampling client
        reply = episode.add_sampled(sampled.tokens).message
        episode.add([{"role": "tool", "content": "4"}])
        ...                                          # prompt, add_sampled, add, prompt, ...
        examples = episode.examples()                # the sampled ids have weight 1

    Args:
        messages: the conversation before the first reply. Only sampled ids are trained, so `weight` and `trainable` of
            these messages, and of those that are added, have no effect.
        tools: declarations of the tools that the assistant may call.
        on_rewrite: what to do if the format writes earlier turns differently once new messages follow them, e.g.
            because it leaves reasoning out of history. `"refuse"` raises an `EpisodeError`. `"segment"` begins a new
            token sequence, in which the whole conversation is rendered again; `examples()` then returns one example
            for each sequence.

    Raises:
        RenderError: the format cannot express the messages.
        EpisodeError: `on_rewrite` has an unknown value.
    """

    def __init__(
        self,
        renderer: AppendingRenderer,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        *,
        on_rewrite: Literal["refuse", "segment"] = "refuse",
    ):
        if on_rewrite not in ("refuse", "segment"):
            raise EpisodeError(f"on_rewrite must be 'refuse' or 'segment', got {on_rewrite!r}")
        self.renderer = renderer
        messages = _readable_twice(messages)
        self._conversation = renderer.read(messages, tools, prompting=True)
        self.messages: list[Mapping[str, Any]] = list(messages)
        self.segments: list[Segment] = [Segment()]
        self._on_rewrite = on_rewrite
        self._parsed: Parsed | None = None  # the last reply; None once messages follow it
        self._replies = 0  # the number of replies sampled so far
        self._first_unsettled = len(self._conversation)  # a user message may rewrite the replies from this index on
        self.segments[-1].extend(renderer.assemble_prompt(self._conversation))

    @property
    def tokens(self) -> list[int]:
        """The token ids of the current segment, both sampled and rendered."""
        return self.segments[-1].tokens

    def prompt(self) -> tinker.ModelInput:
        """Return the prompt from which to sample the next reply.

        Raises:
            EpisodeError: the last turn is a reply, and no messages have been added after it.
        """
        if self._parsed is not None:
            raise EpisodeError("cannot prompt directly after a reply; call add() with the messages that follow it")
        segment = self.segments[-1]
        return model_input(segment.tokens[:], segment.images)

    def add_sampled(self, ids: Iterable[int], logprobs: Iterable[float] | None = None) -> Parsed:
        """Append the ids of a sampled reply, unchanged, and return the parsed reply.

        Args:
            logprobs: the logprob of each id. If None, they are set to 0.

        Raises:
            EpisodeError: the last turn is already a reply, the number of logprobs differs from the number of ids, an id
                is negative, or a logprob is not finite.
        """
        if self._parsed is not None:
            raise EpisodeError("cannot add two replies in a row; call add() with the messages between them first")
        ids = list(map(index, ids))
        id_logprobs = [0.0] * len(ids) if logprobs is None else [float(x) for x in logprobs]
        if len(id_logprobs) != len(ids):
            raise EpisodeError(f"expected {len(ids)} logprobs, one for each sampled id, got {len(id_logprobs)}")
        if not all(map(math.isfinite, id_logprobs)) or min(ids, default=0) < 0:
            raise EpisodeError("the sampled ids must be at least 0, and their logprobs finite: the service is at fault")
        parser = self.renderer.parser_for(self._conversation)
        parser.feed(ids)
        self._parsed = parsed = parser.finish()[1]
        segment = self.segments[-1]
        turn, spans = len(self._conversation), parsed.spans
        starts = [span.start for span in spans]
        labels = [(turn, span.part) for span in spans]
        segment.sampled.append((len(segment.tokens), len(segment.tokens) + len(ids), self._replies))
        segment.append(ids, starts, labels, [1.0] * len(spans), id_logprobs)
        self._replies += 1
        self.messages.append(parsed.message)
        return parsed

    def add(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Append the messages that follow the last reply, such as tool results or the next user message.

        If this raises, the episode is unchanged.

        Raises:
            BrokenReplyError: the last reply ends inside its reasoning or a tool call, or continues after its end, or
                the format cannot express it.
            EpisodeError: the last turn is not a reply; the new messages contain an assistant message or tools; or the
                format writes earlier turns differently now, and `on_rewrite` is `"refuse"`.
            RenderError: the format cannot express a message.
        """
        if self._parsed is None:
            raise EpisodeError("there is no reply yet that these messages could follow; call add_sampled() first")
        messages = _readable_twice(messages)
        added = self.renderer.read(messages, None)
        if added.tools:
            raise EpisodeError(
                "tools cannot be declared among the new messages; pass all tools when the episode is created"
            )
        new, roles = added.messages, {message.role for message in added.messages}
        if "assistant" in roles:
            raise EpisodeError("the new messages contain an assistant message; append replies with add_sampled()")
        if place := where_broken(self._parsed):
            raise BrokenReplyError(
                f"no message can follow the last reply, which is {self._parsed.termination.value} {place}; "
                "end the episode here"
            )
        try:
            reply = self.renderer.normalize(read_message(self.messages[-1]))
        except RenderError as error:
            raise BrokenReplyError(f"no message can follow the last reply, which is not valid: {error}") from error
        before = self._conversation
        after = CheckedConversation((*before.messages, reply, *new), before.tools, prompting=True)
        begins_segment = False
        try:
            rendered = self.renderer.assemble(
                self.renderer.following(after, len(before), self._parsed, self._first_unsettled)
            )
        except RewrittenError as error:
            if self._on_rewrite == "refuse":
                raise EpisodeError(f"{error}; use on_rewrite='segment', or a format that keeps history") from error
            rendered, begins_segment = self.renderer.assemble_prompt(after), True
        # The episode changes only from here on, so an error above leaves it as it was.
        self._conversation, self._parsed = after, None
        if begins_segment or "user" in roles:
            self._first_unsettled = len(after)
        self.messages += messages
        if begins_segment:
            self.segments.append(Segment())
        self.segments[-1].extend(rendered)

    def examples(self) -> list[Rendered]:
        """Return one example for each segment. Sampled ids have weight 1, all other tokens have weight 0."""
        limit, decode = self.renderer.max_length, self.renderer.decode
        return [Rendered(s.tokens[:], s.span_table.copy(), tuple(s.images), limit, decode) for s in self.segments]


def _readable_twice(messages: Any) -> Any:
    return list(messages) if isinstance(messages, Iterator) else messages


def where_broken(parsed: Parsed) -> str | None:
    """Return where a reply is broken, as part of an error message, or None if messages can follow the reply.

    A reply is broken if it ends inside a block, or if it continues after its end.
    """
    if parsed.broke_off_in is not None:
        return f"inside its {parsed.broke_off_in.name}"
    return "after its end" if parsed.spans and parsed.spans[-1].part is Part.SCAFFOLD else None
