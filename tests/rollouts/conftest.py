"""Renderers, replies as ids, a sampling client that plays given replies, and an ordered service."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
import tinker
from tinker.types import SampledSequence, SampleResponse

import tinkerloop
from tinkerloop.renderers import Renderer
from tinkerloop.testing import OrderedService

T = TypeVar("T")
QUESTION = [{"role": "user", "content": "2 + 2 ="}]


def run(work: Coroutine[Any, Any, T], seconds: float = 60) -> T:
    """Run a coroutine; a wait that never ends is a failure."""
    return asyncio.run(asyncio.wait_for(work, seconds))


@functools.cache
def tiny_renderer(name: str = "qwen3_instruct") -> Renderer:
    return tinkerloop.get_renderer(name, tinkerloop.get_tokenizer("tiny"))


def params(**changes: Any) -> tinker.SamplingParams:
    return tinker.SamplingParams(**{"max_tokens": 64, **changes})


@dataclass
class ScriptedSampler:
    """A sampling client whose replies are given texts of the chat format, each with the stop token at its end.

    A text that ends with "..." is a reply that was cut there. The log-probability of token i is -i / 8. All samples are
    recorded. The reply to a prompt is `script[n]` for the n-th sample.
    """

    script: Sequence[str]
    renderer: Renderer = field(default_factory=tiny_renderer)
    requests: list[tuple[tinker.ModelInput, tinker.SamplingParams]] = field(default_factory=list)

    def sample(self, prompt: tinker.ModelInput, num_samples: int, sampling_params: tinker.SamplingParams) -> Any:
        text = self.script[len(self.requests)]
        self.requests.append((prompt, sampling_params))
        is_cut = text.endswith("...")
        ids = tinkerloop.get_tokenizer("tiny").encode(text.removesuffix("...") + ("" if is_cut else "<|im_end|>"))
        limit = sampling_params.max_tokens or len(ids)
        is_cut, ids = is_cut or len(ids) > limit, ids[:limit]
        logprobs = [-i / 8 for i in range(len(ids))]
        sequence = SampledSequence(
            stop_reason="length" if is_cut else "stop", sequence_id="0", _tokens_list=ids, _logprobs_list=logprobs
        )
        return done(SampleResponse(sequences=[sequence]))

    def compute_logprobs(self, prompt: tinker.ModelInput) -> Any:
        return done([None, *(-float(token) for token in prompt.to_ints()[1:])])


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


@pytest.fixture(scope="session")
def renderer() -> Renderer:
    return tiny_renderer()


@pytest.fixture
def service() -> OrderedService:
    """An ordered service whose unigram model has the vocabulary of the tiny tokenizer."""
    return OrderedService(vocab_size=268)
