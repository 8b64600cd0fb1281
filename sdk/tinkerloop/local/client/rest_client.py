"""The REST client: tinker.RestClient's methods for checkpoints and training runs, which it reads from the disk."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import tinker

from tinkerloop.local.argument_values import whole_number
from tinkerloop.local.client.async_methods import awaited
from tinkerloop.local.request_errors import bad_request, not_found
from tinkerloop.local.runtime.checkpoint_paths import KINDS, parse_path
from tinkerloop.local.runtime.checkpoint_record import CheckpointInfo, expiry
from tinkerloop.local.runtime.checkpoint_store import CheckpointStore, default_root
from tinkerloop.local.runtime.request_future import RequestFuture
from tinkerloop.local.unsupported import refuse, refuse_option

T = TypeVar("T")
AccessScope = Literal["owned", "accessible"]
_TYPES: dict[str, Any] = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
"""The type of a checkpoint by its kind. The type of `external_weights` exists since tinker 0.28."""


@refuse
class RestClient:
    """Client that lists, describes, copies and deletes the checkpoints under `root`, and sets when they expire.

    It loads no model and needs no `ServiceClient`.
    """

    def __init__(
        self, root: str | os.PathLike[str] | None = None, *, models: Sequence[tinker.types.SupportedModel] = ()
    ):
        self._store = CheckpointStore(default_root() if root is None else Path(root).expanduser().absolute())
        self._models = list(models)

    def get_server_capabilities(self) -> RequestFuture[tinker.types.GetServerCapabilitiesResponse]:
        """Return "tiny" and the models that the ServiceClient had loaded when it created this client.

        The list is empty if no ServiceClient has created this client.
        """
        return _done(lambda: tinker.types.GetServerCapabilitiesResponse(supported_models=self._models))

    def get_training_run(
        self, training_run_id: str, access_scope: AccessScope = "owned"
    ) -> RequestFuture[tinker.types.TrainingRun]:
        """Return the description of a training run that has saved at least one checkpoint."""
        return _done(lambda: self._run(training_run_id, access_scope))

    def get_training_run_by_tinker_path(
        self, tinker_path: str, access_scope: AccessScope = "owned"
    ) -> RequestFuture[tinker.types.TrainingRun]:
        return _done(lambda: self._run(_parse(tinker_path)[0], access_scope))

    def get_weights_info_by_tinker_path(self, tinker_path: str) -> RequestFuture[tinker.types.WeightsInfoResponse]:
        """Return the base model and the LoRA options of a checkpoint."""

        def info() -> tinker.types.WeightsInfoResponse:
            record = self._store.read(tinker_path)
            lora = record.lora
            return tinker.types.WeightsInfoResponse(
                base_model=record.base_model,
                is_lora=lora.rank > 0,
                lora_rank=lora.rank,
                train_unembed=lora.train_unembed,
                train_mlp=lora.train_mlp,
                train_attn=lora.train_attn,
            )

        return _done(info)

    def list_training_runs(
        self, limit: int = 20, offset: int = 0, access_scope: AccessScope = "owned", project_id: str | None = None
    ) -> RequestFuture[tinker.types.TrainingRunsResponse]:
        """Return the training runs that have saved a checkpoint, the one with the latest checkpoint first."""

        def runs() -> tinker.types.TrainingRunsResponse:
            _check_scope(access_scope)
            by_run: dict[str, list[CheckpointInfo]] = {}
            for record in self._store.records():
                by_run.setdefault(_parse(record.path)[0], []).append(record)
            latest = sorted(by_run, key=lambda run: by_run[run][-1].time, reverse=True)
            page = [_run(run, by_run[run]) for run in _page(latest, limit, offset)]
            cursor = tinker.types.Cursor(offset=offset, limit=limit, total_count=len(by_run))
            return tinker.types.TrainingRunsResponse(training_runs=page, cursor=cursor)

        return _done(runs)

    def list_checkpoints(self, training_run_id: str) -> RequestFuture[tinker.types.CheckpointsListResponse]:
        """Return the checkpoints of a training run, oldest first."""

        def checkpoints() -> tinker.types.CheckpointsListResponse:
            records = self._store.records(_run_id(training_run_id))
            return tinker.types.CheckpointsListResponse(checkpoints=[_checkpoint(r) for r in records])

        return _done(checkpoints)

    def list_user_checkpoints(
        self, limit: int = 100, offset: int = 0
    ) -> RequestFuture[tinker.types.CheckpointsListResponse]:
        """Return the checkpoints of all training runs, latest first."""

        def page() -> tinker.types.CheckpointsListResponse:
            records = list(reversed(list(self._store.records())))
            chosen = [_checkpoint(record) for record in _page(records, limit, offset)]
            cursor = tinker.types.Cursor(offset=offset, limit=limit, total_count=len(records))
            return tinker.types.CheckpointsListResponse(checkpoints=chosen, cursor=cursor)

        return _done(page)

    def delete_checkpoint(self, training_run_id: str, checkpoint_id: str) -> RequestFuture[None]:
        """Delete the checkpoint `checkpoint_id` ("KIND/NAME") of a training run."""
        return self.delete_checkpoint_from_tinker_path(f"tinker://{training_run_id}/{checkpoint_id}")

    def delete_checkpoint_from_tinker_path(self, tinker_path: str) -> RequestFuture[None]:
        return _done(lambda: self._store.delete(tinker_path))

    def set_checkpoint_ttl_from_tinker_path(self, tinker_path: str, ttl_seconds: int | None) -> RequestFuture[None]:
        """Let a checkpoint expire `ttl_seconds` from now. With None it never expires."""

        def change() -> None:
            self._store.update(tinker_path, expires_at=expiry(ttl_seconds))

        return _done(change)

    def copy_weights(
        self,
        path: str,
        destination_project_id: str | None = None,
        *,
        ttl_seconds: int | None = None,
        weights_access_token: str | None = None,
    ) -> RequestFuture[str]:
        """Copy a checkpoint into a new training run and return the path of the copy."""
        refuse_option(weights_access_token is not None, "weights_access_token")
        return _done(lambda: copy_into(self._store, path, f"{uuid.uuid4()}:train:0", ttl_seconds))

    def get_telemetry(self) -> None:
        """Return None: the embedded engine sends no telemetry."""

    get_training_run_async = awaited(get_training_run)
    get_training_run_by_tinker_path_async = awaited(get_training_run_by_tinker_path)
    list_training_runs_async = awaited(list_training_runs)
    list_checkpoints_async = awaited(list_checkpoints)
    list_user_checkpoints_async = awaited(list_user_checkpoints)
    delete_checkpoint_async = awaited(delete_checkpoint)
    delete_checkpoint_from_tinker_path_async = awaited(delete_checkpoint_from_tinker_path)
    set_checkpoint_ttl_from_tinker_path_async = awaited(set_checkpoint_ttl_from_tinker_path)
    copy_weights_async = awaited(copy_weights)

    def _run(self, run: str, access_scope: AccessScope) -> tinker.types.TrainingRun:
        _check_scope(access_scope)
        records = list(self._store.records(_run_id(run)))
        if not records:
            raise not_found(f"training run {run!r} not found: no checkpoint of it exists under {self._store.root}")
        return _run(run, records)


def copy_into(store: CheckpointStore, path: str, run: str, ttl_seconds: int | None) -> str:
    """Copy a checkpoint into the training run `run`. Return the path of the copy.

    If it was copied before, only change when the copy expires.
    """
    _, kind, name = _parse(path)
    copy = f"tinker://{run}/{kind}/{name}"
    expires_at = expiry(ttl_seconds)
    with suppress(tinker.NotFoundError):
        known = store.read(copy)
        return (known if known.expires_at == expires_at else store.update(copy, expires_at=expires_at)).path
    return store.copy(path, copy, expires_at=expires_at).path


def _done(compute: Callable[[], T]) -> RequestFuture[T]:
    """Call `compute` and return a finished future with its result or its error."""
    future: RequestFuture[T] = RequestFuture()
    try:
        future.set_result(compute())
    except Exception as error:
        future.set_exception(error)
    return future


def _parse(path: str) -> tuple[str, str, str]:
    try:
        return parse_path(path)
    except ValueError as error:
        raise bad_request(str(error)) from error


def _run_id(run: str) -> str:
    # _parse rejects run names that could lead out of the root folder. The kind and the name are placeholders.
    return _parse(f"tinker://{run}/weights/any")[0]


def _check_scope(access_scope: AccessScope) -> None:
    """Raise for an unknown scope. The known ones mean the same here, because all checkpoints belong to the caller."""
    if access_scope not in get_args(AccessScope):
        raise bad_request(f"access_scope must be one of {', '.join(get_args(AccessScope))}; got {access_scope!r}")


def _page(items: Sequence[T], limit: int, offset: int) -> Sequence[T]:
    for name, value in (("limit", limit), ("offset", offset)):
        whole_number(name, value, expected="an integer >= 0", least=0)
    return items[offset : offset + limit]


def _run(run: str, records: Sequence[CheckpointInfo]) -> tinker.types.TrainingRun:
    """Return the description of a training run. `records` are its checkpoints, oldest first."""
    last = {kind: [r for r in records if _parse(r.path)[1] == kind][-1:] for kind in KINDS}
    newest = records[-1]
    return tinker.types.TrainingRun(
        training_run_id=run,
        base_model=newest.base_model,
        model_owner="local",
        is_lora=newest.lora.rank > 0,
        lora_rank=newest.lora.rank,
        last_request_time=datetime.fromisoformat(newest.time),
        last_checkpoint=next((_checkpoint(r) for r in last["weights"]), None),
        last_sampler_checkpoint=next((_checkpoint(r) for r in last["sampler_weights"]), None),
        user_metadata=newest.run_metadata,
    )


def _checkpoint(record: CheckpointInfo) -> tinker.types.Checkpoint:
    _, kind, name = parse_path(record.path)
    return tinker.types.Checkpoint(
        checkpoint_id=f"{kind}/{name}",
        checkpoint_type=_TYPES[kind],
        time=datetime.fromisoformat(record.time),
        tinker_path=record.path,
        size_bytes=record.size_bytes,
        public=record.public,
        **({} if record.user_metadata is None else {"user_metadata": record.user_metadata}),
        expires_at=None if record.expires_at is None else datetime.fromisoformat(record.expires_at),
    )
