"""Supervised fine-tuning from one configuration: `asyncio.run(train.main(config))`.

Everything here is said again in a few lines of `tinkerloop.loop`: copy them when you want to change more than values.
Run it again with the same `log_path` and it resumes exactly; with more epochs or steps it trains on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import chz

from tinkerloop._lazy import tinker
from tinkerloop.callbacks import Checkpoint, Evaluate, GradientAccumulation, LRSchedule, Progress, StopOnNonFinite
from tinkerloop.connection import connect
from tinkerloop.data import Batches, prefetch
from tinkerloop.errors import DataError, PlanError
from tinkerloop.loop import Callback, Loop, Record, Run, Summary, WandB, open_training_client
from tinkerloop.loop.futures import resolve
from tinkerloop.loop.schedules import Schedule, constant, cosine, linear, warmup
from tinkerloop.supervised.evaluators import EvaluatorBuilder, NLLEvaluator, as_evaluator
from tinkerloop.supervised.types import SupervisedDataset, SupervisedDatasetBuilder


@chz.chz
class Config:
    """One run of supervised fine-tuning."""

    model_name: str = chz.field(doc="The base model: a name the service knows, or a local folder.")
    log_path: str = chz.field(doc="The run's folder: config, metrics.jsonl, checkpoints.jsonl.")
    dataset_builder: SupervisedDatasetBuilder | Callable[[], Any] = chz.field(
        doc="Returns (training data, test data or None); any function without arguments does."
    )
    recipe_name: str | None = chz.field(default=None, doc="What kind of run this is, for config.json.")
    renderer_name: str | None = chz.field(
        default=None, doc="The chat format, for config.json; the one used is the builder's, and must be the same."
    )

    learning_rate: float = chz.field(default=2e-4, doc="The highest learning rate.")
    lr_schedule: str | Schedule = chz.field(
        default="linear", doc='"linear" or "cosine" to 0, "constant", or a function step -> learning rate.'
    )
    warmup_steps: int = chz.field(default=0, doc="Steps in which the learning rate rises to its highest.")
    num_epochs: int = chz.field(default=1, doc="How often the training data is gone through.")
    max_steps: int | None = chz.field(default=None, doc="Stop after so many steps; None: at the end of the data.")
    batch_size: int | None = chz.field(default=None, doc="Examples in a batch; None: what the builder says.")
    gradient_accumulation_steps: int = chz.field(
        default=1, doc="Batches in one optimizer step; every token weighs the same."
    )
    lora_rank: int = chz.field(default=32, doc="The rank of the adapter.")
    seed: int = chz.field(default=0, doc="Of the adapter's start and of the order of the data.")
    load_checkpoint_path: str | None = chz.field(
        default=None, doc="tinker:// path of weights to start from, with a fresh optimizer."
    )

    adam_beta1: float = chz.field(default=0.9, doc="Adam's decay of the mean gradient.")
    adam_beta2: float = chz.field(default=0.95, doc="Adam's decay of the mean square.")
    adam_eps: float = chz.field(default=1e-8, doc="Added to Adam's denominator.")
    weight_decay: float = chz.field(default=0.0, doc="Decoupled weight decay.")
    grad_clip_norm: float = chz.field(default=0.0, doc="The largest norm of the gradient; 0: any.")

    eval_every: int = chz.field(default=10, doc="Steps between evaluations of the test data; 0: only at both ends.")
    evaluator_builders: Sequence[EvaluatorBuilder] = chz.field(
        default=(), doc="Further evaluations, every eval_every steps."
    )
    infrequent_eval_every: int = chz.field(default=100, doc="Steps between the infrequent evaluations.")
    infrequent_evaluator_builders: Sequence[EvaluatorBuilder] = chz.field(
        default=(), doc="Evaluations that are too long for eval_every; training goes on meanwhile."
    )

    save_every: int = chz.field(default=20, doc="Steps between checkpoints; 0: only at the end.")
    ttl_seconds: int | None = chz.field(default=None, doc="How long the service keeps a checkpoint; None: for good.")
    rolling_save_every: int = chz.field(
        default=0, doc="Steps between checkpoints of which only the newest is kept, to resume from; 0: none."
    )
    rolling_ttl_seconds: int = chz.field(default=7200, doc="How long the service keeps a rolling checkpoint.")

    submit_ahead: int = chz.field(default=1, doc="Steps queued beyond the one being answered; 1 hides the round trip.")
    service: Any = chz.field(
        default=None, doc='"tinker", "local", a URL, a service client, or None: Tinker if there is a key, else local.'
    )
    base_url: str | None = chz.field(default=None, doc="The URL of another service (as service=URL).")
    callbacks: Sequence[Callback] = chz.field(default=(), doc="More callbacks of the loop.")
    sinks: Sequence[Any] = chz.field(default=(), doc="More functions (step, row) that are given the metrics.")
    wandb_project: str | None = chz.field(default=None, doc="Also log to this Weights & Biases project.")
    wandb_name: str | None = chz.field(default=None, doc="The run's name there.")

    @chz.validate
    def _counts(self) -> None:
        for least, names in _LEAST.items():
            for name in names.split():
                value = getattr(self, name)
                if value is not None and value < least:
                    raise PlanError(f"{name} must be at least {least}, got {value}")

    @chz.validate
    def _one_renderer(self) -> None:
        used = getattr(getattr(self.dataset_builder, "common_config", None), "renderer_name", None)
        if used and self.renderer_name and used != self.renderer_name:
            raise PlanError(f"renderer_name is {self.renderer_name!r}, but the dataset builder uses {used!r}")


_LEAST = {
    0: "warmup_steps lora_rank eval_every infrequent_eval_every save_every rolling_save_every submit_ahead",
    1: "num_epochs max_steps batch_size gradient_accumulation_steps ttl_seconds rolling_ttl_seconds",
}


async def main(config: Config) -> Summary:
    """Train as `config` says, or go on where `config.log_path` stands.

    Raises DataError, PlanError or CheckpointError before anything is trained, and whatever ends the run.
    """
    train_data, test_data = _build(config.dataset_builder)
    batches = as_dataset(train_data).batches(epochs=config.num_epochs, batch_size=config.batch_size, seed=config.seed)
    steps = _steps(config, batches)
    print(f"training data: {batches}; {'unknown' if steps is None else steps} steps", file=sys.stderr)

    with Run(config.log_path, config=_described(config)) as run:
        record = run.checkpoints.latest()
        service = config.service
        if service is None or isinstance(service, str):
            service = connect(service or config.base_url)
        client = _open_client(config, service, record)
        loop = Loop(
            client,
            prefetch(batches, 2),
            steps=steps,
            callbacks=_callbacks(config, steps, test_data),
            sinks=_sinks(config, run),
            checkpoints=run.checkpoints,
            record=record,
            optim=_optim(config),
            ahead=config.submit_ahead,
        )
        summary = await loop.arun()
        run.finish(summary)
    return summary


def as_dataset(data: Any) -> SupervisedDataset:
    """`data` itself, or an iterable of datums made a data set."""
    if isinstance(data, SupervisedDataset):
        return data
    made = type(type(data).__name__, (SupervisedDataset,), {"__iter__": lambda self: iter(data)})()
    made.batch_size = getattr(data, "batch_size", None)
    return made


def learning_rates(config: Config, steps: int | None) -> Schedule:
    """The schedule that a configuration describes, for a run of `steps`."""
    if callable(config.lr_schedule):
        return warmup(config.warmup_steps, config.lr_schedule)
    if config.lr_schedule == "constant":
        return warmup(config.warmup_steps, constant(config.learning_rate))
    shapes: dict[str, Callable[[float, float, int], Schedule]] = {"linear": linear, "cosine": cosine}
    if config.lr_schedule not in shapes:
        raise PlanError(f'lr_schedule must be "linear", "cosine", "constant" or a function, got {config.lr_schedule!r}')
    if steps is None:
        raise PlanError(
            f"a {config.lr_schedule} schedule needs to know the number of steps, and the data does not say its length: "
            'set max_steps, or lr_schedule="constant"'
        )
    decay = max(steps - config.warmup_steps, 1)
    return warmup(config.warmup_steps, shapes[config.lr_schedule](config.learning_rate, 0.0, decay))


def _build(dataset_builder: Callable[[], Any]) -> tuple[Any, Any]:
    built = dataset_builder()
    if not isinstance(built, tuple) or len(built) != 2:
        raise DataError(
            f"dataset_builder must return (training data, test data or None), got a {type(built).__name__}",
            remedy="without test data return (data, None)",
        )
    return built


def _described(value: Any) -> Any:
    """The configuration as JSON values, objects by their repr."""
    if chz.is_chz(value):
        return {name: _described(getattr(value, name)) for name in chz.chz_fields(value)}
    return value if isinstance(value, str | int | float | None) else repr(value)


def _steps(config: Config, batches: Batches) -> int | None:
    try:
        count = -(-len(batches) // config.gradient_accumulation_steps)  # type: ignore[arg-type]
    except TypeError:  # a stream that does not know its length
        return config.max_steps
    return count if config.max_steps is None else min(count, config.max_steps)


def _open_client(config: Config, service: Any, record: Record | None) -> Any:
    if record is None and config.load_checkpoint_path:
        return resolve(service.create_training_client_from_state(config.load_checkpoint_path))
    return open_training_client(service, record, base_model=config.model_name, rank=config.lora_rank, seed=config.seed)


def _optim(config: Config) -> tinker.AdamParams:
    return tinker.AdamParams(
        learning_rate=config.learning_rate,
        beta1=config.adam_beta1,
        beta2=config.adam_beta2,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        grad_clip_norm=config.grad_clip_norm,
    )


def _callbacks(config: Config, steps: int | None, test_data: Any) -> list[Callback]:
    callbacks: list[Callback] = [
        LRSchedule(learning_rates(config, steps)),
        GradientAccumulation(config.gradient_accumulation_steps),
        StopOnNonFinite(),
        Progress(),
        Checkpoint(config.save_every or None, ttl_seconds=config.ttl_seconds),
    ]
    if config.rolling_save_every:
        rolling = Checkpoint(
            config.rolling_save_every,
            keep_last=1,
            keep_every=config.save_every or None,
            ttl_seconds=config.rolling_ttl_seconds,
        )
        rolling.name = "rolling-checkpoint"
        callbacks.append(rolling)
    if test_data is not None:
        datums = [datum for batch in as_dataset(test_data).batches(seed=None) for datum in batch]  # type: ignore[attr-defined]
        tokenizer = getattr(config.dataset_builder, "tokenizer", None)
        callbacks.append(Evaluate("test", NLLEvaluator(datums, tokenizer=tokenizer), every=config.eval_every or None))
    for name, builders, every in (
        ("eval", config.evaluator_builders, config.eval_every),
        ("infrequent", config.infrequent_evaluator_builders, config.infrequent_eval_every),
    ):
        for number, build in enumerate(builders):
            evaluator = build()
            label = getattr(evaluator, "name", None) or (name if len(builders) == 1 else f"{name}{number}")
            detached = name == "infrequent"
            callbacks.append(Evaluate(label, as_evaluator(evaluator), every=every or None, detached=detached))
    return [*callbacks, *config.callbacks]


def _sinks(config: Config, run: Run) -> list[Any]:
    sinks = [run.metrics, *config.sinks]
    if config.wandb_project:
        sinks.append(WandB(run.folder, project=config.wandb_project, name=config.wandb_name))
    return sinks
