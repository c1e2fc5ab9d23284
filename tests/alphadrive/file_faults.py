"""Faults of the file system: the n-th operation that changes it, or opens a file, ends in an exception."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

OPERATIONS = (
    (os, "mkdir"),
    (os, "rename"),
    (os, "replace"),
    (os, "unlink"),
    (os, "rmdir"),
    (os, "symlink"),
    (os, "chmod"),
    (os, "fchmod"),
    (os, "fsync"),
    (os, "open"),
    (io, "open"),
)


class Killed(BaseException):
    """Stands for the process ending at this very call."""


class Fault:
    """`was_hit` says whether the operation was reached."""

    was_hit = False


@contextmanager
def fault_at(
    number: int, fault: Callable[[], BaseException] = Killed, lasts: bool = False
) -> Iterator[Fault]:
    """The `number`-th operation from 0 raises, before it does anything; all after it, too, if it `lasts`."""
    left, state = number, Fault()
    originals = [(owner, name, getattr(owner, name)) for owner, name in OPERATIONS]

    def guarded(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == -1 or (lasts and left < 0):
                state.was_hit = True
                raise fault()
            return original(*args, **kwargs)

        return call

    for owner, name, original in originals:
        setattr(owner, name, guarded(original))
    try:
        yield state
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
