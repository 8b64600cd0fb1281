"""`check_loop_in_processes`: like `check_loop`, with real processes that are killed by SIGKILL.

    def make_run(service, folder):                # one process of your program, at the top of a module
        ...                                       # as for `check_loop`

    check_loop_in_processes(make_run, service=open_service)      # e.g. open_service(root): connect("local", root=root)

`check_loop` is faster and finds most mistakes. This check adds what only a real kill has: no `finally` runs, buffered
lines are lost, a worker thread stops in the middle of a checkpoint, and the service itself is opened anew.
"""

from __future__ import annotations

import inspect
import itertools
import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterable
from functools import wraps
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

from tinkerloop._lazy import tinker
from tinkerloop.errors import CheckFailedError
from tinkerloop.loop.futures import resolve
from tinkerloop.testing.loop_checks import compared_summary, first_difference, recorded_files
from tinkerloop.testing.sample_events import sample_batches

_OPERATIONS = frozenset(
    """
    forward forward_backward forward_backward_custom optim_step save_state save_weights_for_sampler
    save_weights_and_get_sampling_client load_state load_state_with_optimizer sample compute_logprobs
    delete_checkpoint delete_checkpoint_from_tinker_path
    """.split()  # noqa: SIM905
)
_OPENING = frozenset(
    """
    create_lora_training_client create_training_client_from_state create_training_client_from_state_with_optimizer
    create_sampling_client create_rest_client
    """.split()  # noqa: SIM905
)


def three_operations(operations: int) -> list[int]:
    """Return three operations, spread at random over a run; equal numbers give equal results."""
    return sorted(Random(f"kills/{operations}").sample(range(operations), min(operations, 3)))


def check_loop_in_processes(
    make_run: Callable[[Any, Path], object],
    *,
    service: Callable[[Path], Any],
    kills: Callable[[int], Iterable[int]] = three_operations,
    ignored_metrics: tuple[str, ...] = ("time/",),
) -> dict[str, Any]:
    """Run a program in a process, kill it by SIGKILL at operations, run it again, and compare the outcome.

    Compared is what `check_loop` compares. The weights and the optimizer of a training client are compared by what they
    compute: the log-probabilities of some datums at the end of the run, and after one more step on these datums.

    The processes are forked from one that has imported the module of `make_run` and the embedded engine. So both
    functions must be at the top of a module that can be imported, and a script needs `if __name__ == "__main__":`.

    Args:
        make_run: function that does what one process of your program does, as for `check_loop`.
        service: function that opens the service client of a process. Its argument is a folder for the checkpoints of
            the embedded engine, which is kept when the process is killed.
        kills: function from the number of operations of a run to the operations before which the run is killed. By
            default, three of them.
        ignored_metrics: prefixes of metrics that are not compared, because they are measured times.

    Returns:
        The outcome of the run without a kill.

    Raises:
        CheckFailedError: the run has no operation, a process fails, or a resumed run ends in another way.
    """
    with tempfile.TemporaryDirectory(prefix="check_loop-") as root:
        trial = _ProcessTrial(make_run, service, ignored_metrics, Path(root))
        expected, operations = trial.run("whole")
        if not operations:
            raise CheckFailedError("the run has used no operation of the service: make_run must use the given one")
        for kill_at in kills(operations):
            trial.run_killed(f"killed-{kill_at}", kill_at, operations)
            resumed, _ = trial.run(f"killed-{kill_at}")
            if difference := first_difference(resumed, expected):
                raise CheckFailedError(
                    f"a run whose process was killed before operation {kill_at} of {operations} and which was resumed "
                    f"differs from one that was not: {difference}"
                )
    return expected


