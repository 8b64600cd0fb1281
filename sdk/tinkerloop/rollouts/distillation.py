"""Datums for off-policy distillation: a student is trained on the tokens that a teacher finds most likely.

For on-policy distillation, see `tinkerloop.rollouts.advantages.reverse_kl`.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import numpy as np

from tinkerloop._lazy import tinker
from tinkerloop.datum import make_datum
from tinkerloop.errors import DatumError

Candidates = Sequence[tuple[int, float]]
"""The most likely tokens at one position, each as (token id, log-probability)."""


def distillation_datum(
    prompt: tinker.ModelInput | Sequence[int],
    reply: Sequence[int],
    candidates: Sequence[Candidates | None],
    *,
    vocab_size: int | None = None,
) -> tinker.Datum:
    """Build a cross_entropy datum that trains, at each token of a reply, the teacher's distribution over K tokens.

    The loss of a position is -sum over k of p_k * log q(token k), where q are the student's probabilities and p_k are
    those of the teacher, divided by their sum over the K tokens. It is lowest if q equals p. Source: word-level
    knowledge distillation (Kim and Rush, 2016, "Sequence-Level Knowledge Distillation"), limited to K tokens.

    The prompt may differ from that of the teacher. A prompt without the instructions that the teacher had gives prompt
    distillation.

    Args:
        prompt: the prompt of the student.
        reply: the R token ids of the reply.
        candidates: for each token of the reply, the K most likely tokens of the teacher at its position. With
            `sample(..., topk_prompt_logprobs=K)` of prompt and reply, they are
            `response.topk_prompt_logprobs[-len(reply):]`. If there are fewer than K at a position, the others have
            weight 0.
        vocab_size: if given, every token id must be less than this.

    Returns:
        A datum of N - 1 positions, where N is the number of tokens of prompt and reply, with `target_tokens` and
        `weights` (N - 1, K). The weights of each position of the reply sum to 1; those of the prompt are 0.

    Raises:
        DatumError: there is not one entry of `candidates` with at least one token for each token of the reply, a
            token id is not a whole number, a log-probability is not finite, or the datum breaks a rule of `make_datum`.

    Example:
        response = teacher.sample(ModelInput.from_ints(prompt + reply), 1, SamplingParams(max_tokens=1),
                                  include_prompt_logprobs=True, topk_prompt_logprobs=20).result()
        datum = distillation_datum(prompt, reply, response.topk_prompt_logprobs[-len(reply):])
    """
    if len(candidates) != len(reply):
        raise DatumError(
            "must have one entry per token of the reply", field="candidates", expected=len(reply), given=len(candidates)
        )
    if not isinstance(prompt, tinker.ModelInput):
        prompt = tinker.ModelInput.from_ints(list(prompt))
    width = max((len(one or ()) for one in candidates), default=0)
    targets = np.zeros((prompt.length + len(reply), max(width, 1)), np.int64)  # (N, K)
    weights = np.zeros(targets.shape, np.float32)
    for index, one in enumerate(candidates):
        if not one:
            raise DatumError("must have at least one token", field="candidates", index=index, given=one)
        ids, logprobs = zip(*one, strict=True)
        if not all(isinstance(token, Integral) for token in ids):  # for example (log-probability, token id)
            raise DatumError("must be pairs (token id, log-probability)", field="candidates", index=index, given=one)
        if not np.all(np.isfinite(logprobs)):
            raise DatumError("must have finite log-probabilities", field="candidates", index=index, given=logprobs)
        probabilities = np.exp(np.subtract(logprobs, max(logprobs), dtype=np.float64))
        targets[prompt.length + index, : len(ids)] = ids
        weights[prompt.length + index, : len(ids)] = probabilities / probabilities.sum()
    tokens = prompt.append(tinker.EncodedTextChunk(tokens=list(reply)))
    return make_datum(tokens, weights, targets=targets, vocab_size=vocab_size)
