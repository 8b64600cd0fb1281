"""The operations of the server: what each request does with the engine.

An operation that computes something returns the id of its request at once. `fetch` waits for the answer. Whatever is
wrong with a request becomes its answer, so that the order of the requests is kept and the client does not try again.
"""

from __future__ import annotations

import asyncio
import functools
import math
import uuid
from collections.abc import Callable
from typing import Any

import tinker
from tinker.types import (
    CopyWeightsRequest,
    CreateModelRequest,
    CreateSamplingSessionRequest,
    LoadWeightsRequest,
    OptimStepRequest,
    SampleRequest,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
    SaveWeightsRequest,
)

from tinkerloop.gone_texts import NO_MODEL, NO_SAMPLER, STOPPED, STOPPING
from tinkerloop.local import RestClient, SamplingClient, TrainingClient
from tinkerloop.local.argument_values import check_unicode
from tinkerloop.local.client.service_client import check_optimizer, new_lora_spec
from tinkerloop.local.request_errors import bad_request, not_found, server_error, user_error
from tinkerloop.local.runtime.checkpoint_record import metadata_of
from tinkerloop.local.runtime.engine import Engine, EngineRun, Sampler
from tinkerloop.local.runtime.request_future import RequestFuture
from tinkerloop.local.unsupported import refuse_option
from tinkerloop.server import request_ids
from tinkerloop.server.answers import Answer, Answers, failure, json_answer
from tinkerloop.server.body_checks import Body, place_of, small_metadata, validated
from tinkerloop.server.downloads import Downloads
from tinkerloop.server.protobuf import MAX_ELEMENTS, ForwardBackwardCall, encode_output, encode_samples
from tinkerloop.server.request_order import memory_of
from tinkerloop.server.sessions import HostedModel, HostedSampler, ServerLimits, Session, Sessions

StartRequest = Callable[[EngineRun], RequestFuture]
_COPIES = uuid.UUID("8c1f7e0a-5b0e-4d0c-9a3e-2f6d1f4f7b52")
"""Namespace of the ids of runs that hold a copy."""
LOAD_SECONDS = 40.0
"""Seconds for which the creation of a sampler is awaited. The client waits for 60 seconds, and then asks again."""