class _ProcessTrial:
    """The processes of one check, and their folders."""

    def __init__(
        self,
        make_run: Callable[[Any, Path], object],
        service: Callable[[Path], Any],
        ignored_metrics: tuple[str, ...],
        root: Path,
    ):
        self._make_run, self._service, self._ignored, self._root = make_run, service, ignored_metrics, root
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload([make_run.__module__, service.__module__, "tinkerloop.local"])

    def run(self, name: str) -> tuple[dict[str, Any], int]:
        """Run a process to its end. Return the outcome, and the number of operations."""
        ended = self._process(name, None)
        if not isinstance(ended, tuple):
            raise CheckFailedError(f"a process of the run has failed: {ended}")
        own, operations = ended
        return {**own, **recorded_files(self._root / name / "run", self._ignored)}, operations

    def run_killed(self, name: str, kill_at: int, operations: int) -> None:
        """Run a process that is killed before operation `kill_at`."""
        ended = self._process(name, kill_at)
        if ended != -signal.SIGKILL:
            raise CheckFailedError(
                f"a process was to be killed before operation {kill_at} of {operations}, but has ended: its operations "
                f"differ from run to run, or it has failed: {ended}"
            )

    def _process(self, name: str, kill_at: int | None) -> tuple[dict[str, Any], int] | int | str:
        """Return what the process sent, or its exit code if it sent nothing."""
        folder = self._root / name
        (folder / "run").mkdir(parents=True, exist_ok=True)
        receiver, sender = self._context.Pipe(duplex=False)
        args = (self._make_run, self._service, folder, kill_at, self._ignored, sender)
        process = self._context.Process(target=_run_process, args=args)
        process.start()
        sender.close()  # so that `recv` ends when the process does
        try:
            sent = receiver.recv()
        except EOFError:
            sent = None
        process.join()
        assert process.exitcode is not None
        return process.exitcode if sent is None else sent


def _run_process(
    make_run: Callable[[Any, Path], object],
    service: Callable[[Path], Any],
    folder: Path,
    kill_at: int | None,
    ignored_metrics: tuple[str, ...],
    sender: Connection,
) -> None:
    """Run `make_run` in this process, and send the outcome or the text of the error."""
    try:
        watched = _Watched(kill_at)
        opened = watched.service(service(folder / "service"))
        returned = make_run(opened, folder / "run")
        operations = watched.end()
        own = {"weights": [_computed(client) for client in watched.training_clients]}
        sender.send(({**own, **compared_summary(returned, ignored_metrics)}, operations))
    except BaseException:
        sender.send(traceback.format_exc())


def _computed(client: Any) -> list[list[bytes]]:
    """Return what the weights of a client compute, before and after one more step, to the bit."""
    (datums,) = sample_batches(1)
    passes = []
    for _ in range(2):
        output = resolve(client.forward_backward(datums, "cross_entropy"))
        passes.append([one["logprobs"].to_numpy().tobytes() for one in output.loss_fn_outputs])
        resolve(client.optim_step(tinker.AdamParams(learning_rate=1e-3)))
    return passes


class _Watched:
    """The clients of a process, whose operations are counted; the process is killed before operation `kill_at`."""

    def __init__(self, kill_at: int | None):
        self._kill_at, self._count = kill_at, itertools.count()
        self.training_clients: list[Any] = []

    def end(self) -> int:
        """Return the number of operations, and kill at none from now on."""
        self._kill_at = None
        return next(self._count)

    def service(self, opened: Any) -> Any:
        """Replace the methods of a service client that open clients, so that the operations of these are counted."""
        for name in _methods(opened, _OPENING):
            setattr(opened, name, self._then_watched(getattr(opened, name)))
        return opened

    def _client(self, client: Any) -> Any:
        if hasattr(client, "optim_step"):
            self.training_clients.append(client)
        for name in _methods(client, _OPERATIONS):
            counted = self._counted(getattr(client, name))
            opens = name.removesuffix("_async") == "save_weights_and_get_sampling_client"
            setattr(client, name, self._then_watched(counted) if opens else counted)
        return client

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def counted(*args: Any, **options: Any) -> Any:
            if next(self._count) == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return method(*args, **options)

        return counted

    def _then_watched(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def opening(*args: Any, **options: Any) -> Any:
            client = method(*args, **options)
            return self._awaited(client) if inspect.iscoroutine(client) else self._client(resolve(client))

        return opening

    async def _awaited(self, opening: Any) -> Any:
        return self._client(await opening)


def _methods(client: Any, names: frozenset[str]) -> list[str]:
    """Return those methods of a client that have one of these names, with or without the suffix `_async`."""
    return [name for name in dir(type(client)) if name.removesuffix("_async") in names]
