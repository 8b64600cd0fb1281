"""Every error that tinkerloop raises on purpose.

* TinkerloopError
  x DatumError (also ValueError)            a datum that cannot be trained on
    - ZeroWeightError                       all weights of a datum are zero
  x DataError (also ValueError)             a row or file that cannot be used as training data
  x RenderError (also ValueError)           messages that a renderer cannot turn into tokens
    - UnknownRendererError                  no renderer or model with this name is known
    - EpisodeError                          messages or ids that cannot be appended to an episode
      + BrokenReplyError                    a sampled reply that no message can follow
  x ImageError (also ValueError)            an image that cannot be opened, converted or counted in tokens
  x PlanError (also ValueError)             a training step or a callback with invalid settings
  x RolloutError                            an episode that cannot be sampled
    - EnvironmentFailedError                an environment that raised an error or returned something invalid
  x NonFiniteError (also ArithmeticError)   a loss or a metric became NaN or infinite
  x CheckpointError                         a checkpoint that cannot be written, read or resumed from
  x RunLockedError                          another process is working in this run folder
  x ServerLostError                         the server does not answer any more
  x CheckFailedError (also AssertionError)  a user's part that fails a check of `tinkerloop.testing`
  x MissingPackageError (also ModuleNotFoundError)  an optional package that is not installed

An error message gives what is wrong, what was given, what is expected and what to do. Errors of the service are
passed on unchanged, with a note on where in the loop they occurred.
"""

from __future__ import annotations


class TinkerloopError(Exception):
    """Base class of every error that tinkerloop raises on purpose."""


class DatumError(TinkerloopError, ValueError):
    """Error for a datum that cannot be trained on.

    `field` names the invalid input, such as `weights`. `index` is the position, chunk or datum with the problem.
    `expected` and `given` are the valid and the actual value.
    """

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
    """Error for a datum whose weights are all zero, so that training on it would have no effect."""


class DataError(TinkerloopError, ValueError):
    """Error for a row or file that cannot be used as training data.

    The error message gives the file, the line, the problem and, where known, what to do.
    """

    def __init__(self, problem: str, *, path: object = None, line: int | None = None, remedy: str | None = None):
        self.problem, self.path, self.line, self.remedy = problem, path, line, remedy
        where = "" if path is None else f"{path}{'' if line is None else f':{line}'}: "
        super().__init__(f"{where}{problem}" + (f"; {remedy}" if remedy else ""))


class RenderError(TinkerloopError, ValueError):
    """Error for messages that a renderer cannot turn into tokens without losing or adding content.

    Also raised if the tokenizer, the options or other arguments do not fit the renderer.
    """


class UnknownRendererError(RenderError):
    """Error for a name under which no renderer or model is known."""


class EpisodeError(RenderError):
    """Error for messages or sampled ids that cannot be appended to an `Episode`.

    For example, the chat format would write an already sampled reply differently once the new messages follow it.
    """


class BrokenReplyError(EpisodeError):
    """Error for a sampled reply that no message can follow, so that its `Episode` must end with it.

    For example, the reply ends inside a tool call, or the chat format cannot express it.
    """


class ImageError(TinkerloopError, ValueError):
    """Error for an image that cannot be opened, converted or counted in tokens."""


class PlanError(TinkerloopError, ValueError):
    """Error for a training step or a callback whose settings are invalid, so that it cannot be run as planned."""


class RolloutError(TinkerloopError):
    """Error for an episode that cannot be sampled."""


class EnvironmentFailedError(RolloutError):
    """Error for an environment that raised an error or returned something invalid.

    If it raised an error, that error is the `__cause__`. A `FailurePolicy` is for these errors alone.
    """


class NonFiniteError(TinkerloopError, ArithmeticError):
    """Error for a loss or a metric that became NaN or infinite."""


class CheckpointError(TinkerloopError):
    """Error for a checkpoint, or its record in checkpoints.jsonl, that cannot be written, read or resumed from."""


class RunLockedError(TinkerloopError):
    """Error for a run folder in which another process is already working."""


class ServerLostError(TinkerloopError):
    """Error for a server that does not answer any more. A run that has a record can be resumed from it."""


class MissingPackageError(TinkerloopError, ModuleNotFoundError):
    """Error for an optional package that is not installed. The message names the extra of `tinkerloop-sdk`."""


class CheckFailedError(TinkerloopError, AssertionError):
    """Error for a chat format, a callback or a run that fails a check of `tinkerloop.testing`."""
