"""The one door to a live run: a named actor that holds what is wished of the run and what the run last told.

    alphadrive status|scale|stop ──▶ RunControl ◀──push(status) → wishes, every second── the driver

It decides nothing and knows no worker: the driver acts on the wishes (`cluster.control_room`), commands come
through `cluster.run_client`. It ends with the driver, so a name that is found is a run that is alive.
"""

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from alphadrive.resources import put_our_packages_first

# Here, because a worker imports this module before anything else of ours that a user's folder may hide.
put_our_packages_first()

_REPLY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the outside wants of a run. A count of None: nothing was said about it."""

    rollout_workers: int | None = None
    reward_workers: int | None = None
    is_stop: bool = False


class RunControl:
    """An asynchronous actor; nothing in it takes long."""

    def __init__(self, wishes: Wishes) -> None:
        self._wishes = wishes
        self._status: dict[str, Any] = {}
        self._ended = asyncio.Event()
        self._num_waiting = 0

    async def push(self, status: Mapping[str, Any]) -> Wishes:
        """Take the driver's newest status; returns what is wished."""
        self._status = dict(status)
        return self._wishes

    async def status(self) -> dict[str, Any]:
        """The newest status; empty until the driver has told one."""
        return self._status

    async def scale(self, rollout_workers: int | None, reward_workers: int | None) -> None:
        """Wish for so many workers; None leaves a count as it is wished."""
        if rollout_workers is not None:
            self._wishes = replace(self._wishes, rollout_workers=rollout_workers)
        if reward_workers is not None:
            self._wishes = replace(self._wishes, reward_workers=reward_workers)

    async def stop(self) -> None:
        """Wish for an end with a checkpoint."""
        self._wishes = replace(self._wishes, is_stop=True)

    async def end(self, status: Mapping[str, Any]) -> None:
        """Take the driver's last status, and give those that wait for it time to hear of it."""
        self._status = dict(status)
        self._ended.set()
        if self._num_waiting:
            await asyncio.sleep(_REPLY_S)

    async def ended(self) -> dict[str, Any]:
        """Wait for the end of the run; returns the last status."""
        self._num_waiting += 1
        await self._ended.wait()
        return self._status


def new_actor_name(run: str) -> str:
    """A name for the control actor of a run, never used before: that of an attempt whose driver was lost
    may still be taken."""
    return f"{_prefix(run)}{uuid.uuid4().hex[:8]}"


def is_actor_of(name: str, run: str) -> bool:
    """Whether an actor of this name is the control of a run of that name."""
    return name.startswith(_prefix(run))


def _prefix(run: str) -> str:
    return f"run-control:{run}:"
