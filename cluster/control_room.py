"""The driver's side of the run's door: tells the control actor how the run is, and does what is wished.

    every second   status ──push──▶ RunControl ──wishes──▶ stop, `cluster.scaling`

Runs in the driver's event loop, beside the stage, from before its first worker to after its last
checkpoint. What goes wrong here leaves the run alone: it trains on without its door.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray._private.worker import get_dashboard_url
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from alphadrive.config import AutoscaleConfig
from alphadrive.pools import pool_text
from cluster.cluster_file import ClusterFile, this_process
from cluster.control import RunControl, Wishes, new_actor_name
from cluster.live_metrics import LiveMetrics, is_wanted
from cluster.remote import ActorGoneError, fetch, kill
from cluster.resource_demand import num_waiting
from cluster.scaling import Scaling
from cluster.status import ENDED
from cluster.watched import ElasticPool, as_fields, num_placing, pending_of

if TYPE_CHECKING:
    from cluster.launch import Attempt

logger = logging.getLogger(__name__)

PUSH_EVERY_S = 1.0
FILE_EVERY_S = 5.0
REPLY_TIMEOUT_S = 10.0
END_TIMEOUT_S = 3.0
RESPAWN_EVERY_S = 30.0


@asynccontextmanager
async def control_room(attempt: "Attempt") -> AsyncIterator[None]:
    """Keep the door of an attempt open for the length of the block. Ray must be up."""
    room = ControlRoom(attempt)
    room.open()
    serving = asyncio.create_task(room.serve())
    try:
        yield
    except BaseException as error:
        room.note_failure(error)
        raise
    finally:
        serving.cancel()
        await asyncio.wait([serving])
        await room.close()


class ControlRoom:
    """See the module. One for each attempt."""

    def __init__(self, attempt: "Attempt") -> None:
        self._attempt = attempt
        self._status = attempt.status
        is_grpo = self._status.fields["stage"] == "grpo"
        bounds = attempt.config.rollout.autoscale if is_grpo else AutoscaleConfig()
        self._scaling = Scaling(attempt.watched, bounds)
        self._wishes = Wishes()
        self._control: Any = None
        self._spawned_s = 0.0
        self._has_answered = False
        self._file: ClusterFile | None = None
        self._live: LiveMetrics | None = None
        self._failures: set[type[Exception]] = set()
        """Kinds that were told of."""

    def open(self) -> None:
        """Start the control actor, without waiting for it, and write down where it is."""
        checkpoint = self._attempt.checkpoint
        self._status.note(
            weight_version=str(self._attempt.version),
            checkpoint_step=checkpoint.step if checkpoint is not None else None,
        )
        self._spawn()
        if is_wanted(self._attempt.config):
            self._live = LiveMetrics(self._attempt.run.config.run.name)
            self._attempt.run.add_tracker(self._live)

    async def serve(self) -> None:
        """Push the status and carry out wishes and decisions, until cancelled."""
        while True:
            try:
                await self._tick()
            except Exception as error:  # Ray's client raises bare errors while its head node is away
                if type(error) not in self._failures:
                    self._failures.add(type(error))
                    logger.exception("the control room failed; it is tried again every second")
            await asyncio.sleep(PUSH_EVERY_S)

    def note_failure(self, error: BaseException) -> None:
        """Remember for the last status how the attempt ended."""
        if not self._attempt.stop.was_asked:
            self._status.note(status="failed", reason=f"{type(error).__name__}: {error}")

    async def close(self) -> None:
        """Tell the last status and mark `cluster.json`."""
        if self._attempt.stop.was_asked and self._status.state not in ENDED:
            self._status.note(status="interrupted", reason=self._attempt.stop.reason)
        self._status.note(workers=[], pending=[], buffer=None)
        try:
            await fetch(self._control.end.remote(self._status.fields), END_TIMEOUT_S)
        except (ActorGoneError, TimeoutError, RayError) as error:
            logger.debug("the control actor was not told of the end: %s", error)
        assert self._file is not None
        self._write_file(self._file.as_ended())

    async def _tick(self) -> None:
        await self._look()
        try:
            pushed = self._control.push.remote(self._status.fields)
            self._wishes = await fetch(pushed, REPLY_TIMEOUT_S)
            self._has_answered = True
        except TimeoutError:
            level = logging.WARNING if self._has_answered else logging.DEBUG
            logger.log(level, "the control actor did not answer in %.0f s", REPLY_TIMEOUT_S)
        except ActorGoneError as error:
            if time.monotonic() - self._spawned_s > RESPAWN_EVERY_S:
                logger.warning("the control actor is gone and started again: %s", error)
                kill(self._control)
                self._spawn()
        stop = self._attempt.stop
        if self._wishes.is_stop and not stop.was_asked:
            stop.ask("stopped by `alphadrive stop`")
        if not stop.was_asked:
            self._scaling.act(self._wishes, self._status.fields, time.monotonic())

    async def _look(self) -> None:
        """Bring the status up to date; the file follows every few seconds."""
        watched = self._attempt.watched
        workers = watched.workers()
        changes: dict[str, Any] = {"workers": as_fields(workers), "autoscale": self._scaling.as_fields()}
        if (buffer := watched.buffer) is not None:
            figures = {"slots": buffer.num_slots, "held": buffer.num_held, "ready": buffer.num_ready}
            changes["buffer"] = figures
        if isinstance(watched.rollouts, ElasticPool) and isinstance(watched.rewards, ElasticPool):
            wanted = {"rollout": watched.rollouts.num_wanted, "reward": watched.rewards.num_wanted}
            placement = self._attempt.placement
            assert placement is not None
            needs = placement.engine_resources()
            is_placing = num_placing(workers, "rollout") > 0
            waiting = await asyncio.to_thread(num_waiting, needs) if is_placing else 0
            pending = pending_of(workers, wanted, {"rollout": waiting})
            for entry in pending:
                if entry["what"] == "waiting":
                    entry["needs"] = needs
                    if placement.rollout_pool:
                        entry["pool"] = pool_text(placement.rollout_pool)
            changes |= {"wanted": wanted, "pending": pending}
        self._status.note(**changes)
        if self._live is not None:
            self._live.look(self._status.fields)
        if self._status.file_age_s > FILE_EVERY_S:
            try:
                self._status.write()
            except OSError as error:
                logger.warning("status.json cannot be written: %s", error)

    def _write_file(self, file: ClusterFile) -> None:
        try:
            file.write(self._attempt.run.path)
        except OSError as error:
            logger.warning("cluster.json cannot be written: %s", error)

    def _spawn(self) -> None:
        """Start a control actor on this node: with the driver, not on one that may be taken away."""
        run, context = self._attempt.run, ray.get_runtime_context()
        name = new_actor_name(run.config.run.name)
        with_the_driver = NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False)
        actor_class = ray.remote(RunControl).options(
            name=name, num_cpus=0, max_restarts=0, scheduling_strategy=with_the_driver
        )
        self._control = actor_class.remote(self._wishes)
        self._spawned_s = time.monotonic()
        dashboard = get_dashboard_url()
        self._file = ClusterFile(
            run=run.config.run.name,
            address=context.gcs_address,
            namespace=context.namespace,
            actor=name,
            job_id=context.get_job_id(),
            dashboard=f"http://{dashboard}" if dashboard else None,
            auth_mode=os.environ.get("RAY_AUTH_MODE", ""),
            started_s=round(time.time(), 3),
            **this_process(),
        )
        self._write_file(self._file)
