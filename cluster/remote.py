"""Waiting for Ray without its exceptions leaking out: errors come back as they were raised.

The only module that knows how Ray wraps errors. Used by the pools, the learner group and weight sync.
"""

import asyncio
from typing import Any

import ray
from ray.exceptions import (
    ActorPlacementGroupRemoved,
    ActorUnschedulableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)

from alphadrive.errors import AlphaDriveError

DEATHS = (
    RayActorError,
    OutOfMemoryError,
    NodeDiedError,
    LocalRayletDiedError,
    ActorUnschedulableError,
    ActorPlacementGroupRemoved,
)
"""How Ray tells that an actor is gone; only the first of them is a RayActorError. The second is of its memory
monitor, which kills workers when a node has no more."""


class ActorGoneError(AlphaDriveError):
    """The process of an actor is gone (crashed, killed, out of memory, or its node lost)."""


class ObjectGoneError(AlphaDriveError):
    """A value that a call was given, or gave, is gone with the node that held it."""


async def fetch(reference: Any, timeout_s: float | None = None) -> Any:
    """The value behind an object reference.

    Raises what the actor raised, ActorGoneError when its process is gone, ObjectGoneError, TimeoutError.
    """
    try:
        return await asyncio.wait_for(reference, timeout_s)
    except ObjectLostError as error:
        raise ObjectGoneError(_reason(error)) from error
    except RayTaskError as error:
        if isinstance(error.cause, ObjectLostError):
            raise ObjectGoneError(_reason(error.cause)) from error
        if isinstance(error.cause, Exception):
            raise error.cause from error
        raise
    except DEATHS as error:
        raise ActorGoneError(_reason(error)) from error


async def fetch_or_cancel(reference: Any, timeout_s: float) -> Any:
    """The same, and the call is cancelled in the actor when nobody waits for it any more."""
    try:
        return await fetch(reference, timeout_s)
    except (TimeoutError, asyncio.CancelledError):
        ray.cancel(reference)
        raise


def forget(*references: Any) -> None:
    """Ask nothing more of values that come with one whose error was taken care of: Ray puts errors that
    nobody looks at into the user's log, with all their stacks."""
    for reference in references:
        value = asyncio.ensure_future(reference)
        value.add_done_callback(lambda done: done.cancelled() or done.exception())


def kill(actor: Any) -> None:
    """End an actor's process; fine if it is gone already."""
    ray.kill(actor, no_restart=True)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:400] or type(error).__name__
