"""Invariants of episodes: sampled tokens are never changed, and messages that cannot follow them raise an error."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import dropwhile, pairwise
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tinkerloop.errors import CheckFailedError, EpisodeError, RenderError
from tinkerloop.renderers import Episode, Part
from tinkerloop.testing._invariant import Subject, require, require_equal, sampled
from tinkerloop.testing.message_strategies import TEXTS, random_conversations

_QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "q"}]
_NEXT: list[dict[str, Any]] = [{"role": "user", "content": "and?"}]


def an_episode_equals_the_rendered_conversation(subject: Subject) -> None:
    """An episode of replies as they are trained is the rendered conversation, in one segment if history is kept."""
    messages, tools, ours = subject.conversation(max_turns=2), subject.maybe_tools(), subject.renderer
    replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not replies:
        return
    episode = ours.episode(messages[: replies[0]], tools, on_rewrite="segment")
    for i, end in pairwise([*replies, len(messages)]):
        prompt = ours.build_generation_prompt(episode.messages, tools=tools)
        require_equal(ours.decode(episode.tokens), ours.decode(prompt.to_ints()), f"the prompt of reply {i}")
        spaced = any(m["role"] == "assistant" and m["content"][:1].isspace() for m in messages[:i])
        if ours.has_extension_property and not spaced:
            subject.equal_tokens(episode.prompt().to_ints(), prompt.to_ints(), f"the prompt of reply {i}")
        episode.add_sampled(sampled(subject.example(messages[: i + 1], tools=tools)))
        if i + 1 < end:
            episode.add(messages[i + 1 : end])
    trained = {int(i) for e in episode.examples() for i in e.message_index[e.weights > 0]}
    require_equal(trained, set(replies), "the replies with weight")
    late = any(message["role"] == "system" for message in messages[1:])
    if ours.has_extension_property and not late:
        require_equal(len(episode.segments), 1, "the number of segments")


def any_sampled_ids_survive(subject: Subject) -> None:
    """Any sampled ids stay as they are: the next prompt begins with the earlier prompt and these ids, or a new segment.

    No message can be appended to a reply that stopped inside its reasoning or a tool call, or that has reasoning after
    its text.
    """
    ours, reply = subject.renderer, subject.conversation(max_turns=1, later_system=False)[-1]
    inner = sorted({*ours._assembler.ids.values()} - {ours._assembler.ids[end] for end in ours.grammar.ends})
    whole = subject.draw(st.booleans(), "ids begin with a reply") and not ours.grammar.stop_texts
    ids = sampled(subject.example([*_QUESTION, reply]))[:-1] if whole else []
    for _ in range(subject.draw(st.integers(0, 6), "inserted ids")):
        at = subject.draw(st.integers(0, len(ids)), "place")
        ids.insert(at, subject.draw(st.integers(0, 255) | st.sampled_from(inner or [0]), "id"))
    stop = subject.draw(st.sampled_from(ours.get_stop_sequences()), "stop")
    ids += ours._encoder.encode(stop) if isinstance(stop, str) else [stop]
    episode = ours.episode(_QUESTION, on_rewrite="segment")
    before, logprobs = list(episode.tokens), [-0.5] * len(ids)
    parsed = episode.add_sampled(ids, logprobs)
    content: Any = parsed.message["content"]
    kinds = ["text"] if isinstance(content, str) else [part["type"] for part in content]
    if parsed.broke_off_in is not None or "thinking" in dropwhile(lambda kind: kind == "thinking", kinds):
        _refused(episode, _NEXT, "no message can follow")
    else:
        episode.add(_NEXT)
        if ours.has_extension_property:
            require_equal(len(episode.segments), 1, "the number of segments")
        grown = len(episode.segments[0].tokens) > len(before) + len(ids) or len(episode.segments) == 2
        require(grown, "nothing was appended")
    subject.begins_with(episode.segments[0].tokens, [*before, *ids], "the sampled ids changed")
    weighted = np.flatnonzero(episode.examples()[0].weights).tolist()
    require_equal(weighted, list(range(len(before), len(before) + len(ids))), "the tokens with weight")
    require_equal([x for x in episode.segments[0].logprobs if x], logprobs, "the logprobs")


def what_cannot_follow_a_reply_is_refused(subject: Subject) -> None:
    """An assistant message, new tools, or any message after a reply cut inside its reasoning raises an error."""
    (reply,) = subject.show([{"role": "assistant", "content": "a", "reasoning_content": "some thought"}])
    whole = subject.example([*_QUESTION, reply])
    ids = sampled(whole)
    episode = subject.renderer.episode(_QUESTION, on_rewrite="segment")
    episode.add_sampled(ids)
    _refused(episode, [*_NEXT, {"role": "assistant", "content": "b"}], "contain an assistant message")
    if "system" in subject.claims.roles:
        tools = [{"name": "f", "description": "", "parameters": {}}]
        _refused(episode, [{"role": "system", "content": "", "tools": tools}], "tools cannot be declared among the new")
    if "reasoning_content" in reply:
        thought = int(np.sum((whole.weights > 0) & (whole.parts == Part.REASONING)))
        cut = subject.renderer.episode(_QUESTION, on_rewrite="segment")
        cut.add_sampled(ids[: thought - 2])
        _refused(cut, _NEXT, "truncated inside its REASONING")


def _refused(episode: Episode, messages: Sequence[dict[str, Any]], reason: str) -> None:
    before = list(episode.messages), list(episode.tokens)
    try:
        episode.add(messages)
    except EpisodeError as error:
        require(reason in str(error), f"expected an error with {reason!r}, got {error!r}")
    else:
        raise CheckFailedError(f"messages that cannot follow the reply were added: {messages}")
    require_equal((list(episode.messages), list(episode.tokens)), before, "the episode after an error")


def any_order_of_turns_keeps_the_samples(subject: Subject) -> None:
    """However an episode goes on, all sampled ids stay as they are, and only they have weight."""
    machine = episode_machine(subject)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=5,
            stateful_step_count=8,
            deadline=None,
            database=None,
            derandomize=True,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),  # type: ignore[arg-type]
        ),
    )


def episode_machine(subject: Subject) -> type[RuleBasedStateMachine]:
    """Return a state machine of hypothesis that samples, truncates, adds and is refused, in any order."""
    ours, claims = subject.renderer, subject.claims

    class EpisodeMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.episode = ours.episode(_QUESTION, on_rewrite="segment")
            self.replied = False
            self.kept: list[tuple[list[int], list[int]]] = []

        def add_sampled(self, ids: list[int]) -> None:
            before = list(self.episode.tokens)
            self.episode.add_sampled(ids)
            self.kept.append((before, ids))
            self.replied = True

        @precondition(lambda self: not self.replied)
        @rule(reply=random_conversations(claims, max_turns=1))
        def sample(self, reply: list[dict[str, Any]]) -> None:
            text = reply[-1]["content"]
            try:
                ids = sampled(subject.example([*self.episode.messages, {"role": "assistant", "content": text}]))
            except RenderError:  # the format cannot train this reply; a model can sample it all the same
                ids = ours._encoder.encode(text)
            self.add_sampled(ids)

        @precondition(lambda self: not self.replied)
        @rule(text=TEXTS)
        def truncate(self, text: str) -> None:
            self.add_sampled(ours._encoder.encode(text))

        @precondition(lambda self: self.replied)
        @rule(text=TEXTS)
        def add(self, text: str) -> None:
            try:
                self.episode.add([{"role": "user", "content": text}])
            except RenderError:  # the reply is broken, and the invariant below still holds
                return
            self.replied = False

        @rule()
        def refuse(self) -> None:
            messages = list(self.episode.messages), list(self.episode.tokens)
            if self.replied:
                _refused(self.episode, [*_NEXT, {"role": "assistant", "content": "b"}], "an assistant message")
                try:
                    self.episode.add_sampled([1])
                except EpisodeError:
                    pass
                else:
                    raise CheckFailedError("a second reply was added without messages between")
            else:
                _refused(self.episode, _NEXT, "no reply yet")
            require_equal((list(self.episode.messages), list(self.episode.tokens)), messages, "the refusing episode")

        @invariant()
        def samples_are_kept(self) -> None:
            everything = [segment.tokens for segment in self.episode.segments]
            for before, ids in self.kept:
                whole = [*before, *ids]
                require(any(tokens[: len(whole)] == whole for tokens in everything), f"the sampled ids {ids} changed")
            trained = sum(int(np.count_nonzero(example.weights)) for example in self.episode.examples())
            require_equal(trained, sum(len(ids) for _, ids in self.kept), "the number of tokens with weight")

    return EpisodeMachine
