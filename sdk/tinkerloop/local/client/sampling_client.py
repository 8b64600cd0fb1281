"""The sampling client: tinker.SamplingClient's interface, implemented on the embedded engine."""

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

from tinkerloop.local.argument_values import true_or_false, whole_number
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
from tinkerloop.local.unsupported import refuse, refuse_option, refuse_without_field, unsupported_error

MAX_TOPK = 20
"""The largest number of alternative tokens that Tinker reports for one position."""


@refuse
class SamplingClient(AwaitableClient):
    """Client that samples from one fixed set of weights. Calls that wait in the queue are computed together."""

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

        The returned tokens include the stop token. With `stop=None` sampling stops at the model's end-of-sequence
        tokens. A given `stop` replaces these; with `stop=[]` only `max_tokens` ends a continuation. Log-probabilities
        are those of the full distribution at temperature 1, without top-k and top-p. `prompt_logprobs_last_n` shortens
        the log-probabilities and the top k of the prompt, but not those of `target_prompt_logprobs`.
        """
        whole_number("prompt_alt_tokens_k", prompt_alt_tokens_k, ValueError, expected="an integer >= 0", least=0)
        refuse_option(prompt_alt_tokens_k > 0, "prompt_alt_tokens_k > 0")
        option = "topk_sample_logprobs with tinker < 0.29"
        refuse_without_field(topk_sample_logprobs != 0, tinker.SampledSequence, "topk_logprobs_np", option)
        option = "target_prompt_logprobs with tinker < 0.30"
        refuse_without_field(target_prompt_logprobs is not None, SampleResponse, "target_prompt_logprobs", option)
        _check_last(prompt_logprobs_last_n)
        if prompt_logprobs_last_n is not None and not include_prompt_logprobs:
            raise ValueError("prompt_logprobs_last_n was given without include_prompt_logprobs=True; pass both")
        try:
            tokens = self._read(prompt)
            include_prompt_logprobs = true_or_false("include_prompt_logprobs", include_prompt_logprobs, user_error)
            targets = _read_targets(target_prompt_logprobs, len(tokens), self._sampler.model.vocab_size)
            most = min(MAX_TOPK, self._sampler.model.vocab_size)
            topk_prompt_logprobs = _topk("topk_prompt_logprobs", topk_prompt_logprobs, most)
            topk_sample_logprobs = _topk("topk_sample_logprobs", topk_sample_logprobs, most)
            request = self._request(tokens, num_samples, sampling_params, topk_sample_logprobs)
        except (tinker.TinkerError, NotImplementedError) as error:
            return failed(error)
        scores = PromptScores(include_prompt_logprobs, topk_prompt_logprobs, targets, prompt_logprobs_last_n)
        return self._submit(SampleCall(request, tokens, scores))

    def compute_logprobs(
        self, prompt: tinker.ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> RequestFuture[list[float | None]]:
        """Return log p(token | tokens before it) for every token of the prompt. The value of the first token is None.

        With `prompt_logprobs_last_n`, only the values of the last n tokens are returned.
        """
        _check_last(prompt_logprobs_last_n)
        try:
            tokens = self._read(prompt)
        except (tinker.TinkerError, NotImplementedError) as error:
            return failed(error)
        return self._submit(SampleCall(None, tokens, PromptScores(logprobs=True, last=prompt_logprobs_last_n)))

    sample_async = awaited(sample)
    compute_logprobs_async = awaited(compute_logprobs)

    def stream(self, prompt: tinker.ModelInput, sampling_params: SamplingParams) -> Iterator[int]:
        """Yield the tokens of one continuation as soon as each is sampled. Only the embedded engine has this method."""
        return self._drawn(self._request(self._read(prompt), 1, sampling_params, 0))

    def _drawn(self, request: SampleRequest) -> Iterator[int]:
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
        """Return None: the embedded engine sends no telemetry."""

    def get_sampler_handle(self) -> str:
        """Return a string with which `from_sampler_handle` opens the same weights in another process.

        The weights must be those of a saved checkpoint or of a base model.

        Raises:
            NotImplementedError: the weights exist only in the memory of this process.
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
        """Return a client that samples from the weights of `handle`, a string that `get_sampler_handle` returned."""
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
        num_samples = whole_number("num_samples", num_samples, user_error, expected="an integer >= 1", least=1)
        if not isinstance(params, SamplingParams):
            raise user_error(f"sampling_params must be a tinker.SamplingParams, got {type(params).__name__}")
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
            prompt=tokens,
            num_samples=num_samples,
            max_tokens=max_tokens,
            temperature=params.temperature,
            top_k=top_k,
            top_p=params.top_p,
            seed=seed,
            stop_ids=ids,
            stop_strings=strings,
            topk=topk,
            seeded=params.seed is not None,
        )

    def _submit(self, call: SampleCall) -> RequestFuture[Any]:
        engine, sampler = self._engine, self._sampler

        def answer(calls: Sequence[SampleCall]) -> list[Any]:
            _ = engine  # This reference keeps the engine alive until it has answered, even if all clients are deleted.
            return answer_calls(sampler, calls)

        return engine.queue.submit_grouped(sampler.group, call, answer, sampler.lane)


