"""Sampling from the unigram model of `OrderedService`: the checks of the parameters, and the tokens that are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinkerloop._lazy import tinker
from tinkerloop.testing.unigram import log_softmax

NO_TOKENIZER = "the unigram model has no tokenizer: create datums and prompts from token ids below vocab_size"
_DEFAULT_LENGTH = 16


def check_sampling(params: tinker.SamplingParams, num_samples: int, options: Mapping[str, Any]) -> None:
    """Refuse parameters that the embedded engine refuses, and options that `OrderedService` does not have.

    Raises:
        ValueError: a parameter is out of range.
        NotImplementedError: an option or a stop text is not supported.
    """
    refuse_options(options)
    in_range = {
        "num_samples": (num_samples, num_samples >= 1, "at least 1"),
        "max_tokens": (params.max_tokens, params.max_tokens is None or params.max_tokens >= 1, "None or at least 1"),
        "temperature": (params.temperature, 0 <= params.temperature < math.inf, "a finite number of at least 0"),
        "top_p": (params.top_p, 0 < params.top_p <= 1, "above 0 and at most 1"),
        "top_k": (params.top_k, params.top_k == -1 or params.top_k >= 1, "-1 (off) or at least 1"),
        "seed": (params.seed, params.seed is None or params.seed >= 0, "None or at least 0"),
    }
    for name, (value, is_in_range, wanted) in in_range.items():
        if not is_in_range:
            raise ValueError(f"{name} must be {wanted}, got {value}")
    stop_tokens(params)


def refuse_options(options: Mapping[str, Any]) -> None:
    """Raise NotImplementedError if an option has another value than None, False or 0, which turn options off."""
    if given := sorted(name for name, value in options.items() if value is not None and value is not False and value):
        raise NotImplementedError(f"OrderedService does not support the options {', '.join(given)} of samplers")


def stop_tokens(params: tinker.SamplingParams) -> list[int]:
    """Return the stop tokens.

    Raises:
        NotImplementedError: there are stop texts.
    """
    stops = [params.stop] if isinstance(params.stop, str) else list(params.stop or ())
    tokens = [one for one in stops if not isinstance(one, str)]
    if len(tokens) < len(stops):
        raise NotImplementedError(f"{NO_TOKENIZER}; pass stop tokens instead of the stop texts {stops}")
    return tokens


def draw(logits: NDArray[np.float64], params: tinker.SamplingParams, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the tokens of one sequence, up to a stop token. At temperature 0 the most likely token is repeated."""
    length = _DEFAULT_LENGTH if params.max_tokens is None else params.max_tokens
    if params.temperature == 0:
        tokens = np.full(length, int(np.argmax(logits)))
    else:
        tokens = rng.choice(len(logits), size=length, p=_probabilities(logits, params))
    stopped = np.flatnonzero(np.isin(tokens, stop_tokens(params)))
    return tokens[: stopped[0] + 1] if len(stopped) else tokens


def _probabilities(logits: NDArray[np.float64], params: tinker.SamplingParams) -> NDArray[np.float64]:
    """Return the probabilities with which the tokens are drawn.

    Top-k keeps the `top_k` most likely tokens. Of these, top-p keeps the smallest number of most likely tokens whose
    total probability is at least `top_p`.
    """
    with np.errstate(over="ignore"):  # at a very low temperature, all but the most likely token have probability 0
        p = np.exp(log_softmax((logits - logits.max()) / params.temperature))
    order = np.argsort(-p, kind="stable")
    if params.top_k > 0:
        p[order[params.top_k :]] = 0
        p /= p.sum()
    if params.top_p < 1:
        before = np.cumsum(p[order]) - p[order]
        p[order[1:][before[1:] >= params.top_p]] = 0
        p /= p.sum()
    return p
