"""A helper that samples from a list of token ids, for the tests of client, runtime and nn."""

from __future__ import annotations

import tinker
from tinker.types import SampledSequence

from tinkerloop.local import SamplingClient


def sample(sampler: SamplingClient, prompt: list[int], n: int = 1, **params) -> list[SampledSequence]:
    return sampler.sample(tinker.ModelInput.from_ints(prompt), n, tinker.SamplingParams(**params)).result().sequences
