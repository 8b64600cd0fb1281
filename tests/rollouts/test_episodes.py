"""Episodes: what is sampled, how they end, what a failing environment does, and groups."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tinker

import tinkerloop
from tests.renderers.chats import A_TEMPLATE
from tests.rollouts.conftest import QUESTION, ScriptedSampler, done, params, run, tiny_renderer
from tinkerloop.errors import PlanError, RolloutError
from tinkerloop.renderers import Parsed, ParseTermination, get_renderer
from tinkerloop.renderers.template import TemplateOptions
from tinkerloop.rollouts.environments import Outcome, Start, one_turn
from tinkerloop.rollouts.episodes import FailurePolicy, Limits, episode_segments, run_episode, run_group
from tinkerloop.rollouts.trajectory import End, Group, Trajectory

AGAIN = [{"role": "user", "content": "again"}]


@dataclass
class Counting:
    """An environment with plain methods: reward n for reply n, done after `turns` replies."""

    turns: int = 3
    replies: list[Parsed] = field(default_factory=list)
    closed: int = 0

    def start(self) -> Start:
        return Start(QUESTION)

    def step(self, reply: Parsed) -> Outcome:
        self.replies.append(reply)
        count = len(self.replies)
        return Outcome(count, AGAIN, done=count == self.turns, metrics={"count": count})

    def close(self) -> None:
        self.closed += 1


class AsyncCounting(Counting):
    """The same with async methods."""

    async def start(self) -> Start:  # type: ignore[override]
        return super().start()

    async def step(self, reply: Parsed) -> Outcome:  # type: ignore[override]
        return super().step(reply)


class Failing(Counting):
    """An environment that raises `error` in the step of reply number `at`."""

    def __init__(self, error: BaseException, at: int = 1):
        super().__init__()
        self.error, self.at = error, at

    def step(self, reply: Parsed) -> Outcome:
        if len(self.replies) == self.at:
            raise self.error
        return super().step(reply)


def play(environment: Any, script: list[str], renderer: str = "qwen3_instruct", **options: Any) -> Trajectory:
    sampler = ScriptedSampler(script, tiny_renderer(renderer))
    options = {"sampling_params": params(), "seed": 7, **options}
    return run(run_episode(environment, sampler, sampler.renderer, **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tiny() -> Any:
    pytest.importorskip("torch")
    return tinkerloop.connect("local").create_sampling_client(base_model="tiny")


@pytest.mark.parametrize("kind", [Counting, AsyncCounting])
def test_plain_and_async_environments_give_the_same_trajectory(kind: Callable[[], Counting]) -> None:
    environment = kind()
    trajectory = play(environment, ["one", "two", "three"])
    assert [turn.reward for turn in trajectory.turns] == [1.0, 2.0, 3.0]
    assert [turn.metrics for turn in trajectory.turns] == [{"count": 1.0}, {"count": 2.0}, {"count": 3.0}]
    assert [reply.text for reply in environment.replies] == ["one", "two", "three"]
    assert (trajectory.end, trajectory.reward, environment.closed) == (End.DONE, 6.0, 1)


def test_sampled_ids_and_logprobs_are_those_of_the_samples() -> None:
    sampler = ScriptedSampler(["one", "two", "three"])
    trajectory = run(run_episode(Counting(), sampler, sampler.renderer, sampling_params=params(), seed=7))
    (segment,) = trajectory.segments
    tokenizer = sampler.renderer.tokenizer
    sampled = [segment.tokens[start:stop] for start, stop, _ in segment.sampled]
    assert [tokenizer.decode(ids) for ids in sampled] == ["one<|im_end|>", "two<|im_end|>", "three<|im_end|>"]
    assert [turn for _, _, turn in segment.sampled] == [0, 1, 2]
    assert segment.logprobs == tuple(-i / 8 for ids in sampled for i in range(len(ids)))
    for (start, _, turn), (prompt, _) in zip(segment.sampled, sampler.requests, strict=True):
        assert prompt.to_ints() == list(segment.tokens[:start]), turn


def test_the_messages_are_the_whole_conversation() -> None:
    assert [(m["role"], m["content"]) for m in play(Counting(2), ["one", "two"]).messages] == [
        ("user", "2 + 2 ="),
        ("assistant", "one"),
        ("user", "again"),
        ("assistant", "two"),
        ("user", "again"),  # only logged: no reply to it was sampled
    ]


def test_a_format_that_rewrites_history_gives_several_segments_that_share_no_sampled_token() -> None:
    trajectory = play(Counting(2), ["<think>\na\n</think>\n\none", "<think>\nb\n</think>\n\ntwo"], "qwen3")
    assert [[span.turn for span in segment.sampled] for segment in trajectory.segments] == [[0], [1]]
    assert trajectory.sampled_tokens == sum(stop - start for s in trajectory.segments for start, stop, _ in s.sampled)
    decode = tiny_renderer("qwen3").tokenizer.decode
    assert ["a\n</think>" in decode(list(segment.tokens)) for segment in trajectory.segments] == [True, False]


def test_each_turn_is_sampled_with_a_seed_of_its_own() -> None:
    sampler = ScriptedSampler(["one", "two", "three"])
    run(run_episode(Counting(), sampler, sampler.renderer, sampling_params=params(temperature=0.5), seed=7))
    seeds = [given.seed for _, given in sampler.requests]
    random = Random("7/turns")
    assert seeds == [random.getrandbits(31) for _ in range(3)]
    assert len(set(seeds)) == 3
    assert {(given.temperature, tuple(given.stop)) for _, given in sampler.requests} == {  # type: ignore[arg-type]
        (0.5, tuple(sampler.renderer.get_stop_sequences()))
    }


def test_equal_seeds_give_equal_trajectories_on_the_embedded_engine(tiny: Any) -> None:
    def trajectory(seed: int) -> Trajectory:
        work = run_episode(Counting(2), tiny, tiny_renderer(), sampling_params=params(max_tokens=8), seed=seed)
        return run(work)

    assert trajectory(1) == trajectory(1)
    assert trajectory(1).segments != trajectory(2).segments


ENDS = {
    "done": (Counting(1), ["one"], {}, End.DONE, 1),
    "turns": (Counting(9), ["one", "two", "three"], {"max_turns": 2}, End.MAX_TURNS, 2),
    "a reply is cut": (Counting(9), ["one", "two..."], {}, End.MAX_TOKENS, 2),
    "a cut reply is rewarded and done": (Counting(1), ["one..."], {}, End.MAX_TOKENS, 1),
    "the reply breaks off in a tool call": (Counting(9), ["<tool_call>\n{"], {}, End.BROKEN_REPLY, 1),
    "the environment ends a broken reply": (Counting(1), ["<tool_call>\n{"], {}, End.DONE, 1),
}


@pytest.mark.parametrize("name", ENDS)
def test_an_episode_ends_by(name: str) -> None:
    environment, script, limits, end, turns = ENDS[name]
    environment.replies.clear()
    trajectory = play(environment, script, limits=Limits(**limits))
    assert (trajectory.end, len(trajectory.turns)) == (end, turns)
    assert trajectory.reward == sum(range(1, turns + 1))


@pytest.mark.parametrize("limit", ["max_turns", "max_tokens"])
@pytest.mark.parametrize("value", [0, 2.5, float("nan")])
def test_a_limit_is_a_whole_number(limit: str, value: Any) -> None:
    with pytest.raises(RolloutError, match=f"the limit {limit} must be a whole number of at least 1, got"):
        Limits(**{limit: value})


def test_a_reply_that_the_template_cannot_write_ends_the_episode_not_the_run() -> None:
    one_call = (
        "{% for m in messages if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one call') }}"
        "{% endfor %}"
    )
    options = TemplateOptions(one_call + A_TEMPLATE)
    renderer = get_renderer("template", tiny_renderer().tokenizer, options=options)
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    sampler = ScriptedSampler(["one", f"{call}\n{call}"], renderer)
    trajectory = run(run_episode(Counting(9), sampler, renderer, sampling_params=params(max_tokens=256), seed=7))
    assert (trajectory.end, len(trajectory.turns)) == (End.BROKEN_REPLY, 2)


def test_the_environment_sees_that_a_reply_was_cut() -> None:
    environment = Counting(9)
    assert play(environment, ["one..."]).turns[0].termination is ParseTermination.TRUNCATED
    assert environment.replies[0].termination is ParseTermination.TRUNCATED


@pytest.mark.parametrize("room", range(1, 40))
def test_no_sequence_is_longer_than_the_limit_on_tokens(room: int) -> None:
    prompt = tiny_renderer().build_generation_prompt(QUESTION).length
    trajectory = play(Counting(9), ["one"] * 9, limits=Limits(max_tokens=prompt + room))
    assert trajectory.end is End.MAX_TOKENS
    (segment,) = trajectory.segments
    last = segment.sampled[-1]
    assert last.stop <= prompt + room
    if last.stop < prompt + room:  # then the next messages left no token for a reply
        assert len(segment.tokens) >= prompt + room


def test_a_prompt_without_a_token_left_for_the_reply_is_an_error() -> None:
    prompt = tiny_renderer().build_generation_prompt(QUESTION).length
    with pytest.raises(RolloutError, match=f"the prompt has {prompt} tokens, which leaves no token for a reply"):
        play(Counting(), [], limits=Limits(max_tokens=prompt))


def test_a_seed_in_the_sampling_params_is_rejected() -> None:
    with pytest.raises(PlanError, match="sampling_params must have no seed, got seed=1"):
        play(Counting(), [], sampling_params=params(seed=1))


# ---- environments that fail


@pytest.mark.parametrize("error", [ValueError("no file"), StopIteration(), KeyError("x")])
def test_an_error_of_an_environment_is_the_cause_of_a_rollout_error(error: Exception) -> None:
    environment = Failing(error)
    with pytest.raises(RolloutError, match=r"the environment failed in step\(\): ") as raised:
        play(environment, ["one", "two"])
    cause = raised.value.__cause__
    assert cause is error or (cause is not None and cause.__cause__ is error)  # a coroutine may not raise StopIteration
    assert environment.closed == 1


@dataclass
class Returning:
    """An environment whose methods return given values."""

    start_value: Any
    step_value: Any = None

    def start(self) -> Any:
        return self.start_value

    def step(self, reply: Parsed) -> Any:
        return self.step_value


@pytest.mark.parametrize(
    "environment, problem",
    [
        (Returning(QUESTION), r"start\(\) of an environment must return Start\(...\), got \[{'role'"),
        (Returning(Start([{"role": "user"}])), r"that start\(\) returned are not valid: messages\[0\]: 'content' is"),
        (Returning(Start(QUESTION), 1.0), r"step\(\) of an environment must return Outcome\(...\), got 1.0"),
        *(
            (
                Returning(Start(QUESTION), Outcome(messages=wrong, done=True)),
                r"the last messages .* not valid: messages",
            )
            for wrong in ("done", [{"role": "user"}], [{"role": "user", "content": ["text"]}])
        ),
        (Returning(Start(QUESTION), Outcome()), r"step\(\) returned neither messages nor done=True"),
        (
            Returning(Start(QUESTION), Outcome(messages=[{"role": "assistant", "content": "x"}])),
            r"the messages that step\(\) returned are not valid: the new messages contain an assistant message",
        ),
    ],
)
def test_what_an_environment_returns_is_checked(environment: Returning, problem: str) -> None:
    with pytest.raises(RolloutError, match=problem):
        play(environment, ["one", "two"])


@pytest.mark.parametrize("values", [{"reward": float("nan")}, {"reward": "high"}, {"metrics": {"x": float("inf")}}])
def test_an_outcome_needs_finite_numbers(values: Any) -> None:
    with pytest.raises(RolloutError, match="must be a finite number, got"):
        Outcome(**values)


@pytest.mark.parametrize("done", ["false", None, 0.0])
def test_an_outcome_is_done_or_not(done: Any) -> None:
    with pytest.raises(RolloutError, match="done must be True or False, got"):
        Outcome(done=done)


def test_an_error_of_the_service_is_passed_on_unchanged_and_never_repeated() -> None:
    sampler = ScriptedSampler([])  # the first sample raises an IndexError
    with pytest.raises(IndexError):
        run(group_of(Counting, sampler, seeds=[1], on_failure=FailurePolicy(retries=5, then="drop")))


@pytest.mark.parametrize("options", [{"retries": 1.5}, {"retries": -1}, {"retries": math.nan}, {"then": "skip"}])
def test_a_failure_policy_needs_a_whole_number_and_a_known_consequence(options: Any) -> None:
    with pytest.raises(RolloutError, match=r"^(retries|then) must be"):
        FailurePolicy(**options)


DROP = FailurePolicy(retries=5, then="drop")


@pytest.mark.parametrize("given", [params(seed=1), {"max_tokens": 4}])
def test_wrong_sampling_params_are_rejected_before_an_environment_is_created(given: Any) -> None:
    created: list[object] = []
    work = group_of(lambda: created.append(0), ScriptedSampler([]), sampling_params=given, on_failure=DROP)
    with pytest.raises(PlanError, match="sampling_params must"):
        run(work)
    assert not created


@pytest.mark.parametrize(("logprob", "problem"), [(None, "no log-probabilities"), (math.nan, "logprobs finite")])
def test_a_service_without_usable_logprobs_is_no_failure_of_the_environment(logprob: Any, problem: str) -> None:
    class Unusable(ScriptedSampler):
        def sample(self, *args: Any) -> Any:
            sequence = super().sample(*args).result().sequences[0]
            logprobs = None if logprob is None else [logprob] * len(sequence.tokens)
            return done(
                SimpleNamespace(
                    sequences=[SimpleNamespace(tokens=sequence.tokens, logprobs=logprobs, stop_reason="stop")]
                )
            )

    sampler = Unusable(["one"])
    with pytest.raises(RolloutError, match=problem):
        run(group_of(lambda: Counting(1), sampler, seeds=[1], on_failure=DROP))
    assert len(sampler.requests) == 1


async def group_of(create: Callable[[], Any], sampler: Any, **options: Any) -> Group:
    options = {"sampling_params": params(max_tokens=4), "seeds": [1, 2, 3], **options}
    return await run_group(create, sampler, tiny_renderer(), **options)


def test_a_failed_episode_is_repeated_with_the_same_seed_and_counted(tiny: Any) -> None:
    environments = iter([Counting(1), Failing(ValueError("broken"), at=0), Counting(1), Counting(1)])
    group = run(group_of(lambda: next(environments), tiny, on_failure=FailurePolicy(retries=1)))
    assert group.failures == ("the environment failed in step(): ValueError: broken",)
    undisturbed = run(group_of(lambda: Counting(1), tiny))
    assert tokens_of(group) == tokens_of(undisturbed)


def tokens_of(group: Group) -> list[Any]:
    """Return the tokens of a group. Its log-probabilities depend, by rounding, on what else is sampled with it."""
    return [segment.tokens for trajectory in group.trajectories for segment in trajectory.segments]


def test_a_group_with_a_failed_episode_is_dropped_whole_and_logged(tiny: Any) -> None:
    kinds = iter([Counting(1), Failing(ValueError("a"), 0), Failing(OSError("\udcff"), 0)])
    group = run(group_of(lambda: next(kinds), tiny, on_failure=FailurePolicy(then="drop"), batch=4, slot=2))
    assert (group.batch, group.slot, group.trajectories) == (4, 2, ())
    assert set(group.failures) == {
        "the environment failed in step(): ValueError: a",
        r"the environment failed in step(): OSError: \udcff",
    }


def test_a_failure_that_is_raised_names_the_place_of_the_group(tiny: Any) -> None:
    work = group_of(lambda: 1 / 0, tiny, batch=4, slot=2, on_failure=FailurePolicy(retries=1))
    with pytest.raises(RolloutError, match=r"the environment failed in create\(\): ZeroDivisionError") as raised:
        run(work)
    assert raised.value.__notes__ == ["in batch 4 of the rollouts, slot 2, attempt 2"]


# ---- groups


def test_a_group_has_one_trajectory_for_each_seed_in_the_order_of_the_seeds(tiny: Any) -> None:
    group = run(group_of(lambda: Counting(1), tiny, seeds=[5, 3, 9], boundary=12))
    assert [(trajectory.seed, trajectory.boundary) for trajectory in group.trajectories] == [(5, 12), (3, 12), (9, 12)]
    assert group.rewards.tolist() == [1.0, 1.0, 1.0]


def test_episodes_whose_plain_methods_block_run_at_the_same_time(tiny: Any) -> None:
    together = threading.Barrier(3, timeout=30)  # breaks unless three steps wait at the same time

    def reward(reply: Parsed) -> float:
        together.wait()
        return 1.0

    assert run(group_of(lambda: one_turn(QUESTION, reward), tiny)).rewards.tolist() == [1.0, 1.0, 1.0]


def test_requests_in_flight_are_bounded() -> None:
    now, most = 0, 0

    class Slow(ScriptedSampler):
        def sample(self, *args: Any) -> Any:
            future = super().sample(*args)

            async def later() -> Any:
                nonlocal now, most
                now += 1
                most = max(most, now)
                await asyncio.sleep(0)
                now -= 1
                return future.result()

            return later()

    async def work() -> Group:
        return await group_of(lambda: Counting(1), Slow(["one"] * 6), seeds=range(6), in_flight=asyncio.Semaphore(2))

    assert len(run(work()).trajectories) == 6
    assert most == 2


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("value", [2.0, (2, {"length": 3})])
def test_the_reward_of_one_turn_is_a_number_or_a_number_with_metrics(is_async: bool, value: Any) -> None:
    async def later(reply: Parsed) -> Any:
        return value

    trajectory = play(one_turn(QUESTION, later if is_async else lambda reply: value), ["four"])
    assert (trajectory.reward, trajectory.end) == (2.0, End.DONE)
    assert trajectory.turns[0].metrics == ({} if value == 2.0 else {"length": 3.0})


# ---- reference log-probabilities


@pytest.mark.parametrize("name", ["qwen3_instruct", "qwen3"])
def test_reference_logprobs_are_those_of_the_sampled_tokens(tiny: Any, name: str) -> None:
    script = ["<think>\na\n</think>\n\none", "<think>\nb\n</think>\n\ntwo"]
    trajectory = play(Counting(2), script, name, reference=tiny)
    for segment in trajectory.segments:
        every = tiny.compute_logprobs(tinker.ModelInput.from_ints(list(segment.tokens))).result()
        expected = [every[i] for i, turn in enumerate(segment.turn_index) if turn >= 0]
        np.testing.assert_allclose(segment.reference_logprobs, expected, rtol=0, atol=1e-5)
        assert len(segment.reference_logprobs or ()) == len(segment.logprobs)


def test_the_sampler_as_its_own_reference_gives_its_own_logprobs(tiny: Any) -> None:
    group = run(group_of(lambda: Counting(2), tiny, reference=tiny))
    for trajectory in group.trajectories:
        for segment in trajectory.segments:
            np.testing.assert_allclose(segment.reference_logprobs, segment.logprobs, rtol=0, atol=1e-5)


def test_an_episode_that_was_sampled_by_hand_gives_the_same_segments() -> None:
    episode = tiny_renderer().episode(QUESTION)
    tokenizer = tiny_renderer().tokenizer
    for text, messages in (("one", AGAIN), ("two", None)):
        ids = tokenizer.encode(f"{text}<|im_end|>")
        episode.add_sampled(ids, [-i / 8 for i in range(len(ids))])
        if messages:
            episode.add(messages)
    assert episode_segments(episode) == play(Counting(2), ["one", "two"]).segments
