"""Execution of sampling calls. Waiting calls that use the same weights are computed together."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tinker
from numpy.typing import NDArray
from tinker.types import SampledSequence, SampleResponse

from tinkerloop.client_versions import has_field
from tinkerloop.local.nn.generation import generate, score_prompt
from tinkerloop.local.nn.inputs import Input
from tinkerloop.local.nn.model import Model
from tinkerloop.local.nn.token_sampling import Continuation, SampleRequest
from tinkerloop.local.request_errors import CallerError
from tinkerloop.local.runtime.engine import Sampler

try:
    from tinker.types.topk_logprobs import TopkLogprobs
except ModuleNotFoundError:  # tinker < 0.29
    from tinker.types.topk_prompt_logprobs import (  # pyright: ignore[reportMissingImports]
        TopkPromptLogprobs as TopkLogprobs,
    )

TOPK_FILL = (0, -99999.0)
"""The pair (token id, log-probability) that Tinker reports among the top k where a position has no value."""


@dataclass(frozen=True)
class PromptScores:
    """Options of a sampling call for the log-probabilities of the prompt.

    `logprobs` requests those of the prompt's tokens, `topk` those of the k most probable tokens, and `targets` those of
    given tokens. With `last`, only the last `last` positions are reported in `logprobs` and `topk`.
    """

    logprobs: bool = False
    topk: int = 0
    targets: NDArray[np.int64] | None = None  # (N-1, K), -1 skips
    last: int | None = None


@dataclass(frozen=True)
class SampleCall:
    """One call of `sample` or of `compute_logprobs`. For `compute_logprobs`, `request` is None."""

    request: SampleRequest | None
    prompt: Input
    scores: PromptScores


def answer_calls(sampler: Sampler, calls: Sequence[SampleCall]) -> list[Any]:
    """Return the result of each call, or the exception of a call that failed.

    The calls are computed together. If this fails, each is computed alone, so that one bad call does not fail others.
    """
    try:
        return _answer_together(sampler, calls)
    except Exception as error:
        return [error] if len(calls) == 1 else [_alone(sampler, call, error) for call in calls]


def _answer_together(sampler: Sampler, calls: Sequence[SampleCall]) -> list[Any]:
    """Compute the calls together and return their results.

    Raises:
        CallerError: the request that should have taken the sampler's snapshot failed.
    """
    model = sampler.model
    if sampler.snapshot_future is not None and (error := sampler.snapshot_future.exception()) is not None:
        raise CallerError(error)
    model.bind(sampler.spec, sampler.weights)
    requests = [call.request for call in calls if call.request is not None]
    generated = iter(generate(model, requests))
    return [_response(model, call, next(generated) if call.request is not None else None) for call in calls]


def _alone(sampler: Sampler, call: SampleCall, error: Exception) -> Any:
    """Compute one of several calls that failed together with `error`. Return its result or its own exception.

    A streaming call is not repeated, because its first tokens were already yielded; for it, return `error`.
    """
    if call.request is not None and call.request.on_token is not None:
        return error
    try:
        return _answer_together(sampler, [call])[0]
    except Exception as own:
        return own


def _response(model: Model, call: SampleCall, sequences: Sequence[Continuation] | None) -> Any:
    scores = call.scores
    prompt_logprobs = topk = targets = None
    if scores.logprobs or scores.topk or scores.targets is not None:
        prompt_logprobs, topk, targets = _prompt_scores(model, call.prompt, scores)
    if sequences is None:
        assert prompt_logprobs is not None
        return [None if np.isnan(value) else value for value in prompt_logprobs.tolist()]
    further: dict[str, Any] = {} if targets is None else {"target_prompt_logprobs": targets}
    return SampleResponse(
        sequences=[_sampled(sequence) for sequence in sequences],
        prompt_logprobs_np=prompt_logprobs if scores.logprobs else None,
        topk_prompt_logprobs_np=topk,
        **further,
    )


def _prompt_scores(
    model: Model, prompt: Input, scores: PromptScores
) -> tuple[NDArray[np.float32], TopkLogprobs | None, tinker.TensorData | None]:
    """Return the prompt's log-probabilities, the top k tokens, and the log-probabilities of `scores.targets`.

    The first position and positions of images get the log-probability NaN, and `TOPK_FILL` as their top k.
    """
    target_ids = prompt.tokens[1:, None]
    if scores.targets is not None:
        target_ids = np.concatenate([target_ids, np.maximum(scores.targets, 0)], axis=1)
    if len(target_ids):
        target_logprobs, ids, values = score_prompt(model, prompt, target_ids, scores.topk)
    else:
        target_logprobs = np.zeros((0, target_ids.shape[1]), np.float32)
        ids, values = np.zeros((0, scores.topk), np.int32), np.zeros((0, scores.topk), np.float32)
    last = len(prompt) if scores.last is None else min(scores.last, len(prompt))
    on_image = prompt.on_image[1:]
    target_logprobs[on_image] = np.nan
    logprobs = np.concatenate([[np.float32(np.nan)], target_logprobs[:, 0]])[-last:]
    topk = targets = None
    if scores.topk and ids is not None and values is not None:
        ids[on_image], values[on_image] = TOPK_FILL
        fill = np.full((1, scores.topk), TOPK_FILL[0], np.int32), np.full((1, scores.topk), TOPK_FILL[1], np.float32)
        topk = TopkLogprobs(
            token_ids=np.concatenate([fill[0], ids])[-last:], logprobs=np.concatenate([fill[1], values])[-last:]
        )
    if scores.targets is not None:
        reported = np.where(scores.targets < 0, np.float32(0), target_logprobs[:, 1:])
        targets = tinker.TensorData.from_numpy(np.ascontiguousarray(reported))
    return logprobs, topk, targets


def _sampled(sequence: Continuation) -> SampledSequence:
    newer: dict[str, Any] = {}  # fields that tinker 0.25 does not have
    if has_field(SampledSequence, "sequence_id"):
        newer["sequence_id"] = secrets.token_hex(8)
    if sequence.request.topk:
        newer["topk_logprobs_np"] = TopkLogprobs(
            token_ids=np.array([ids for ids, _ in sequence.topk], np.int32),
            logprobs=np.array([values for _, values in sequence.topk], np.float32),
        )
    assert sequence.stop_reason in ("stop", "length")
    return SampledSequence(
        stop_reason=sequence.stop_reason,
        tokens_np=np.array(sequence.tokens, np.int32),
        logprobs_np=np.array(sequence.logprobs, np.float32),
        **newer,
    )
