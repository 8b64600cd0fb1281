"""Supervised fine-tuning from one configuration: `asyncio.run(train.main(config))`.

A second call with the same `log_path` resumes the run exactly. With more epochs or steps in the configuration, it
continues a finished run. To change more than the values of the configuration, write the loop with `tinkerloop.loop`,
which takes few lines.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

import chz

from tinkerloop._lazy import tinker
from tinkerloop.callbacks import (
    Checkpoint,
    Evaluate,
    GradientAccumulation,
    LRSchedule,
    Progress,
    StopOnNonFinite,
    Timing,
)
from tinkerloop.connection import connect, session
from tinkerloop.data import Batches, prefetch
from tinkerloop.data.estimation import (
    Evaluations,
    estimate_datums,
    evaluation_count,
    input_tokens,
    read_prices,
    step_count,
)
from tinkerloop.engine_memory import memory_lines
from tinkerloop.errors import CheckpointError, DataError, PlanError
from tinkerloop.hyperparams import adapter_size, recommended_learning_rate
from tinkerloop.loop import Callback, Checkpoints, Loop, Record, Run, Summary, WandB, open_training_client
from tinkerloop.loop.checkpoints import saved_paths
from tinkerloop.loop.config_json import json_form
from tinkerloop.loop.futures import resolve
from tinkerloop.loop.run_folder import last_config
from tinkerloop.loop.schedules import Schedule, constant, cosine, linear, warmup
from tinkerloop.number_checks import check_finite_number, check_whole
from tinkerloop.redaction import redacted
from tinkerloop.report import write_report
from tinkerloop.supervised.evaluators import EvaluatorBuilder, NLLEvaluator, as_evaluator
from tinkerloop.supervised.types import SupervisedDataset, SupervisedDatasetBuilder
from tinkerloop.terminal import one_line

logger = logging.getLogger(__name__)


@chz.chz
class Config:
    """The configuration of one run of supervised fine-tuning."""

    model_name: str = chz.field(doc="Base model: a name that the service supports, or a local folder.")
    log_path: str = chz.field(doc="Folder of the run, for config.json, metrics.jsonl and checkpoints.jsonl.")
    dataset_builder: SupervisedDatasetBuilder | Callable[[], Any] = chz.field(
        munger=lambda _, builder: builder() if isinstance(builder, type) else builder,  # as the command line gives it
        doc="Function without arguments that returns (training data, test data or None).",
    )
    recipe_name: str | None = chz.field(default=None, doc="Kind of run, written to config.json.")
    renderer_name: str | None = chz.field(
        default=None,
        doc="Chat format, only written to config.json; if given, it must equal that of the dataset builder.",
    )

    learning_rate: float | None = chz.field(
        default=2e-4,
        munger=lambda config, rate: (
            recommended_learning_rate(config.model_name, config.lora_rank) if rate is None else rate
        ),
        doc="Highest learning rate of the schedule; None uses the recommended one for the model and the rank.",
    )
    lr_schedule: str | Schedule = chz.field(
        default="linear", doc='"linear" or "cosine" decay to 0, "constant", or a function from step to learning rate.'
    )
    warmup_steps: int = chz.field(
        default=0,
        doc="Number of steps in which the learning rate rises from 0 to its highest value; a shorter run, which never "
        "reaches this value, is warned of.",
    )
    num_epochs: int = chz.field(default=1, doc="Number of times the training data is used.")
    max_steps: int | None = chz.field(
        default=None, doc="Stop after this many steps; None stops at the end of the data."
    )
    batch_size: int | None = chz.field(
        default=None, doc="Rows in a batch; None uses the batch size of the dataset builder."
    )
    gradient_accumulation_steps: int = chz.field(
        default=1, doc="Number of batches in one optimizer step; all their tokens have the same weight."
    )
    lora_rank: int = chz.field(default=32, doc="Rank of the LoRA adapter.")
    seed: int = chz.field(default=0, doc="Random seed for adapter initialisation and data order.")
    load_checkpoint_path: str | None = chz.field(
        default=None,
        doc="Weights to start from, with a new optimizer state: a tinker:// path, or a run folder of tinkerloop or of "
        "the Tinker Cookbook, whose newest checkpoint is used.",
    )

    adam_beta1: float = chz.field(default=0.9, doc="Adam: decay rate of the running mean of the gradient.")
    adam_beta2: float = chz.field(default=0.95, doc="Adam: decay rate of the running mean of the squared gradient.")
    adam_eps: float = chz.field(default=1e-8, doc="Adam: number added to the denominator.")
    weight_decay: float = chz.field(default=0.0, doc="Decoupled weight decay, as in AdamW.")
    grad_clip_norm: float = chz.field(default=0.0, doc="Clip the gradient to this norm; 0 disables clipping.")

    eval_every: int = chz.field(
        default=10, doc="Steps between evaluations on the test data; 0 evaluates only before and after training."
    )
    evaluator_builders: Sequence[EvaluatorBuilder] = chz.field(
        default=(), doc="Builders of additional evaluators, which run every eval_every steps."
    )
    infrequent_eval_every: int = chz.field(
        default=100, doc="Steps between the evaluations of infrequent_evaluator_builders."
    )
    infrequent_evaluator_builders: Sequence[EvaluatorBuilder] = chz.field(
        default=(), doc="Builders of evaluators that are too slow for eval_every; training continues while they run."
    )

    save_every: int = chz.field(default=20, doc="Steps between checkpoints; 0 saves only at the end.")
    save_every_tokens: int = chz.field(
        default=0, doc="Input tokens between checkpoints; 0 does not count tokens. Works beside save_every."
    )
    save_every_seconds: float = chz.field(
        default=0.0, doc="Seconds between checkpoints; 0 does not look at the clock. Works beside save_every."
    )
    save_sampler: bool | Literal["final"] = chz.field(
        default="final",
        doc='Save weights for sampling with every checkpoint (True), with none (False), or only at the end ("final").',
    )
    async_periodic_saves: bool = chz.field(
        default=False,
        doc="Has no effect, because training never waits for a checkpoint to be saved; for Cookbook users.",
    )
    ttl_seconds: int | None = chz.field(
        default=None, doc="Seconds for which the service keeps a checkpoint; None keeps it for ever."
    )
    rolling_save_every: int = chz.field(
        default=0, doc="Steps between rolling checkpoints, of which only the newest is kept for resuming; 0 saves none."
    )
    rolling_ttl_seconds: int = chz.field(default=7200, doc="Seconds for which the service keeps a rolling checkpoint.")

    submit_ahead: int = chz.field(
        default=1,
        doc="Steps that are submitted ahead, before the result of a step arrives; 1 hides the network round trip.",
    )
    service: Any = chz.field(
        default=None,
        doc='"tinker", "local", a URL or a service client; None uses Tinker if an API key is set, otherwise "local".',
    )
    base_url: str | None = chz.field(default=None, doc="URL of another service; the same as service=URL.")
    callbacks: Sequence[Callback] = chz.field(default=(), doc="Additional callbacks for the loop.")
    sinks: Sequence[Any] = chz.field(
        default=(), doc="Additional functions that are called with (step, row) for each row of metrics."
    )
    wandb_project: str | None = chz.field(
        default=None, doc="Weights & Biases project to which metrics are also logged; None disables this."
    )
    dry_run: bool = chz.field(
        default=False,
        doc="Only print an estimate of the run (tokens, steps, evaluations, memory), and neither train nor write "
        "anything.",
    )
    prices: str | None = chz.field(
        default=None,
        doc="TOML or JSON file with the prices of tokens per model, which dry_run multiplies; see `read_prices`.",
    )
    wandb_name: str | None = chz.field(
        default=None,
        doc="Name of the run in Weights & Biases; has no effect without wandb_project, as in scripts of the Cookbook.",
    )

    @chz.validate
    def _numbers(self) -> None:
        for name in _RATES.split():
            check_finite_number(name, getattr(self, name), 0)
        for least, names in _LEAST.items():
            for name in names.split():
                value = getattr(self, name)
                if value is not None:
                    check_whole(name, value, least)

    @chz.validate
    def _known_schedule(self) -> None:
        if not callable(self.lr_schedule) and self.lr_schedule not in ("constant", *_DECAYS):
            raise PlanError(
                f'lr_schedule must be "linear", "cosine", "constant" or a function, got {self.lr_schedule!r}'
            )

    @chz.validate
    def _no_option_without_effect(self) -> None:
        if self.prices is not None and not self.dry_run:
            raise PlanError(
                f"prices={self.prices!r} has no effect without dry_run: set dry_run=True, or leave out prices"
            )
        if self.base_url and self.service is not None:
            raise PlanError(f"base_url={redacted(self.base_url)!r} has no effect beside service: pass only one of them")

    @chz.validate
    def _one_renderer(self) -> None:
        used = _used_renderer(self)
        if used and self.renderer_name and used != self.renderer_name:
            raise PlanError(
                f"renderer_name is {self.renderer_name!r}, but the dataset builder uses {used!r}; "
                "pass the same name to both, or leave out renderer_name"
            )


_DECAYS: dict[str, Callable[[float, float, int], Schedule]] = {"linear": linear, "cosine": cosine}
_RATES = "learning_rate adam_beta1 adam_beta2 adam_eps weight_decay grad_clip_norm save_every_seconds"
_LEAST = {
    0: "warmup_steps lora_rank eval_every infrequent_eval_every save_every save_every_tokens "
    "rolling_save_every submit_ahead",
    1: "num_epochs max_steps batch_size gradient_accumulation_steps ttl_seconds rolling_ttl_seconds",
}


async def main(config: Config) -> Summary:
    """Train with a configuration. If `config.log_path` contains a run, resume it.

    Returns:
        The summary of the run: its last step and the reason why it ended.

    Raises:
        DataError: the data cannot be trained on. All these errors are raised before training starts.
        DatumError: a datum that a dataset yields cannot be trained on. Datums that `map_fn` or `get_batch` creates are
            checked when their batch is requested.
        PlanError: values of the configuration contradict each other, or a dataset yields something other than datums.
        CheckpointError: the run in `config.log_path` cannot be resumed, or it or `load_checkpoint_path` has another
            model, rank or seed.
    """
    train_data, test_data = _build(config.dataset_builder)
    batches = as_dataset(train_data).batches(epochs=config.num_epochs, batch_size=config.batch_size, seed=config.seed)
    steps = _steps(config, batches)
    print(f"training data: {one_line(batches)}; {'unknown' if steps is None else steps} steps", file=sys.stderr)
    _warn_of_warmup(config, steps)

    if config.dry_run:
        print(_estimate(config, train_data, test_data))
        return Summary(0, "dry run", {})
    _refuse_another_run(config)
    service = config.service
    if service is not None and not isinstance(service, str):
        return await _train(config, service, batches, steps, test_data)
    with session(connect(service or config.base_url)) as service:
        return await _train(config, service, batches, steps, test_data)


async def _train(config: Config, service: Any, batches: Batches, steps: int | None, test_data: Any) -> Summary:
    with Run(config.log_path, config=json_form(config) | _origin(config, service)) as run:
        record = run.checkpoints.latest()
        client = _open_client(config, service, record)
        run.describe(training_data=one_line(batches), adapter=adapter_size(config.model_name, config.lora_rank))
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
        print(f"the page of the run is {one_line(write_report(run.folder))}", file=sys.stderr)
    return summary


def as_dataset(data: Any) -> SupervisedDataset:
    """Convert an iterable of datums to a `SupervisedDataset`. A `SupervisedDataset` is returned unchanged."""
    if isinstance(data, SupervisedDataset):
        return data
    dataset = type(type(data).__name__, (SupervisedDataset,), {"__iter__": lambda self: iter(data)})()
    dataset.batch_size = getattr(data, "batch_size", None)
    return dataset


def learning_rates(config: Config, steps: int | None) -> Schedule:
    """Return the learning-rate schedule of a configuration, for a run of `steps` optimizer steps.

    Raises:
        PlanError: the schedule depends on the number of steps, and `steps` is None.
    """
    if callable(config.lr_schedule):
        return warmup(config.warmup_steps, config.lr_schedule)
    if config.lr_schedule == "constant":
        return warmup(config.warmup_steps, constant(_learning_rate(config)))
    if steps is None:
        raise PlanError(
            f"lr_schedule={config.lr_schedule!r} needs the number of steps, but the length of the data is unknown; "
            'set max_steps, or lr_schedule="constant"'
        )
    decay = max(steps - config.warmup_steps, 1)
    return warmup(config.warmup_steps, _DECAYS[config.lr_schedule](_learning_rate(config), 0.0, decay))


def _warn_of_warmup(config: Config, steps: int | None) -> None:
    """Warn of a warm-up that is longer than the run. It is no error, because a short trial has it on purpose."""
    if steps is not None and config.warmup_steps > steps:
        highest = learning_rates(config, steps)(max(steps - 1, 0))
        logger.warning(
            "warmup_steps=%d is more than the %d steps of the run: the learning rate rises only to %.3g. Set fewer "
            "warmup_steps, unless this is a short trial",
            config.warmup_steps,
            steps,
            highest,
        )


def _learning_rate(config: Config) -> float:
    assert config.learning_rate is not None  # the configuration has replaced None
    return config.learning_rate


def _estimate(config: Config, train_data: Any, test_data: Any) -> str:
    """Return the estimate of a run as text: reads the training data once, as one epoch, and the test data."""
    epoch = as_dataset(train_data).batches(epochs=1, batch_size=config.batch_size, seed=config.seed)
    batches: list[Any] = list(epoch)  # type: ignore[call-overload]
    repeats = (config.num_epochs, config.gradient_accumulation_steps, config.max_steps)
    evaluations = Evaluations()
    if test_data is not None:
        count = evaluation_count(step_count(len(batches), *repeats), config.eval_every or None)
        evaluations = Evaluations(count, input_tokens(as_dataset(test_data).all_datums()))
    estimate = estimate_datums(
        [datum for batch in batches for datum in batch],
        len(batches),
        epochs=config.num_epochs,
        accumulate=config.gradient_accumulation_steps,
        max_steps=config.max_steps,
        evaluations=evaluations,
        prices=None if config.prices is None else read_prices(config.prices, config.model_name),
    )
    lines = [str(estimate)]
    if config.evaluator_builders or config.infrequent_evaluator_builders:
        lines.append("the evaluations of evaluator_builders are not counted")
    if config.base_url is None and config.service in (None, "local"):
        lines += ["", *memory_lines(config.model_name, estimate.largest_batch, config.lora_rank)]
    return "\n".join(lines)


def _build(dataset_builder: Callable[[], Any]) -> tuple[Any, Any]:
    built = dataset_builder()
    if not isinstance(built, tuple) or len(built) != 2:
        raise DataError(
            f"dataset_builder must return (training data, test data or None), got a {type(built).__name__}",
            remedy="return (data, None) if there is no test data",
        )
    return built


def _origin(config: Config, service: Any) -> dict[str, Any]:
    """Return what `tinkerloop chat` and `tinkerloop export` need: the renderer, and the embedded engine's folder."""
    url = service.get_console_url() if hasattr(service, "get_console_url") else ""
    root = url2pathname(urlsplit(url).path) if url.startswith("file://") else None
    return {"renderer_name": _used_renderer(config) or config.renderer_name, "checkpoint_root": root}


