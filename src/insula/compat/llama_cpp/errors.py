"""Our errors in the types that programs written for llama-cpp-python catch.

It raises ValueError for an argument or a model that will not do, RuntimeError for what fails while
it runs, and so do these, which are our own errors besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from insula.errors import (
    DownloadError,
    EngineError,
    InsulaError,
    NotFoundError,
    UnsupportedError,
)

P = ParamSpec("P")
R = TypeVar("R")


class NotHereError(UnsupportedError, ValueError):
    """Well-formed for llama-cpp-python, and nothing that runs here can do it."""


class ModelNotFoundError(NotFoundError, ValueError):
    """The model's file is not there."""


class FailedError(EngineError, RuntimeError):
    """Loading or running failed."""


@contextmanager
def theirs() -> Iterator[None]:
    """Within it, our errors leave as the ones above. A transfer's stays what it is."""
    try:
        yield
    except (ValueError, RuntimeError, DownloadError):
        raise
    except UnsupportedError as error:
        raise NotHereError(str(error), backend=error.backend) from error
    except NotFoundError as error:
        raise ModelNotFoundError(str(error)) from error
    except InsulaError as error:
        raise FailedError(str(error)) from error


def in_their_types(function: Callable[P, R]) -> Callable[P, R]:
    """`theirs` around a function."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with theirs():
            return function(*args, **kwargs)

    return wrapped
