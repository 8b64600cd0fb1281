"""The supervised start of the recipes of reinforcement learning and distillation. This is not a recipe.

The small base model has never seen the tasks of these recipes, and a model that is never right learns nothing from
rewards. So they begin with a short supervised training. It is a run of its own, in the folder of the recipe's run: it
is resumed too, and not repeated when the recipe is started again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import tinker

from recipes.model_defaults import learning_rate_of
from tinkerloop.callbacks import LRSchedule
from tinkerloop.clients import SamplingClientLike, ServiceClientLike, TrainingClientLike
from tinkerloop.data import batches
from tinkerloop.hyperparams import adapter_size
from tinkerloop.loop import Checkpoints, Loop, Record, Run, open_training_client, resolve
from tinkerloop.loop.schedules import constant


class StartOptions(Protocol):
    """The options of a recipe that its supervised start needs."""

    @property
    def model(self) -> str: ...
    @property
    def lora_rank(self) -> int: ...
    @property
    def start_steps(self) -> int: ...
    @property
    def start_batch(self) -> int: ...
    @property
    def seed(self) -> int: ...


def open_client(
    service: ServiceClientLike, run: Run, datums: Sequence[tinker.Datum], config: StartOptions
) -> tuple[TrainingClientLike, Record | None]:
    """Return the training client of the newest record, and the record.

    In a new run, there is no record, and the client was trained on `datums` for `start_steps`.
    """
    run.describe(supervised_start=f"{len(datums)} datums", adapter=adapter_size(config.model, config.lora_rank))
    record = run.checkpoints.latest()
    if record is not None:
        return open_training_client(service, record, base_model=config.model, rank=config.lora_rank), record
    path = supervised_start(service, run.folder / "start", datums, config)
    return resolve(service.create_training_client_from_state(path)), None


def supervised_start(
    service: ServiceClientLike, folder: Path, datums: Sequence[tinker.Datum], config: StartOptions
) -> str:
    """Train a new adapter on `datums`, as a run of its own in `folder`, and return the path of its last checkpoint."""
    checkpoints, steps = Checkpoints(folder), config.start_steps
    record = checkpoints.latest()
    if record is None or record.step < steps:
        client = open_training_client(service, record, base_model=config.model, rank=config.lora_rank, seed=config.seed)
        rate = learning_rate_of(config.model, small=2e-3, rank=config.lora_rank)
        Loop(
            client,
            batches(datums, min(config.start_batch, len(datums)), epochs=None, shuffle=config.seed, drop_last=True),
            steps=steps,
            callbacks=[LRSchedule(constant(rate))],
            checkpoints=checkpoints,
            record=record,
        ).run()
        record = checkpoints.latest()
    assert record is not None
    return record.path


def trained_sampler(
    service: ServiceClientLike, folder: Path, datums: Sequence[tinker.Datum], config: StartOptions
) -> SamplingClientLike:
    """Train a model on `datums` as `supervised_start` does, and return a client that samples from it: a teacher."""
    client = resolve(service.create_training_client_from_state(supervised_start(service, folder, datums, config)))
    return resolve(client.save_weights_and_get_sampling_client())
