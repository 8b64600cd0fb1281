"""One sampling call on a list of token ids, for the tests of every layer of the engine."""

from __future__ import annotations

import tinker
from tinker.types import SampledSequence

from tinkerloop.local import SamplingClient


def sample(sampler: SamplingClient, prompt: list[int], n: int = 1, **params) -> list[SampledSequence]:
    return sampler.sample(tinker.ModelInput.from_ints(prompt), n, tinker.SamplingParams(**params)).result().sequences