@functools.cache
def _engine_for(root: str, device: str, dtype: str) -> Engine:
    """Return the engine for a root folder, device and dtype. In this process, equal arguments share one engine."""
    return Engine(CheckpointStore(Path(root)), torch.device(device), getattr(torch, dtype))


def _check_last(last: int | None) -> None:
    if last is not None:
        whole_number("prompt_logprobs_last_n", last, ValueError, expected="None or an integer >= 1", least=1)


def _topk(name: str, k: int, most: int) -> int:
    return whole_number(name, k, user_error, expected=f"an integer from 0 to {most}", least=0, most=most)


def _stops(stop: str | Sequence[str] | Sequence[int] | None, model: Model) -> tuple[frozenset[int], tuple[str, ...]]:
    """Return (stop token ids, stop strings) of `stop`. For None these are the end-of-sequence tokens of the model."""
    if stop is None:
        return model.end_tokens, ()
    if isinstance(stop, str):
        stop = [stop]
    wrong = [item for item in stop if isinstance(item, bool) or not isinstance(item, Integral | str)]
    if wrong:
        raise user_error(
            "SamplingParams.stop must contain only token ids (int) and strings, "
            f"got {type(wrong[0]).__name__} {wrong[0]!r}"
        )
    ids = frozenset(int(item) for item in stop if isinstance(item, Integral))
    strings = tuple(item for item in stop if isinstance(item, str))
    wrong = sorted(token for token in ids if not 0 <= token < model.vocab_size)
    if wrong:
        raise user_error(
            f"SamplingParams.stop contains token ids outside the vocabulary: {wrong}; "
            f"expected ids in [0, {model.vocab_size})"
        )
    if "" in strings:
        raise user_error(
            "SamplingParams.stop contains an empty string, which would stop every sample at once; remove it"
        )
    return ids, strings


def _read_targets(data: tinker.TensorData | None, length: int, vocab_size: int) -> NDArray[np.int64] | None:
    if data is None:
        return None
    if not isinstance(data, tinker.TensorData):
        raise ValueError(f"target_prompt_logprobs must be a tinker.TensorData or None, got {type(data).__name__}")
    targets = data.to_numpy(pad_value=-1)
    if targets.dtype != np.int64 or targets.ndim != 2 or len(targets) != length - 1:
        raise ValueError(
            "target_prompt_logprobs must have dtype int64 and one row for each prompt token after the first: "
            f"expected shape ({length - 1}, K), got dtype {targets.dtype} and shape {targets.shape}"
        )
    if ((targets < -1) | (targets >= vocab_size)).any():
        raise user_error(
            f"target_prompt_logprobs contains ids outside the vocabulary; expected ids in [0, {vocab_size}), "
            "or -1 to skip an entry"
        )
    return targets