class TinkerService:
    """One engine for several sessions. Use it only on the event loop's thread."""

    def __init__(self, engine: Engine, limits: ServerLimits):
        self.engine, self.limits = engine, limits
        self.sessions = Sessions(limits)
        self.answers = Answers()
        self.downloads = Downloads(engine.store)
        self._stopping = False

    # -- sessions ------------------------------------------------------------------------------------------------

    def create_session(self, body: dict[str, Any]) -> str:
        metadata, display_name = small_metadata(body.get("user_metadata") or None), body.get("display_name")
        if not isinstance(display_name, str | None):
            raise bad_request(f"display_name must be a string, got {type(display_name).__name__}")
        check_unicode("display_name", display_name or "")
        return self.sessions.open(metadata, display_name).id

    def sweep(self, now: float, paused: float = 0.0) -> None:
        """End silent sessions, forget old answers, and give up waiting for requests that never arrived.

        Call it every few seconds with `time.monotonic()`. `paused` are the seconds since the last call for which the
        server did not run, for example because it was suspended: nobody could reach it, so they count for nobody.
        """
        if paused > 0:
            self.sessions.excuse(paused, now)
            self.answers.excuse(paused, now)
        for session_id in self.sessions.expired(now):
            self.sessions.close(session_id)
        for session in self.sessions:
            for model in session.models.values():
                model.order.give_up(now)
        self.answers.forget(now)

    # -- models --------------------------------------------------------------------------------------------------

    def create_model(self, body: dict[str, Any]) -> str:
        def create(request: CreateModelRequest, run_id: str, session: Session) -> RequestFuture[EngineRun]:
            options = request.lora_config
            if options is None:
                raise bad_request("create_model needs lora_config")
            check_optimizer(request.optimizer_config)
            if options.rank > self.limits.rank:
                raise bad_request(
                    f"rank {options.rank} is too large; the largest rank of this server is {self.limits.rank}"
                )
            flags = options.train_mlp, options.train_attn, options.train_unembed
            spec, metadata = new_lora_spec(options.rank, options.seed, *flags), _merged(session, request.user_metadata)
            return self.engine.queue.submit(
                lambda: self.engine.create_run(request.base_model, spec, metadata, run_id=run_id, lane=session.id),
                session.id,
            )

        return self._create(
            body, CreateModelRequest, create, lambda run_id: {"model_id": run_id, "type": "create_model"}
        )

    def load_weights(self, body: dict[str, Any]) -> str:
        """Create a model from a checkpoint, or load a checkpoint into a model that has executed no other request."""

        def create(request: LoadWeightsRequest, run_id: str, session: Session) -> RequestFuture[EngineRun]:
            _check_load(request)
            metadata = _merged(session, request.user_metadata)
            path, base_model, optimizer = request.path, request.base_model, request.optimizer
            return self.engine.queue.submit(
                lambda: self.engine.create_run_from(
                    path, base_model, optimizer, metadata, run_id=run_id, lane=session.id
                ),
                session.id,
            )

        def load(request: LoadWeightsRequest, run: EngineRun) -> RequestFuture:
            _check_load(request)
            client = TrainingClient(self.engine, run)
            return (
                client.load_state_with_optimizer(request.path) if request.optimizer else client.load_state(request.path)
            )

        if "model_id" in body:
            return self._in_order(body, LoadWeightsRequest, load, json_answer)
        path = body.get("path")
        return self._create(
            body, LoadWeightsRequest, create, lambda run_id: {"path": path, "model_id": run_id, "type": "load_weights"}
        )

    def get_info(self, model_id: str) -> tinker.types.GetInfoResponse:
        model = self.sessions.model(model_id)
        if model is None or model.run is None:
            raise not_found(self._gone(model_id))
        return TrainingClient(self.engine, model.run).get_info()

    # -- training ------------------------------------------------------------------------------------------------

    def forward_backward(self, call: ForwardBackwardCall) -> str:
        def start(run: EngineRun) -> RequestFuture:
            client = TrainingClient(self.engine, run)
            method = client.forward if call.forward_only else client.forward_backward
            return method(*call.arguments())

        return self._queue(call.model_id, call.number, start, encode_output, call.message.ByteSize())

    def reject(self, model_id: str, number: int, reason: str) -> str:
        """Fail a request of a model in its place."""

        def start(run: EngineRun) -> RequestFuture:
            raise user_error(reason)

        return self._queue(model_id, number, start, json_answer, 0)

    def optim_step(self, body: dict[str, Any]) -> str:
        def step(request: OptimStepRequest, run: EngineRun) -> RequestFuture:
            params: Any = request.optim_params  # optim_step checks its type
            return TrainingClient(self.engine, run).optim_step(params)

        return self._in_order(body, OptimStepRequest, step, json_answer)

    def save_weights(self, body: dict[str, Any]) -> str:
        def save(request: SaveWeightsRequest, run: EngineRun) -> RequestFuture:
            if request.path is None:
                raise bad_request("save_weights needs path, the name of the checkpoint")
            return TrainingClient(self.engine, run).save_state(
                request.path,
                request.ttl_seconds,
                request.overwrite,
                small_metadata(getattr(request, "user_metadata", None)),
            )

        return self._in_order(body, SaveWeightsRequest, save, json_answer)

    def save_weights_for_sampler(self, body: dict[str, Any]) -> str:
        """Save a checkpoint for sampling. Without a name, create a sampler from a snapshot that is not saved."""

        def save(request: SaveWeightsForSamplerRequest, run: EngineRun) -> RequestFuture:
            refuse_option(getattr(request, "kind", "snapshot") != "snapshot", "kind='inflight'")
            if request.path is not None:
                return TrainingClient(self.engine, run).save_weights_for_sampler(
                    request.path, request.ttl_seconds, small_metadata(getattr(request, "user_metadata", None))
                )
            number = request.sampling_session_seq_id
            if not request_ids.is_number(number):
                raise bad_request("save_weights_for_sampler needs path, or sampling_session_seq_id (an integer >= 0)")
            sampler = Sampler(run.model, run.spec, lane=run.lane)

            def take() -> tuple[int | None, Sampler]:
                self.engine.snapshot(run, sampler)
                return number, sampler

            return self.engine.queue.submit(take, run.lane)

        def encode(result: Any) -> Answer:
            if not isinstance(result, tuple):
                return json_answer(result)
            number, sampler = result
            session = self.sessions.get(request_ids.session_of(body["model_id"]))
            name = request_ids.sampler_id(session.id, number)
            self._add_sampler(session, name, sampler)
            return json_answer({"sampling_session_id": name})

        return self._in_order(body, SaveWeightsForSamplerRequest, save, encode)

    def save_weights_external(self, body: dict[str, Any]) -> str:
        """Save the weights as files for other programs, which `Downloads` links to."""

        def save(request: SaveWeightsExternalRequest, run: EngineRun) -> RequestFuture:
            if getattr(request, "age_encryption_recipients", None):
                raise user_error(
                    "the server does not support age_encryption_recipients: the files stay on the machine of the "
                    "server; omit it"
                )
            name, ttl_seconds = request.path, request.ttl_seconds
            return self.engine.queue.submit(
                lambda: self.engine.save(run, "external_weights", name, ttl_seconds, False, None), run.lane
            )

        return self._in_order(body, SaveWeightsExternalRequest, save, lambda path: json_answer({"path": path}))

    # -- sampling ------------------------------------------------------------------------------------------------

    async def create_sampler(self, body: dict[str, Any]) -> str | None:
        """Open a base model or a checkpoint for sampling, and return the id of the sampler.

        Return None if this takes longer than `LOAD_SECONDS`. The client then asks again.
        """
        request = CreateSamplingSessionRequest.model_validate(body)
        session = self.sessions.get(request.session_id)
        name = request_ids.sampler_id(session.id, request.sampling_session_seq_id)
        if name in session.samplers:
            return name
        path, base_model = request.model_path, request.base_model
        if path is None and base_model is None:
            raise bad_request("create_sampling_session needs model_path or base_model")
        if not request_ids.is_number(request.sampling_session_seq_id):
            raise bad_request("sampling_session_seq_id must be an integer >= 0")
        if name not in session.opening:
            self._check_running()
            session.opening[name] = self.engine.queue.submit(
                lambda: self.engine.create_sampler(path, base_model, session.id), session.id
            )
        opening = asyncio.wrap_future(session.opening[name])
        await asyncio.wait([opening], timeout=LOAD_SECONDS)
        if not opening.done():
            return None
        session.opening.pop(name, None)
        self._add_sampler(session, name, opening.result())
        return name

    def sample(self, body: dict[str, Any]) -> tuple[str, list[str]]:
        """Queue a sampling call. Return the id of the request, and an id for each of its samples."""
        owner, number, count = body.get("sampling_session_id"), body.get("seq_id"), body.get("num_samples", 1)
        if not isinstance(owner, str) or not request_ids.is_number(number):
            raise bad_request("asample needs sampling_session_id (a string) and seq_id (an integer >= 0)")
        name = request_ids.request_id(owner, number)
        fits = type(count) is int and 1 <= count <= self.limits.samples
        sequence_ids = [f"{name}:{index}" for index in range(count)] if fits else []

        def start(sampler: HostedSampler) -> RequestFuture:
            if not fits:
                raise user_error(f"num_samples must be an integer from 1 to {self.limits.samples}, got {count!r}")
            return _sample(sampler.client, validated(SampleRequest, body))

        sampler = self.sessions.sampler(owner)
        if sampler is not None and name not in self.answers:
            self.answers.open(name)
            self._start(name, functools.partial(start, sampler), encode_samples)
        return name, sequence_ids

    def _add_sampler(self, session: Session, name: str, sampler: Sampler) -> None:
        client = SamplingClient(self.engine, sampler)
        self.sessions.add_sampler(session, name, HostedSampler(client, sampler.model.name, sampler.path))

    def get_sampler(self, name: str) -> dict[str, Any]:
        sampler = self.sessions.sampler(name)
        if sampler is None:
            raise not_found(self._gone(name))
        return {"sampler_id": name, "base_model": sampler.base_model, "model_path": sampler.path}

    # -- answers -------------------------------------------------------------------------------------------------

    async def fetch(self, request_id: str, seconds: float) -> Answer | None:
        """Wait for the answer of a request for at most `seconds`. Return None if it is unfinished."""
        try:
            return await self.answers.fetch(request_id, seconds)
        except KeyError:
            return failure(user_error(self._explain_missing(request_id)))

    async def stop(self) -> None:
        """Execute the queued requests, then fail what still waits for a request that has not arrived."""
        self._stopping = True
        await asyncio.wrap_future(self.engine.queue.stop())
        await asyncio.sleep(0)  # lets the last answers be finished
        self.answers.fail_unfinished(server_error(f"{STOPPED} before it executed this request"))

    def rest_client(self) -> RestClient:
        """Return a client for the checkpoints on disk."""
        return RestClient(self.engine.store.root, models=self.supported_models())

    def run_of_copy(self, request: CopyWeightsRequest, key: str | None) -> str:
        """Return the training run into which a checkpoint is copied. `key` is the same in all retries of a request.

        It is the run of the session and number that the request gives, or a new one.
        """
        session_id, number = request.session_id, request.model_seq_id
        if session_id is None and number is None:
            return request_ids.model_id(str(uuid.uuid4() if key is None else uuid.uuid5(_COPIES, key)), 0)
        if session_id is None or not request_ids.is_number(number):
            raise bad_request("copy_weights needs both session_id and model_seq_id (an integer >= 0), or neither")
        session = self.sessions.get(session_id)
        run = request_ids.model_id(session.id, number)
        if run in session.models:
            raise bad_request(f"the session trains a model with the number {number}; a copy needs another number")
        return run

    def supported_models(self) -> list[tinker.types.SupportedModel]:
        lengths: dict[str, int | None] = dict.fromkeys(self.engine.folders or ())
        loaded = list(self.engine.models.items())  # a copy, because the engine's thread may add a model now
        lengths.update({name: model.max_length for (name, _), model in loaded})
        return [
            tinker.types.SupportedModel(model_name=name, max_context_length=length, trainable=True, sampleable=True)
            for name, length in lengths.items()
        ]

    # -- the queue -----------------------------------------------------------------------------------------------

    def _create(
        self,
        body: dict[str, Any],
        kind: type[Body],
        create: Callable[[Body, str, Session], RequestFuture[EngineRun]],
        result: Callable[[str], dict[str, Any]],
    ) -> str:
        """Create a model: request number 0, after which the model's requests are executed from number 1 on."""
        session_id, number = body.get("session_id"), body.get("model_seq_id")
        if not isinstance(session_id, str) or not request_ids.is_number(number):
            raise bad_request(f"{kind.__name__} needs session_id (a string) and model_seq_id (an integer >= 0)")
        owner = request_ids.model_id(session_id, number)
        name = request_ids.request_id(owner, 0)
        session = self.sessions.find(session_id)
        if session is None or name in self.answers or owner in session.models:
            return name
        self.answers.open(name)

        def start() -> RequestFuture[EngineRun]:
            request = validated(kind, body)
            self.sessions.check_room_for_model()
            session.models[owner] = HostedModel()
            try:
                return create(request, owner, session)
            except BaseException:
                del session.models[owner]
                raise

        def created(run: EngineRun) -> Answer:
            model = session.models[owner]
            model.run = run
            model.order.begin()
            return json_answer(result(owner))

        def failed() -> None:
            if (model := session.models.pop(owner, None)) is not None:
                model.order.fail_waiting("the model could not be created")

        self._start(name, start, created, failed)
        return name

    def _in_order(
        self,
        body: dict[str, Any],
        kind: type[Body],
        start: Callable[[Body, EngineRun], RequestFuture],
        encode: Callable[[Any], Answer],
    ) -> str:
        """Queue a request of a model. Its body is checked when its turn comes, so a bad body fails in its place."""
        size = memory_of(body, self.limits.held_bytes + 1)
        return self._queue(*place_of(body), lambda run: start(validated(kind, body), run), encode, size)

    def _queue(self, owner: str, number: int, start: StartRequest, encode: Callable[[Any], Answer], size: int) -> str:
        """Let a request start when its turn comes. A repeated request has the answer of the first one.

        `size` is the memory of the request. If the session then has too much in requests that wait, it fails in its
        place, without what it contains.
        """
        name = request_ids.request_id(owner, number)
        model = self.sessions.model(owner)
        if model is None or not model.order.is_new(number):
            return name
        model.order.check(number)
        self.answers.open(name)
        if model.order.is_early(number) and self.sessions.held_bytes(owner) + size > self.limits.held_bytes:
            start, size = _too_much(size, self.limits.held_bytes), 0

        def begin() -> None:
            assert model.run is not None
            self._start(name, functools.partial(start, model.run), encode)

        model.order.arrive(number, begin, lambda reason: self.answers.finish(name, failure(user_error(reason))), size)
        return name

    def _start(
        self,
        name: str,
        start: Callable[[], RequestFuture],
        encode: Callable[[Any], Answer],
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        """Start a request now, and let its answer follow. Call `failed` if it fails."""
        try:
            self._check_running()
            request = start()
        except Exception as error:
            failed()
            self.answers.finish(name, failure(error))
        else:
            self.answers.follow(name, request, encode, failed)

    def _check_running(self) -> None:
        if self._stopping:
            raise server_error(f"{STOPPING}, and accepts no more requests")

    def _explain_missing(self, request_id: str) -> str:
        owner = request_ids.owner_of(request_id)
        if self.sessions.model(owner) is None and self.sessions.sampler(owner) is None:
            return self._gone(owner)
        return f"the answer of request {request_id} was fetched, and is no longer kept"

    def _gone(self, owner: str) -> str:
        """Return the error for a model or a sampler that the server does not have (any more)."""
        has_session = self.sessions.find(request_ids.session_of(owner)) is not None
        if ":sample:" in owner:
            if has_session:  # the run can go on, so its client must not take the server for lost
                return (
                    f"the sampler {owner} was freed: the server keeps the {self.limits.samplers} most recently used "
                    "samplers of a session; create a new sampling client, use fewer at a time, or start the server "
                    "with a larger --max-samplers"
                )
            return (
                f"{NO_SAMPLER} {owner}: its session has ended, or the server was started again; create a new sampling "
                "client"
            )
        if has_session:
            return f"the model {owner} was not created; create a new training client"
        return (
            f"{NO_MODEL} {owner}: its session has ended, or the server was started again. Its checkpoints are kept: "
            "resume from your newest record, with create_training_client_from_state_with_optimizer of a new "
            "ServiceClient"
        )


def _too_much(size: int, limit: int) -> StartRequest:
    """Return a function in the place of a request for which the session has no memory left."""

    def start(run: EngineRun) -> RequestFuture:
        raise user_error(
            f"this request of {size} bytes arrived before an earlier one, and the requests of a session that wait for "
            f"an earlier one may have {limit} bytes in all; send it after the earlier one, or in smaller parts"
        )

    return start


def _merged(session: Session, metadata: dict[str, Any] | None) -> dict[str, str] | None:
    return small_metadata({**(session.user_metadata or {}), **(metadata_of(metadata) or {})} or None)


def _check_load(request: LoadWeightsRequest) -> None:
    refuse_option(request.weights_access_token is not None, "weights_access_token")
    check_optimizer(getattr(request, "optimizer_config", None))


def _sample(client: SamplingClient, request: SampleRequest) -> RequestFuture:
    refuse_option(bool(getattr(request, "record_stability_info", False)), "record_stability_info=True")
    if request.base_model is not None or request.model_path is not None:
        raise bad_request("asample takes the weights from sampling_session_id; omit base_model and model_path")
    targets = getattr(request, "target_prompt_logprobs", None)
    if targets is not None and math.prod(targets.shape or ()) > MAX_ELEMENTS:
        raise bad_request(f"target_prompt_logprobs has the shape {targets.shape}, more than {MAX_ELEMENTS} elements")
    return client.sample(
        request.prompt,
        request.num_samples,
        request.sampling_params,
        include_prompt_logprobs=bool(request.prompt_logprobs),
        topk_prompt_logprobs=request.topk_prompt_logprobs,
        topk_sample_logprobs=getattr(request, "topk_sample_logprobs", 0),
        target_prompt_logprobs=None if targets is None else tinker.TensorData(**targets.model_dump()),
        prompt_alt_tokens_k=getattr(request, "prompt_alt_tokens_k", 0),
        prompt_logprobs_last_n=getattr(request, "prompt_logprobs_last_n", None),
    )
