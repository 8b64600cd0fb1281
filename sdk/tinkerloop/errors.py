"""Every error that tinkerloop raises on purpose.

* TinkerloopError
  x DatumError (also ValueError)            a datum that cannot be trained on
    - ZeroWeightError                       no position carries weight
  x DataError (also ValueError)             a row or a file that is not training data
  x RenderError (also ValueError)           messages that a renderer cannot turn into tokens
    - UnknownRendererError                  no renderer, model or family has this name
    - EpisodeError                          an episode cannot be continued without rewriting its history
  x ImageError (also ValueError)            an image that cannot be opened, converted or counted
  x PlanError (also ValueError)             a step that cannot be queued as planned
  x NonFiniteError (also ArithmeticError)   a loss or a metric became NaN or infinite
  x CheckpointError                         a record that cannot be written, read or resumed
  x RunLockedError                          another process is working in this run folder
  x MissingPackageError (also ModuleNotFoundError)  an optional package that is not installed

Messages say what was given, what is expected and what to do. Errors of the service pass through unchanged,
with a note that says where in the loop they surfaced.
"""

from __future__ import annotations


class TinkerloopError(Exception):
    """The base of every error that tinkerloop raises on purpose."""


class DatumError(TinkerloopError, ValueError):
    """A datum that cannot be trained on: `field` says which part of it, `index` which position or datum."""

    def __init__(
        self,
        problem: str,
        *,
        field: str | None = None,
        index: int | None = None,
        expected: object = None,
        given: object = None,
    ):
        self.problem, self.field, self.index = problem, field, index
        self.expected, self.given = expected, given
        where = f"{field or 'datum'}{'' if index is None else f'[{index}]'}"
        details = [f"{label} {value}" for label, value in (("expected", expected), ("got", given)) if value is not None]
        super().__init__(f"{where}: {problem}" + (f" ({', '.join(details)})" if details else ""))


class ZeroWeightError(DatumError):
    """Every weight is zero, so training on the datum would do nothing."""


class DataError(TinkerloopError, ValueError):
    """A row or a file that is not training data: names the file, the line, the problem and what to do."""

    def __init__(self, problem: str, *, path: object = None, line: int | None = None, remedy: str | None = None):
        self.problem, self.path, self.line, self.remedy = problem, path, line, remedy
        where = "" if path is None else f"{path}{'' if line is None else f':{line}'}: "
        super().__init__(f"{where}{problem}" + (f"; {remedy}" if remedy else ""))


class RenderError(TinkerloopError, ValueError):
    """Messages that a renderer cannot turn into tokens without dropping or inventing something."""


class UnknownRendererError(RenderError):
    """No renderer, model or family has this name."""


class EpisodeError(RenderError):
    """The next messages cannot be appended, because the family rewrites what has already been sampled."""


class ImageError(TinkerloopError, ValueError):
    """An image that cannot be opened, converted or counted."""


class PlanError(TinkerloopError, ValueError):
    """A step that cannot be queued as planned."""


class NonFiniteError(TinkerloopError, ArithmeticError):
    """A loss or a metric became NaN or infinite."""


class CheckpointError(TinkerloopError):
    """A record of a run that cannot be written, read or resumed."""


class RunLockedError(TinkerloopError):
    """Another process is working in this run folder."""


class MissingPackageError(TinkerloopError, ModuleNotFoundError):
    """An optional package is not installed: names the extra of `tinkerloop-sdk` that brings it."""
