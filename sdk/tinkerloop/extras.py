"""The error for a package that is not installed, with the extra that brings it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tinkerloop.errors import MissingPackageError


@contextmanager
def needs_extra(extra: str, purpose: str) -> Iterator[None]:
    """Turn the error of an import in the `with` block into one that names the extra to install.

    Args:
        extra: the extra of `tinkerloop-sdk` that has the package, such as "local".
        purpose: what needs the package, at the start of the message, such as "the embedded engine".

    Raises:
        MissingPackageError: a package that is imported in the block is not installed, or is too old for it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if isinstance(error, MissingPackageError) or (error.name or "tinkerloop").partition(".")[0] == "tinkerloop":
            raise
        package, _, submodule = (error.name or "").partition(".")
        if submodule and sys.modules.get(package) is not None:  # the package itself was found
            raise MissingPackageError(
                f"{purpose} needs the module {error.name}, which the installed version of {package} does not have: "
                f"pip install --upgrade {package} 'tinkerloop-sdk[{extra}]'",
                name=error.name,
            ) from error
        raise MissingPackageError(
            f"{purpose} needs the package {error.name}, which is not installed: pip install 'tinkerloop-sdk[{extra}]'",
            name=error.name,
        ) from error
