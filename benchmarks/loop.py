"""Compare our loop with the Cookbook's supervised loop on a simulated remote service.

Three things are measured: the share of time in which a loop keeps the server busy, the CPU time of our loop per step,
and the batches that are trained twice after a resume.

    python -m benchmarks.loop [--cookbook FOLDER]

FOLDER contains tinker-cookbook and the packages that its supervised loop imports:
    pip install --no-deps --target FOLDER tinker-cookbook blobfile lxml termcolor
Without --cookbook, only our figures are printed. The benchmark needs no GPU and no API key: `simulated.py` simulates
the service.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import chz
import tinker

from benchmarks.simulated import Killed, SimulatedService, cookbook_main, numbered_batches
from tinkerloop.callbacks import (
    Budget,
    Checkpoint,
    EarlyStop,
    Evaluate,
    GradientAccumulation,
    LRSchedule,
    Preempt,
    StopOnNonFinite,
    nll,
)
from tinkerloop.loop import Callback, Checkpoints, Jsonl, Log, Loop, MicroBatch, Plan, open_training_client
from tinkerloop.loop.plan import normalized
from tinkerloop.loop.schedules import cosine
from tinkerloop.testing import OrderedService

SAVE_EVERY = EVAL_EVERY = 10
STEPS = 41
SERVICES = ((0.01, 0.05), (0.05, 0.1), (0.2, 0.25), (0.2, 0.5))
"""The simulated services: (network round trip, time of a step), in seconds."""


def ours(service: SimulatedService, folder: Path, ahead: int, steps: int = STEPS) -> list[int]:
    checkpoints = Checkpoints(folder)
    record = checkpoints.latest()
    client = open_training_client(service, record)
    batches = numbered_batches(steps)
    Loop(
        client,
        batches,
        steps=steps,
        callbacks=[
            LRSchedule(cosine(1e-4, 0.0, steps)),
            Evaluate("test", nll(batches[0]), every=EVAL_EVERY, at_start=False, at_end=False),
            Checkpoint(every=SAVE_EVERY, sampler=True),
        ],
        sinks=[Jsonl(folder / "metrics.jsonl")],
        checkpoints=checkpoints,
        record=record,
        ahead=ahead,
    ).run()
    return client.weights


def cookbook(
    service: SimulatedService, folder: Path, ahead: int, steps: int = STEPS, *, background_saves: bool = False
) -> list[int]:
    from tinker_cookbook.eval.evaluators import TrainingClientEvaluator  # pyright: ignore[reportMissingImports]
    from tinker_cookbook.supervised import train  # pyright: ignore[reportMissingImports]
    from tinker_cookbook.supervised.types import (  # pyright: ignore[reportMissingImports]
        SupervisedDataset,
        SupervisedDatasetBuilder,
    )

    clients: list[Any] = []
    for name in ("create_lora_training_client", "create_training_client_from_state_with_optimizer"):
        make = getattr(service, name)
        setattr(
            service, name, lambda *args, _make=make, **options: clients.append(_make(*args, **options)) or clients[-1]
        )
    batches = numbered_batches(steps)

    class Data(SupervisedDataset):
        def get_batch(self, index: int) -> list[Any]:
            return batches[index]

        def __len__(self) -> int:
            return len(batches)

        def set_epoch(self, seed: int = 0) -> None:
            pass

    @chz.chz
    class Builder(SupervisedDatasetBuilder):
        def __call__(self) -> Any:
            return Data(), None

    class Forward(TrainingClientEvaluator):
        async def __call__(self, client: Any) -> dict[str, float]:
            output = await client.forward(batches[0], "cross_entropy")
            return {"nll": output.metrics["loss:sum"]}

    config = train.Config(
        log_path=str(folder),
        model_name="tiny",
        recipe_name="benchmark",
        dataset_builder=Builder(),
        evaluator_builders=[Forward],
        eval_every=EVAL_EVERY,
        save_every=SAVE_EVERY,
        submit_ahead=ahead,
        async_periodic_saves=background_saves,
    )
    asyncio.run(cookbook_main(service)(config))
    return clients[-1].weights


def in_folder(run: Any, service: SimulatedService, *args: Any, **options: Any) -> SimulatedService:
    with tempfile.TemporaryDirectory() as folder:
        run(service, Path(folder), *args, **options)
    return service


def busy(with_cookbook: bool) -> None:
    print(f"\nServer busy share over {STEPS} steps; a save and an in-stream evaluation every {SAVE_EVERY} steps.")
    print(
        f"{'rtt ms':>7} {'step ms':>8} {'ahead':>6} {'ours':>8}"
        + "   cookbook   cookbook, background saves" * with_cookbook
    )
    for rtt, step in SERVICES:
        for ahead in (0, 1, 2):
            make = lambda: SimulatedService(rtt=rtt, step=step, save=step, forward=step / 2)  # noqa: B023, E731
            row = [in_folder(ours, make(), ahead).busy_share]
            if with_cookbook:
                row.append(in_folder(cookbook, make(), ahead).busy_share)
                row.append(in_folder(cookbook, make(), ahead, background_saves=True).busy_share)
            shares = "   ".join(f"{share:8.1%}" for share in row)
            print(f"{rtt * 1e3:7.0f} {step * 1e3:8.0f} {ahead:6} {shares}")


def resume(with_cookbook: bool) -> None:
    print("\nBatches trained twice, and left out, when a run is killed after 27 of 41 optimizer steps and resumed:")
    for name, run in (("ours", ours), ("cookbook", cookbook))[: 1 + with_cookbook]:
        for ahead in (0, 1, 3):
            service = SimulatedService(rtt=0, step=0, save=0, forward=0, kill_after=27)
            with tempfile.TemporaryDirectory() as folder:
                try:
                    run(service, Path(folder), ahead)
                except Killed:
                    service.kill_after = None
                weights = run(service, Path(folder), ahead)
            twice, missing = len(weights) - len(set(weights)), STEPS - len(set(weights))
            print(f"  {name:10} ahead={ahead}: {twice} twice, {missing} left out")


class Small(Callback):
    """A small callback, like one that a user writes, that reacts to every event."""

    def __init__(self, name: str):
        self.name = name

    def on_plan(self, plan: Any) -> Any:
        return plan

    def on_boundary(self, boundary: Any) -> None:
        pass

    def on_step(self, result: Any) -> Any:
        return Log({f"{self.name}/loss": result.loss})


def ten_callbacks(batch: list[tinker.Datum]) -> list[Callback]:
    return [
        LRSchedule(cosine(1e-4, 0.0, 1000)),
        GradientAccumulation(micro_batch=64),
        Evaluate("test", nll(batch), every=10**9, at_start=False, at_end=False),
        EarlyStop("test/nll"),
        StopOnNonFinite(),
        Budget(tokens=10**12),
        Preempt(),
        *(Small(name) for name in "abc"),
    ]


def overhead(size: int, steps: int, rounds: int = 15) -> None:
    """Print our loop's CPU time per step: that of whole runs, minus that of the same client calls without a loop."""
    batch = numbered_batches(1, size)[0]

    def timed(work: Callable[[], Any]) -> float:
        began = time.process_time()
        work()
        return 1e6 * (time.process_time() - began) / steps

    def client() -> Any:
        return OrderedService(vocab_size=128).create_lora_training_client()

    def client_alone() -> float:
        alone, optim = client(), tinker.AdamParams()

        def work() -> None:
            for _ in range(steps):
                forward, step = alone.forward_backward(batch, "cross_entropy"), alone.optim_step(optim)
                forward.result()
                step.result()

        return timed(work)

    def normalizing() -> float:
        plan = Plan(0, (MicroBatch(tuple(batch)),), tinker.AdamParams())
        return timed(lambda: [normalized(plan).tokens for _ in range(steps)])

    def loop(callbacks: Sequence[Callback], sink: bool = False) -> float:
        with tempfile.TemporaryDirectory() as folder:
            sinks = [Jsonl(Path(folder) / "metrics.jsonl")] if sink else []
            return timed(Loop(client(), [batch] * steps, callbacks=callbacks, sinks=sinks).run)

    kinds = (
        client_alone,
        normalizing,
        lambda: loop([]),
        lambda: loop(ten_callbacks(batch)),
        lambda: loop(ten_callbacks(batch), sink=True),
    )
    measured = [[kind() for kind in kinds] for _ in range(rounds)]
    alone, scaling, bare, full, sunk = (statistics.median(column) for column in zip(*measured, strict=True))
    print(
        f"\nOur own CPU time per step: a run's, minus the client's own {alone:.0f} us for the same calls; {size} datums"
    )
    print(f"per batch (medians of {rounds} interleaved runs of {steps} steps):")
    print(f"  loop {bare - alone:.0f} us, of which normalising takes {scaling:.0f} us; with ten callbacks")
    print(f"  {full - alone:.0f} us, {(full - bare) / 10:.1f} us each; with a jsonl sink too {sunk - alone:.0f} us")


