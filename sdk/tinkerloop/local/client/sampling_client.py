"""The sampling client: tinker.SamplingClient's interface on the embedded engine."""

from __future__ import annotations

import functools
import json
import queue
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import tinker
import torch
from numpy.typing import NDArray
from tinker.types import SampleResponse, SamplingParams
from transformers import PreTrainedTokenizerBase

from tinkerloop.local.client.async_methods import awaited, queued
from tinkerloop.local.client.awaitable_client import AwaitableClient
from tinkerloop.local.nn.inputs import Input
from tinkerloop.local.nn.model import Model
from tinkerloop.local.nn.token_sampling import SampleRequest
from tinkerloop.local.request_errors import user_error
from tinkerloop.local.runtime.checkpoint_store import CheckpointStore
from tinkerloop.local.runtime.engine import Engine, Sampler
from tinkerloop.local.runtime.request_future import RequestFuture, failed
from tinkerloop.local.runtime.request_reading import read_prompt
from tinkerloop.local.runtime.sampling_requests import PromptScores, SampleCall, answer_calls
from tinkerloop.local.unsupported import refuse, refuse_option, unsupported_error

MAX_TOPK = 20
"""Tinker reports at most so many alternatives for a position."""


@refuse
class SamplingClient(AwaitableClient):
    """A client that samples from one fixed set of weights. Calls that wait in the queue are computed together."""

    def __init__(self, engine: Engine, sampler: Sampler):
        self._engine, self._sampler = engine, sampler

    def sample(
        self,
        prompt: tinker.ModelInput,
        num_samples: int,
        sampling_params: SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
        target_prompt_logprobs: tinker.TensorData | None = None,
        prompt_alt_tokens_k: int = 0,
        prompt_logprobs_last_n: int | None = None,
    ) -> RequestFuture[SampleResponse]:
        """Sample `num_samples` continuations of `prompt`.

        The returned tokens include the stop token. `stop=None` stops at the model's end-of-sequence tokens, `stop=[]`
        never; a given `stop` replaces the default. Log-probabilities are at temperature 1, before top-k and top-p.
        """
        refuse_option(prompt_alt_tokens_k > 0, "prompt_alt_tokens_k > 0")
        _check_last(prompt_logprobs_last_n)
        if prompt_logprobs_last_n is not None and not include_prompt_logprobs:
            raise ValueError("prompt_logprobs_last_n needs include_prompt_logprobs=True")
        try:
            tokens = self._read(prompt)
            targets = _read_targets(target_prompt_logprobs, len(tokens), self._sampler.model.vocab_size)
            for name, k in (("prompt", topk_prompt_logprobs), ("sample", topk_sample_logprobs)):
                if not isinstance(k, Integral) or not 0 <= k <= min(MAX_TOPK, self._sampler.model.vocab_size):
                    raise user_error(f"topk_{name}_logprobs must be between 0 and {MAX_TOPK}, got {k!r}")
            request = self._request(tokens, num_samples, sampling_params, topk_sample_logprobs)
        except (tinker.TinkerError, NotImplementedError) as error:
            return failed(error)
        scores = PromptScores(include_prompt_logprobs, topk_prompt_logprobs, targets, prompt_logprobs_last_n)
        return self._submit(SampleCall(request, tokens, scores))

    def compute_logprobs(
        self, prompt: tinker.ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> RequestFuture[list[float | None]]:
        """Return log p(token | tokens before it) for every token of the prompt; None for the first."""
        _check_last(prompt_logprobs_last_n)
        try:
            tokens = self._read(prompt)
        except (tinker.TinkerError, NotImplementedError) as error:
            return failed(error)
        return self._submit(SampleCall(None, tokens, PromptScores(logprobs=True, last=prompt_logprobs_last_n)))

    sample_async = awaited(sample)
    compute_logprobs_async = awaited(compute_logprobs)

    def stream(self, prompt: tinker.ModelInput, sampling_params: SamplingParams) -> Iterator[int]:
        """Yield the tokens of one continuation as they are drawn. Local only."""
        request = self._request(self._read(prompt), 1, sampling_params, 0)
        drawn: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        request = replace(request, on_token=lambda _, token: drawn.put(token))
        answer = self._submit(SampleCall(request, request.prompt, PromptScores()))
        answer.add_done_callback(lambda _: drawn.put(None))
        while (token := drawn.get()) is not None:
            yield token
        answer.result()

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        return self._sampler.model.tokenizer

    def get_base_model(self) -> str:
        return self._sampler.model.name

    get_base_model_async = queued(get_base_model)

    def get_telemetry(self) -> None:
        """None: nothing is reported to anyone."""

    def get_sampler_handle(self) -> str:
        """Return a string from which another process opens the same weights: a saved checkpoint's or a base model's.

        Raises:
            NotImplementedError: the weights are a snapshot that was not saved.
        """
        engine, sampler = self._engine, self._sampler
        if sampler.spec is not None and sampler.path is None:
            raise unsupported_error("get_sampler_handle() of an unsaved snapshot")
        fields = {
            "root": str(engine.store.root),
            "device": str(engine.device),
            "dtype": str(engine.dtype).removeprefix("torch."),
            "model_path": sampler.path,
            "base_model": sampler.model.name,
        }
        return json.dumps(fields)

    @staticmethod
    def from_sampler_handle(handle: str, *, api_key: str | None = None) -> SamplingClient:
        """Open the weights that `get_sampler_handle` returned a handle of."""
        fields = json.loads(handle)
        engine = _engine_for(fields["root"], fields["device"], fields["dtype"])
        model_path, base_model = fields["model_path"], fields["base_model"]
        return SamplingClient(
            engine, engine.queue.submit(lambda: engine.create_sampler(model_path, base_model)).result()
        )

    def __reduce__(self):
        return SamplingClient.from_sampler_handle, (self.get_sampler_handle(),)

    def _read(self, prompt: tinker.ModelInput) -> Input:
        model = self._sampler.model
        return read_prompt(prompt, model.vocab_size, model.max_length, model.vision)

    def _request(self, tokens: Input, num_samples: int, params: SamplingParams, topk: int) -> SampleRequest:
        model = self._sampler.model
        if not isinstance(num_samples, Integral) or num_samples < 1:
            raise user_error(f"num_samples must be an integer >= 1, got {num_samples!r}")
        room = model.max_length - len(tokens)
        max_tokens = room if params.max_tokens is None else params.max_tokens
        if max_tokens < 1 and params.max_tokens is not None:
            raise user_error(f"max_tokens must be >= 1, got {max_tokens}")
        if max_tokens > room or max_tokens < 1:
            raise user_error(
                f"Prompt length plus max_tokens exceeds the model's context window: {len(tokens)} + "
                f"{max(max_tokens, 1)} > {model.max_length}"
            )
        for name, ok, wanted in (
            ("temperature", 0 <= params.temperature < float("inf"), "a finite number >= 0"),
            ("top_p", 0 < params.top_p <= 1, "in (0, 1]"),
            ("top_k", params.top_k == -1 or params.top_k >= 1, "-1 (off) or >= 1"),
            ("seed", params.seed is None or params.seed >= 0, "None or >= 0"),
        ):
            if not ok:
                raise user_error(f"SamplingParams.{name} must be {wanted}, got {getattr(params, name)}")
        ids, strings = _stops(params.stop, model)
        seed = secrets.randbits(63) if params.seed is None else params.seed
        top_k = min(params.top_k, model.vocab_size)
        return SampleRequest(
            tokens, num_samples, max_tokens, params.temperature, top_k, params.top_p, seed, ids, strings, topk
        )

    def _submit(self, call: SampleCall) -> RequestFuture[Any]:
        engine, sampler = self._engine, self._sampler

        def answer(calls: Sequence[SampleCall]) -> list[Any]:
            _ = engine  # keeps the engine alive until it has answered, even if every client is gone
            return answer_calls(sampler, calls)

        return engine.queue.submit_grouped(id(sampler), call, answer)


@functools.cache
def _engine_for(root: str, device: str, dtype: str) -> Engine:
    """Return one engine for all handles of the same root, device and dtype in this process."""
    return Engine(CheckpointStore(Path(root)), torch.device(device), getattr(torch, dtype))


def _check_last(last: int | None) -> None:
    if last is not None and not (isinstance(last, Integral) and last >= 1):
        raise ValueError(f"prompt_logprobs_last_n must be an integer >= 1, got {last!r}")


def _stops(stop: str | Sequence[str] | Sequence[int] | None, model: Model) -> tuple[frozenset[int], tuple[str, ...]]:
    """Return (ids of stop tokens, stop strings)."""
    if stop is None:
        return model.end_tokens, ()
    if isinstance(stop, str):
        stop = [stop]
    ids = frozenset(item for item in stop if isinstance(item, int))
    strings = tuple(item for item in stop if isinstance(item, str))
    wrong = sorted(token for token in ids if not 0 <= token < model.vocab_size)
    if wrong:
        raise user_error(f"SamplingParams.stop must hold token ids in [0, {model.vocab_size}), got {wrong}")
    if "" in strings:
        raise user_error("SamplingParams.stop holds an empty string, which would stop at once: remove it")
    return ids, strings


def _read_targets(data: tinker.TensorData | None, length: int, vocab_size: int) -> NDArray[np.int64] | None:
    if data is None:
        return None
    targets = data.to_numpy()
    if targets.dtype != np.int64 or targets.ndim != 2 or len(targets) != length - 1:
        raise ValueError(
            f"target_prompt_logprobs must be int64 of shape ({length - 1}, K), got {targets.dtype} {targets.shape}"
        )
    if ((targets < -1) | (targets >= vocab_size)).any():
        raise user_error(f"target_prompt_logprobs holds ids outside [-1, {vocab_size})")
    return targets