def _used_renderer(config: Config) -> str | None:
    return getattr(getattr(config.dataset_builder, "common_config", None), "renderer_name", None)


def _steps(config: Config, batches: Batches) -> int | None:
    try:
        count = -(-len(batches) // config.gradient_accumulation_steps)  # type: ignore[arg-type]
    except TypeError:  # a stream may have no length
        return config.max_steps
    return count if config.max_steps is None else min(count, config.max_steps)


def _open_client(config: Config, service: Any, record: Record | None) -> Any:
    if record is None and config.load_checkpoint_path:
        path = _start_path(config.load_checkpoint_path)
        client = resolve(service.create_training_client_from_state(path))
        _refuse_another_adapter(config, client, path)
        return client
    client = open_training_client(
        service, record, base_model=config.model_name, rank=config.lora_rank, seed=config.seed
    )
    if record is not None:
        _refuse_another_adapter(config, client, record.path)
    return client


def _start_path(place: str) -> str:
    """Return the tinker:// path that `load_checkpoint_path` names: itself, or the newest checkpoint of a run folder."""
    if not os.path.isdir(place):
        return place
    states = [state for state, _ in saved_paths(place) if state]
    if not states:
        raise CheckpointError(
            f"load_checkpoint_path={place!r} is a folder without a checkpoint: expected a tinker:// path, or a folder "
            "whose checkpoints.jsonl names a saved state"
        )
    return states[-1]


def _refuse_another_run(config: Config) -> None:
    """Refuse to resume a run that was started with another model, rank or seed, before its files are changed."""
    then = last_config(config.log_path)
    if then is None or Checkpoints(config.log_path).latest() is None:
        return
    for name in ("model_name", "lora_rank", "seed"):
        if name in then and not _is_same(then[name], getattr(config, name)):
            raise CheckpointError(
                f"the run in {config.log_path} was started with {name}={then[name]!r}, got {getattr(config, name)!r}: "
                "resume it with the same value, or set log_path to a new folder"
            )


def _refuse_another_adapter(config: Config, client: Any, path: str) -> None:
    info = client.get_info()
    expected = {"model_name": info.model_data.model_name, "lora_rank": info.lora_rank}
    for name, value in expected.items():
        if value is not None and not _is_same(value, getattr(config, name)):
            raise CheckpointError(
                f"the checkpoint {path} has {name}={value!r}, got {getattr(config, name)!r}: set {name}={value!r}"
            )


def _is_same(one: Any, other: Any) -> bool:
    """Compare two values; two model names are also the same if they are the same folder, or differ in a suffix `:x`."""
    if one == other or not (isinstance(one, str) and isinstance(other, str)):
        return one == other
    if os.path.isdir(one) and os.path.isdir(other):
        return os.path.samefile(one, other)
    return one.partition(":")[0] == other.partition(":")[0]


def _optim(config: Config) -> tinker.AdamParams:
    return tinker.AdamParams(
        learning_rate=_learning_rate(config),
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
        Timing(file=Path(config.log_path) / "timings.jsonl"),
        Checkpoint(
            config.save_every or None,
            every_tokens=config.save_every_tokens or None,
            every_seconds=config.save_every_seconds or None,
            ttl_seconds=config.ttl_seconds,
            sampler=config.save_sampler,
        ),
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
        datums = as_dataset(test_data).all_datums()
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