def peak_memory(steps: int) -> int:
    """Return the largest number of allocated bytes during a run of `steps` steps."""
    client = OrderedService(vocab_size=128).create_lora_training_client()
    client._service.operations = Forgetful()
    batch = numbered_batches(1, 1)[0]
    tracemalloc.start()
    Loop(client, (batch for _ in range(steps)), callbacks=ten_callbacks(batch)).run()
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size


def overheads(with_cookbook: bool) -> None:
    gc.collect()
    gc.freeze()  # otherwise the measured time would include collections that visit all of torch's modules
    overhead(size=1, steps=500)
    overhead(size=32, steps=100)
    print(f"\nPeak memory: {peak_memory(1_000) / 1e3:.0f} kB over 1,000 steps, ", end="", flush=True)
    print(f"{peak_memory(100_000) / 1e3:.0f} kB over 100,000, with ten callbacks")


class Forgetful(list):
    def append(self, item: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cookbook", help="The folder in which tinker-cookbook is installed; see above.")
    parser.add_argument("--only", choices=["busy", "resume", "overhead"], help="Run only this part.")
    arguments = parser.parse_args()
    if arguments.cookbook:
        sys.path.insert(0, arguments.cookbook)
    logging.disable(logging.CRITICAL)
    for name, part in (("overhead", overheads), ("resume", resume), ("busy", busy)):
        if arguments.only in (None, name):
            part(bool(arguments.cookbook))


if __name__ == "__main__":
    main()
