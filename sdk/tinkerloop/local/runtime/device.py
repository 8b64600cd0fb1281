"""The torch device of an engine, and the error for one that this machine does not have."""

from __future__ import annotations

import torch

from tinkerloop.errors import TinkerloopError


def usable_device(name: str | torch.device | None) -> torch.device:
    """Return the device with this name, or the default one: cuda if there is a GPU, else the CPU.

    Raises:
        TinkerloopError: torch has no such device, or cannot use it on this machine.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if (problem := _problem(device)) is None:
            return device
    except (RuntimeError, AssertionError) as error:
        problem = str(error).partition("\n")[0]
    raise TinkerloopError(
        f'the device {str(name)!r} cannot be used: {problem}. Choose "cpu", or no device for the default, '
        f'which is "{"cuda" if torch.cuda.is_available() else "cpu"}" here'
    )


def _problem(device: torch.device) -> str | None:
    """Return why torch cannot use the device; None if it can."""
    if device.type != "cuda":
        torch.empty(0, device=device)
        return None
    count = torch.cuda.device_count()
    if (device.index or 0) < count:
        return None
    if count:
        return f"torch finds {count} GPU{'s' * (count > 1)}, so the last is cuda:{count - 1}"
    if not torch.backends.cuda.is_built():
        return f"the installed torch ({torch.__version__}) is built without CUDA; a GPU needs a build of torch with it"
    return f"torch ({torch.__version__}) finds no GPU; `nvidia-smi` shows those of the machine"
