"""Sampling of episodes: an environment and a sampling client take turns, and the result is a `Trajectory`.

Sampled ids are never rendered again (`tinkerloop.renderers.Episode`). The content of a trajectory depends only on the
environment, the weights and the seed: the seeds of its samples are the numbers that `Random(f"{seed}/turns")` draws.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

from tinkerloop._lazy import tinker
from tinkerloop.clients import SamplingClientLike
from tinkerloop.errors import (
    BrokenReplyError,
    EnvironmentFailedError,
    EpisodeError,
    PlanError,
    RenderError,
    RolloutError,
)
from tinkerloop.loop.futures import awaitable, resolve_async
from tinkerloop.number_checks import check_whole
from tinkerloop.renderers import Episode, Parsed, Renderer
from tinkerloop.renderers.episode import where_broken
from tinkerloop.rollouts.environments import Environment, Outcome, Start, invoke
from tinkerloop.rollouts.trajectory import (
    End,
    Group,
    SampledSpan,
    Trajectory,
    TrajectorySegment,
    Turn,
    readable_message,
)


@dataclass(frozen=True)
class Limits:
    """Limits of one episode. None: no limit.

    Attributes:
        max_turns: the largest number of replies.
        max_tokens: the largest number of tokens of one sequence, prompt included. `SamplingParams.max_tokens` limits
            each reply.
    """

    max_turns: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None:
                check_whole(f"the limit {name}", value, 1, error=RolloutError)


@dataclass(frozen=True)
class FailurePolicy:
    """The action to take if an environment raises an error or returns something invalid.

    All other errors, such as those of the service, end the run.

    Attributes:
        retries: how many times the episode is repeated with a new environment and the same seed.
        then: what happens if the last repetition fails too. `"raise"`: an `EnvironmentFailedError`. `"drop"`: the
            whole group is left out of training, and logged without trajectories.
    """

    retries: int = 0
    then: Literal["raise", "drop"] = "raise"

    def __post_init__(self) -> None:
        check_whole("retries", self.retries, 0, error=RolloutError)
        if self.then not in ("raise", "drop"):
            raise RolloutError(f"then must be 'raise' or 'drop', got {self.then!r}")


async def run_group(
    create: Callable[[], Environment | Awaitable[Environment]],
    sampling_client: SamplingClientLike,
    renderer: Renderer,
    *,
    sampling_params: tinker.SamplingParams,
    seeds: Sequence[int],
    limits: Limits = Limits(),
    on_failure: FailurePolicy = FailurePolicy(),
    boundary: int = 0,
    batch: int = 0,
    slot: int = 0,
    reference: SamplingClientLike | None = None,
    in_flight: asyncio.Semaphore | None = None,
) -> Group:
    """Sample the episodes of one task, all at the same time, and return their trajectories as a group.

    Args:
        create: function, plain or `async`, that creates the environment of one episode.
        seeds: the random seed of the samples of each episode.
        on_failure: what happens if an environment fails.
        batch, slot: where the group belongs; stored in the group.
        sampling_client, renderer, sampling_params, limits, boundary, reference, in_flight: see `run_episode`.

    Raises:
        EnvironmentFailedError: an environment failed, and `on_failure` is to raise.
        RolloutError: the service returned no finite log-probabilities.
        PlanError: `sampling_params` have a seed, or `create` returned an object without `start` or `step`.
    """
    check_sampling_params(sampling_params)

    async def member(seed: int) -> tuple[Trajectory | None, list[str]]:
        failures: list[str] = []
        while True:
            try:
                environment = _checked(await _ask("create", create))
                trajectory = await run_episode(
                    environment,
                    sampling_client,
                    renderer,
                    sampling_params=sampling_params,
                    seed=seed,
                    limits=limits,
                    boundary=boundary,
                    reference=reference,
                    in_flight=in_flight,
                )
                return trajectory, failures
            except EnvironmentFailedError as error:
                failures.append(str(error).encode("utf-8", "backslashreplace").decode())  # JSON lines are UTF-8
                if len(failures) <= on_failure.retries:
                    continue
                if on_failure.then == "raise":
                    error.add_note(f"in batch {batch} of the rollouts, slot {slot}, attempt {len(failures)}")
                    raise
                return None, failures

    tasks = [asyncio.ensure_future(member(seed)) for seed in seeds]
    try:
        members = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()  # has no effect on a finished task
    trajectories = tuple(trajectory for trajectory, _ in members if trajectory is not None)
    failures = tuple(failure for _, texts in members for failure in texts)
    return Group(batch, slot, trajectories if len(trajectories) == len(seeds) else (), failures)


def _checked(environment: Environment) -> Environment:
    """Return the environment if it has the methods of one. A wrong object is no failure: a repetition has it too."""
    for method in ("start", "step"):
        if not callable(getattr(environment, method, None)):
            raise PlanError(
                f"an environment needs the methods start() and step(reply), but the function `environment` returned a "
                f"{type(environment).__name__} without {method}: return one_turn(messages, reward), or an object that "
                "has both"
            )
    return environment


async def run_episode(
    environment: Environment,
    sampling_client: SamplingClientLike,
    renderer: Renderer,
    *,
    sampling_params: tinker.SamplingParams,
    seed: int,
    limits: Limits = Limits(),
    boundary: int = 0,
    reference: SamplingClientLike | None = None,
    in_flight: asyncio.Semaphore | None = None,
) -> Trajectory:
    """Sample one episode.

    Args:
        environment: the environment of this episode. It cannot be used for another one.
        sampling_client: the client to sample from, or the future of one.
        renderer: the chat format of the model.
        sampling_params: the parameters of each sample, without a seed. `max_tokens` limits one reply. If `stop` is
            None, replies end at the stop tokens of the chat format.
        seed: the random seed of the samples.
        limits: after how many turns or tokens the episode ends, if the environment does not end it first.
        boundary: the boundary (the point between two optimizer steps) whose weights `sampling_client` has; stored.
        reference: client whose log-probabilities of the same tokens are stored too, such as the untrained model's.
        in_flight: acquired during each request to a client, to bound the number of requests.

    Raises:
        EnvironmentFailedError: the environment raised an error or returned something invalid.
        RolloutError: the service returned no finite log-probabilities. Errors of the clients are passed on unchanged.
        PlanError: `sampling_params` have a seed.
    """
    check_sampling_params(sampling_params)
    sampling_client, reference = await resolve_async(sampling_client), await resolve_async(reference)
    began = time.perf_counter()
    stop = renderer.get_stop_sequences() if sampling_params.stop is None else sampling_params.stop
    slots: AbstractAsyncContextManager[Any] = in_flight or nullcontext()
    seeds = Random(f"{seed}/turns")  # one for all turns: creating a `Random` takes as long as rendering a message

    async def sample(prompt: tinker.ModelInput, room: int | None) -> Any:
        given = sampling_params.max_tokens
        changes: dict[str, Any] = {
            "max_tokens": given if room is None else room if given is None else min(given, room),
            "stop": stop,
            "seed": seeds.getrandbits(31),
        }
        async with slots:
            response = await awaitable(sampling_client.sample(prompt, 1, sampling_params.model_copy(update=changes)))
        return response.sequences[0]

    try:
        episode, turns, last, end = await _turns(environment, renderer, sample, limits)
    finally:
        if close := getattr(environment, "close", None):
            await _ask("close", close)
    try:
        closing = list(map(readable_message, last))
    except RenderError as error:
        raise EnvironmentFailedError(f"the last messages that step() returned are not valid: {error}") from error
    segments = episode_segments(episode)
    if reference is not None:
        segments = await asyncio.gather(*(_with_reference(segment, reference, slots) for segment in segments))
    return Trajectory(
        segments=tuple(segments),
        turns=tuple(turns),
        messages=(*map(readable_message, episode.messages), *closing),
        end=end,
        boundary=boundary,
        seed=seed,
        seconds=time.perf_counter() - began,
    )


def check_sampling_params(sampling_params: Any) -> None:
    """Raise PlanError unless these are parameters of samples without a seed."""
    if not isinstance(sampling_params, tinker.SamplingParams):
        raise PlanError(f"sampling_params must be tinker.SamplingParams(...), got {sampling_params!r:.80}")
    if sampling_params.seed is not None:
        raise PlanError(
            f"sampling_params must have no seed, got seed={sampling_params.seed}, with which all episodes of a group "
            "would be equal: each sample has a seed that follows from the argument `seed`"
        )


def episode_segments(episode: Episode) -> tuple[TrajectorySegment, ...]:
    """Return the token sequences of an episode, with the log-probabilities that `add_sampled` was given."""
    return tuple(
        TrajectorySegment(
            tokens=tuple(segment.tokens),
            sampled=tuple(SampledSpan(*span) for span in segment.sampled),
            logprobs=tuple(x for start, stop, _ in segment.sampled for x in segment.logprobs[start:stop]),
            images=tuple(segment.images),
        )
        for segment in episode.segments
    )


async def _turns(
    environment: Environment,
    renderer: Renderer,
    sample: Callable[[tinker.ModelInput, int | None], Awaitable[Any]],
    limits: Limits,
) -> tuple[Episode, list[Turn], Sequence[Mapping[str, Any]], End]:
    """Return the episode, its turns, the messages after the last reply (which are only logged), and why it ended."""
    start: Start = await _ask("start", environment.start, returns=Start)
    try:
        episode = renderer.episode(start.messages, start.tools or None, on_rewrite="segment")
    except RenderError as error:
        raise EnvironmentFailedError(
            f"the messages or the tools that start() returned are not valid: {error}"
        ) from error
    turns: list[Turn] = []
    while True:
        room = None if limits.max_tokens is None else limits.max_tokens - len(episode.tokens)
        if room is not None and room < 1:
            if turns:
                return episode, turns, (), End.MAX_TOKENS
            raise EnvironmentFailedError(
                f"the prompt has {len(episode.tokens)} tokens, which leaves no token for a reply; "
                f"raise Limits.max_tokens ({limits.max_tokens}), or leave out tasks with long prompts"
            )
        sampled = await sample(episode.prompt(), room)
        if sampled.logprobs is None:
            raise RolloutError("the service returned no log-probabilities of the sampled tokens, which training needs")
        try:
            reply = episode.add_sampled(sampled.tokens, sampled.logprobs)
        except EpisodeError as error:
            raise RolloutError(f"the service returned a reply that cannot be trained on: {error}") from error
        outcome: Outcome = await _ask("step", environment.step, reply, returns=Outcome)
        turns.append(Turn(outcome.reward, reply.termination, outcome.metrics))
        end = _end(outcome, reply, is_cut=sampled.stop_reason == "length", is_last=len(turns) == limits.max_turns)
        if end is not None:
            return episode, turns, outcome.messages, end
        if not outcome.messages:
            raise EnvironmentFailedError("step() returned neither messages nor done=True; return one of them")
        try:
            episode.add(outcome.messages)
        except BrokenReplyError:
            return episode, turns, outcome.messages, End.BROKEN_REPLY
        except RenderError as error:
            raise EnvironmentFailedError(f"the messages that step() returned are not valid: {error}") from error


def _end(outcome: Outcome, reply: Parsed, *, is_cut: bool, is_last: bool) -> End | None:
    if is_cut:
        return End.MAX_TOKENS
    if outcome.done:
        return End.DONE
    if where_broken(reply):
        return End.BROKEN_REPLY
    return End.MAX_TURNS if is_last else None


async def _with_reference(
    segment: TrajectorySegment, reference: SamplingClientLike, slots: AbstractAsyncContextManager[Any]
) -> TrajectorySegment:
    async with slots:
        logprobs = await awaitable(reference.compute_logprobs(segment.model_input))
    sampled = [logprobs[i] for start, stop, _ in segment.sampled for i in range(start, stop)]
    return replace(segment, reference_logprobs=tuple(map(float, sampled)))


async def _ask(method: str, function: Callable[..., Any], *args: Any, returns: type | None = None) -> Any:
    """Call a method of the environment. Any error that it raises becomes an `EnvironmentFailedError`."""
    try:
        value = await invoke(function, *args)
    except Exception as error:
        raise EnvironmentFailedError(
            f"the environment failed in {method}(): {type(error).__name__}: {error}"
        ) from error
    if returns is not None and not isinstance(value, returns):
        raise EnvironmentFailedError(
            f"{method}() of an environment must return {returns.__name__}(...), got {value!r:.80}"
        )
    return value
