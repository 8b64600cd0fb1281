"""The training loop, written as one generator that serves both synchronous and async callers.

The main loop is in `_train`; its comments state the invariants. The functions that it calls follow below: first those
that queue work (the submit clock), then those that deliver results (the result clock). A boundary is the point between
two optimizer steps: at boundary s, exactly steps 0 to s - 1 have been queued. Usage:

loop = Loop(client, batches, steps=1000, callbacks=[LRSchedule(cosine(2e-4, 0.0, 1000)), Checkpoint(every=100)],
            sinks=[Jsonl("run/metrics.jsonl")], checkpoints=Checkpoints("run"))
summary = loop.run()                     # or: summary = await loop.arun()
                                         # or: for result in loop.steps(): ...
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, NoReturn

from tinkerloop._lazy import tinker
from tinkerloop.clients import CustomLoss, TrainingClientLike
from tinkerloop.data.batches import Batches, SampledBatches
from tinkerloop.errors import CheckpointError, NonFiniteError, PlanError
from tinkerloop.loop.argument_checks import datums_of, refuse_other_client
from tinkerloop.loop.callback import Callback
from tinkerloop.loop.callback_dispatch import Dispatcher
from tinkerloop.loop.checkpoints import Checkpoints, Record
from tinkerloop.loop.events import (
    Accumulate,
    Boundary,
    Eval,
    EvalResult,
    Log,
    Request,
    Retain,
    Save,
    StepResult,
    Stop,
    Summary,
)
from tinkerloop.loop.futures import Flow, aiterate, is_done, iterate, resolve
from tinkerloop.loop.metric_names import check_row
from tinkerloop.loop.pipeline import RESERVED, TOKEN_TOTALS, Pipeline, Queued, Result, SaveResult, submitted_eval
from tinkerloop.loop.plan import MicroBatch, Normalize, Plan, check_loss_name, check_normalize
from tinkerloop.loop.positioned_batches import as_batches, with_sources
from tinkerloop.loop.resume import begin, model_of, refuse_another_client
from tinkerloop.loop.retention import Keep, kept_steps, noted
from tinkerloop.loop.save_requests import combined, saves_of
from tinkerloop.loop.sinks import Row, Sink, Sinks
from tinkerloop.loop.weak_identity_map import WeakIdentityMap
from tinkerloop.number_checks import check_whole

_loops: WeakIdentityMap[int] = WeakIdentityMap()  # batches -> how many loops have begun on them


class Loop:
    """Train a model through a training client, batch by batch, and call the callbacks at each event.

    Args:
        client: a training client of tinker or of the embedded engine, or any other `TrainingClientLike`; or the future
            of one, as newer versions of tinker return it.
        batches: `Batches`, or an iterable of lists of datums. A run with `checkpoints` or `record` needs `Batches` or a
            list, because the position of a plain iterator cannot be saved. `Batches` that another loop has used are
            taken only with a `record`, which sets their position.
        steps: the total number of optimizer steps, including those of the resumed run; None: train until the data ends.
        callbacks: `Callback` objects, called in this order. Each is used by one loop only, unless it is
            `reusable`.
        sinks: functions `(step, row)` or `Sink` objects. Each receives every row of metrics.
        checkpoints: where records are written. If given, the run's last boundary is also recorded, except after a
            `Stop` with `save=False`.
        record: the record to resume from. `client` must have been opened from it with `open_training_client`, and not
            used by another loop since.
        optim: the optimizer parameters of every plan. Callbacks may change them in `on_plan`.
        loss_fn: the name of the loss of every plan, or a custom loss. Callbacks may change it in `on_plan`.
        loss_fn_config: the options of a loss given by name. Callbacks may change them in `on_plan`.
        normalize: how the loss weights of a step are scaled, as described at `Plan.normalize`.
        ahead: how many further steps may be queued before the result of a step has arrived. 0 waits for each result;
            1 hides the time of the round trip to the service.

    Raises:
        PlanError: the arguments contradict each other.
        CheckpointError: `checkpoints` already has records, and no `record` to resume from is given; or `client` was
            not opened from `record`.
    """

    def __init__(
        self,
        client: TrainingClientLike,
        batches: Batches | Iterable[Sequence[tinker.Datum]],
        *,
        steps: int | None = None,
        callbacks: Sequence[Callback] = (),
        sinks: Sequence[Sink | Callable[[int, Row], object]] = (),
        checkpoints: Checkpoints | None = None,
        record: Record | None = None,
        optim: tinker.AdamParams | None = None,
        loss_fn: str | CustomLoss = "cross_entropy",
        loss_fn_config: Mapping[str, float | str] | None = None,
        normalize: Normalize = "token",
        ahead: int = 1,
    ):
        client = resolve(client)  # newer versions of tinker warn at each use of a future of a client in its place
        refuse_other_client(client)
        if steps is not None:
            check_whole("steps", steps, 0)
        check_loss_name(loss_fn)
        check_normalize(normalize)
        if record is None and checkpoints is not None and (latest := checkpoints.latest()):
            raise CheckpointError(
                f"{checkpoints.file} holds a record of step {latest.step}: resume from it, with "
                "record=checkpoints.latest() and a client opened from this record, or use a new folder"
            )
        if record is not None:
            refuse_another_client(client, record)
        self._client, self._steps, self._checkpoints, self._record = client, steps, checkpoints, record
        self._model = None if checkpoints is None else model_of(client)
        self._pipeline = Pipeline(client, ahead, run=None if checkpoints is None else checkpoints.run_id())
        self._batches = as_batches(batches, seekable=checkpoints is not None or record is not None)
        if check_training := getattr(self._batches, "check_training", None):  # of batches for one client and one loss
            check_training(client, loss_fn, normalize)
        self._loops = _uses(self._batches)
        if self._loops and record is None:
            self._refuse_used_batches()
        self._callbacks = Dispatcher(callbacks)
        self._sinks = Sinks(sinks)
        self._optim = optim or tinker.AdamParams()
        self._normalize: Normalize = normalize
        self._loss: tuple[str | CustomLoss, Mapping[str, float | str] | None] = (loss_fn, loss_fn_config)

        self._step = record.step if record else 0
        self._tokens = record.tokens if record else 0
        self._delivered_tokens = (record.tokens, record.trained_tokens) if record else (0, 0)
        self._metrics = dict(record.metrics) if record else {}
        if record:
            self._batches.seek(deepcopy(record.cursor))
            self._callbacks.restore(record)
        self._accumulate: int | None = None
        self._stop: Stop | None = None
        self._detached: deque[Queued] = deque()
        self._delivered_at, self._waited = time.perf_counter(), {"data": 0.0, "server": 0.0}
        self._begun = False
        self.summary: Summary | None = None
        """The step and reason of the run's end; None until the run has ended."""

    # --- the three ways to run it ---

    def run(self) -> Summary:
        """Train to the end of the run, and block until then, also where an event loop is running, as in a notebook.

        Returns:
            The summary of the run, with the step and the reason of its end.

        Raises:
            Exception: the error that ended the run. Where known, a note on it names the callback, sink or request.
        """
        for _ in self.steps():
            pass
        assert self.summary is not None
        return self.summary

    async def arun(self) -> Summary:
        """Like `run`, for async code: awaits the service. Callbacks and batches run on the event loop's thread."""
        async for _ in self.asteps():
            pass
        assert self.summary is not None
        return self.summary

    def steps(self) -> Iterator[StepResult]:
        """Train, and yield the result of each step after it was passed to the callbacks.

        A caller that leaves its `for` loop early abandons the run: no further result is delivered or saved.
        """
        return iterate(self._run())

    def asteps(self) -> AsyncIterator[StepResult]:
        """Like `steps`, for async code: train, and yield the result of each step."""
        return aiterate(self._run())

    def stop(self, reason: str, *, save: bool = True) -> None:
        """End the run before the next step is queued, as if a callback had returned `Stop(reason, save)`."""
        self._stop = self._stop or Stop(reason, save)

    # --- the loop ---

    def _run(self) -> Flow[None]:
        if self._begun:
            raise PlanError(
                "this loop is running or has already run, and cannot run twice: create a new Loop, with "
                "record=checkpoints.latest() to resume"
            )
        if self._record is not None:
            refuse_another_client(self._client, self._record)
        if _uses(self._batches) != self._loops:
            self._refuse_used_batches()
        begin(self._client)
        for part in with_sources(self._batches):
            _loops.set(part, (_loops.get(part) or 0) + 1)
        self._begun = True
        error: BaseException | None = None
        reason = "error"
        try:
            if self._checkpoints is not None:
                self._checkpoints.rewind(self._step)
            self._sinks.open(self._record.rows if self._record else 0, self._step)
            for name, request in self._callbacks.start(self._step, self._steps):
                self._take(self._step, name, request)
            yield from self._train()
            ended = "steps reached" if self._complete else "data exhausted"
            reason = self._stop.reason if self._stop else ended
        except GeneratorExit:
            reason = "abandoned"
            raise
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.summary = Summary(self._step, reason, dict(self._metrics), error, self._steps)
            failures = self._callbacks.end(self._step, self.summary)
            failures += self._sinks.close(failed=error is not None or bool(failures))
            for failure in failures[error is None :]:
                (error or failures[0]).add_note(f"then, while ending: {failure!r}")
            if failures and error is None:
                raise next((one for one in failures if not isinstance(one, Exception)), failures[0])

    def _train(self) -> Flow[None]:
        # The callbacks handled the record's boundary before the record was written, so on_boundary is not called again.
        handled = self._record is not None
        # They also did there what they do at the end of a run, unless the record says that they did not.
        record_is_final = self._record is not None and self._record.final is not False
        while True:
            step, settled = self._step, self._step - 1 - self._pipeline.ahead
            # Before step s is queued, exactly the results of the steps up to s - 1 - ahead have been delivered.
            yield from self._deliver(settled)
            if isinstance(self._batches, SampledBatches):
                self._batches.at_boundary(step)
            # A resumed run must not skip the next batch, so the cursor is read before that batch.
            cursor = None if self._checkpoints is None else self._batches.cursor
            batches = self._fetch()
            # At boundary s, exactly steps 0 to s - 1 have been queued. Evaluations and saves are queued only here.
            saves = [] if handled else self._ask_boundary(final=not batches)
            # With ahead=0, the results of this boundary's evaluations are delivered here, so they can stop the run.
            yield from self._deliver(settled)
            ending, told = not batches or self._stop is not None, record_is_final if handled else not batches
            asked = not handled
            if ending and not told:
                if self._record and handled and self._checkpoints:
                    saves = saves_of(self._record)  # its record is replaced by one that has at least the same
                saves += self._ask_boundary(final=True)
                yield from self._deliver(settled)
                asked = told = True
            if ending and asked and self._checkpoints:
                saves = (saves or [("", Save())]) if self._stop is None or self._stop.save else []
            if saves:
                yield from self._save(saves, cursor, told=told)
            elif handled and self._checkpoints:
                # on_save ran after the record was written, so the record does not have its effects: call it again.
                self._pipeline.push(Queued(step - 1, f"save at boundary {step}", (), self._resumed))
            if ending or self._stop:
                break
            self._queue(batches)
            self._step, handled = step + 1, False
        yield from self._deliver(self._step)
        yield from self._settle()

    def _refuse_used_batches(self) -> NoReturn:
        raise PlanError(
            f"another loop has used these batches, and they go on where it stopped, at {self._batches.cursor}: create "
            "new batches for each loop; to go on there on purpose, call `seek` on the new ones with this cursor"
        )

    @property
    def _complete(self) -> bool:
        # greater if the run was resumed with fewer steps than were already done
        return self._steps is not None and self._step >= self._steps

    def _fetch(self) -> list[Sequence[tinker.Datum]]:
        """Return the batches of the next step: none if the run ends here. The last step of the data may have fewer."""
        batches: list[Sequence[tinker.Datum]] = []
        if self._stop or self._complete:
            return batches
        began = time.perf_counter()
        while len(batches) < (self._accumulate or 1):
            try:
                batches.append(next(self._batches))
            except StopIteration:
                break
        self._waited["data"] += time.perf_counter() - began
        return batches

    def _queue(self, batches: list[Sequence[tinker.Datum]]) -> None:
        micro_batches = tuple(MicroBatch(datums_of(batch), *self._loss) for batch in batches)
        plan = self._callbacks.plan(Plan(self._step, micro_batches, self._optim, self._normalize))
        self._tokens += self._pipeline.step(plan).tokens

    def _ask_boundary(self, *, final: bool) -> list[tuple[str, Save]]:
        """Call `on_boundary` of the callbacks, queue the evaluations, and return (callback name, save) pairs.

        If the run ends at a boundary of which the callbacks do not know yet that it is the last, they are asked once
        more, with `final`: what they do at the end of a run must be done at every end.
        """
        step = self._step
        boundary = Boundary(step, self._steps, final, self._client, self._tokens, dict(self._metrics))
        saves: list[tuple[str, Save]] = []
        for name, request in self._callbacks.ask("on_boundary", step, boundary):
            if isinstance(request, Save):
                if self._checkpoints is None:
                    raise PlanError(
                        f"callback {name!r} requested a Save, but the loop has no checkpoints: "
                        "pass checkpoints=Checkpoints(folder)"
                    )
                saves.append((name, request))
            elif isinstance(request, Eval) and not hasattr(request.future, "result"):
                kind = type(request.future).__name__
                raise PlanError(
                    f"callback {name!r} requested the evaluation {request.name!r} with a {kind} "
                    "as its future: an evaluator returns a future of metrics, such as that of background(function)"
                )
            elif isinstance(request, Eval) and request.detached:
                queued = submitted_eval(step, request.name, request.future, final=final, detached=True)
                self._detached.append(queued)
            elif isinstance(request, Eval):
                self._pipeline.eval(step, request.name, request.future, final=final)
            else:
                self._take(step, name, request)
        return saves

    def _save(self, saves: list[tuple[str, Save]], cursor: Any, *, told: bool) -> Flow[None]:
        """Queue the save right after the last step, deliver all outstanding results, and prepare the record.

        The weights, the data position and the callback states of a record must all belong to the same boundary, so all
        results must be delivered first. Waiting costs little, because the service saves meanwhile. The record is
        written when the result of the save is delivered.
        """
        save = combined(saves)
        saving = self._pipeline.submit_save(self._step, ttl_seconds=save.ttl_seconds, sampler=save.sampler)
        yield from self._deliver(self._step)
        yield from self._settle()
        if self._stop and not told:
            saves += self._ask_boundary(final=True)
            final = combined(saves)  # the weights are still the same
            if final.ttl_seconds != save.ttl_seconds:
                saving = self._pipeline.submit_save(
                    self._step, ttl_seconds=final.ttl_seconds, sampler=final.sampler, again=True
                )
            elif final.sampler and not save.sampler:
                saving = self._pipeline.submit_sampler_save(saving, final.ttl_seconds)
            yield from self._deliver(self._step)
            yield from self._settle()
            save, told = final, True
        if self._stop and not self._stop.save:
            return
        if not math.isfinite(self._metrics.get("loss", 0.0)):
            raise NonFiniteError(
                f"the loss is {self._metrics['loss']} at boundary {self._step}, so no record is written here: "
                "resume from the last record with a lower learning rate or grad_clip_norm, or inspect the batch"
            )
        if isinstance(self._batches, SampledBatches):
            # A resumed run has the weights of this boundary and of no earlier one.
            self._batches.settle(cursor)
        states, metrics = self._callbacks.states(), dict(self._metrics)
        rows, run = self._sinks.rows, self._pipeline.run
        tokens, trained = self._delivered_tokens  # of all steps so far, because their results were delivered
        record = Record(self._step, "", cursor, states, metrics, tokens, rows, run=run, model=self._model)
        record = replace(record, saved_by=sorted({name for name, _ in saves if name}), trained_tokens=trained)
        record = replace(record, ttl_seconds=save.ttl_seconds, final=told)

        def finish(values: list[Any]) -> Result:
            saved = saving.finish(values)
            assert isinstance(saved, SaveResult)
            self._write(replace(record, path=saved.path, sampler_path=saved.sampler_path))
            return saved

        self._pipeline.push(replace(saving, finish=finish))

    def _write(self, record: Record) -> None:
        assert self._checkpoints is not None
        self._sinks.sync()
        again = self._record is not None and self._record.step == record.step
        self._notify_saved(self._checkpoints.append(record, again=again))

    def _resumed(self, values: list[Any]) -> Result:
        assert self._record is not None
        self._notify_saved(self._record)
        return SaveResult(self._record.step, self._record.path, self._record.sampler_path)

    def _notify_saved(self, record: Record) -> None:
        assert self._checkpoints is not None
        keeps: dict[str, Keep] = {}
        for name, request in self._callbacks.ask("on_save", record.step, record):
            if isinstance(request, Retain):
                keeps[name] = noted(request.keep, f"in the Retain returned by {name}.on_save at step {record.step}")
            else:
                self._take(record.step, name, request)
        if keeps:
            self._checkpoints.retain(lambda records: kept_steps(records, keeps, self._callbacks.names))

    # --- the result clock ---

    def _deliver(self, upto: int) -> Flow[None]:
        """Deliver the results of work queued up to step `upto`, in queue order, then finished detached evaluations."""
        while queued := self._pipeline.pop(upto):
            began = time.perf_counter()
            result = yield from queued.answer()
            self._waited["server"] += time.perf_counter() - began
            if isinstance(result, StepResult):
                result = replace(result, timings=self._lap(), metrics={**result.metrics, **self._totals(result.plan)})
                self._report("on_step", result, result.metrics)
                yield result
            elif isinstance(result, EvalResult):
                self._report("on_eval", result, {})
        if self._detached:
            yield from self._settle(wait=False)

    def _totals(self, plan: Plan) -> dict[str, float]:
        """Count the tokens of a step that was delivered, and return the totals of the run up to it."""
        tokens, trained = self._delivered_tokens
        self._delivered_tokens = tokens + plan.tokens, trained + plan.trained_tokens
        return dict(zip(TOKEN_TOTALS, self._delivered_tokens, strict=True))

    def _settle(self, *, wait: bool = True) -> Flow[None]:
        """Deliver results of detached evaluations, in submission order: with `wait` all, otherwise finished ones."""
        while self._detached and (wait or all(map(is_done, self._detached[0].futures))):
            result = yield from self._detached.popleft().answer()
            assert isinstance(result, EvalResult)
            self._report("on_eval", result, {}, detached=True)

    def _report(self, event: str, result: StepResult | EvalResult, metrics: Row, *, detached: bool = False) -> None:
        """Pass `result` to the callbacks, and log one row: `metrics` and the metrics that the callbacks add to them."""
        row = dict(metrics)
        for name, request in self._callbacks.ask(event, result.step, result, keep_states=detached):
            if isinstance(request, Log):
                if not row.keys().isdisjoint(request.metrics):
                    twice = sorted(row.keys() & request.metrics.keys())
                    raise PlanError(
                        f"{name}.{event} logs {twice}, but the row of step {result.step} already has these metrics: "
                        "rename them"
                    )
                row.update(request.metrics)
            elif detached:
                raise PlanError(
                    f"{name}.on_eval returned {request!r} for the detached evaluation {getattr(result, 'name', '')!r}, "
                    "but may return only Log, because the time at which its result arrives is not reproducible"
                )
            else:
                self._take(result.step, name, request)
        self._emit(result.step, row, of_step=isinstance(result, StepResult), detached=detached)
        if row and not detached:  # a decision from a detached evaluation would depend on timing
            for name, request in self._callbacks.ask("on_row", result.step, result.step, row):
                self._take(result.step, name, request)

    def _take(self, step: int, name: str, request: Request) -> None:
        """Carry out a `Stop`, `Log` or `Accumulate`, whose handling does not depend on the event."""
        if isinstance(request, Stop):
            self._stop = self._stop or request
        elif isinstance(request, Log):
            self._emit(step, request.metrics)
        elif isinstance(request, Accumulate):
            if self._accumulate not in (None, request.batches):
                raise PlanError(
                    f"callback {name!r} requested {request.batches} batches per step, but another callback "
                    f"{self._accumulate}: the number must be the same for all"
                )
            self._accumulate = request.batches

    def _emit(self, step: int, row: Row, *, of_step: bool = False, detached: bool = False) -> None:
        if row:
            check_row(step, row, ("step",) if of_step else ("step", *RESERVED))
            if not detached:  # callbacks decide from these metrics, and no decision may depend on timing
                self._metrics.update(row)
            self._sinks.emit(step, row)

    def _lap(self) -> dict[str, float]:
        now = time.perf_counter()
        lap = {"total": now - self._delivered_at, **self._waited, **self._callbacks.lap()}
        self._delivered_at, self._waited = now, {"data": 0.0, "server": 0.0}
        return lap


def _uses(batches: Batches) -> int:
    """Return how often loops have begun on these batches, or on those that they read from."""
    return sum(_loops.get(part) or 0 for part in with_sources(batches))
