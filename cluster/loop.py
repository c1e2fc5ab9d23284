"""The whole of GRPO training on one screen.

    _roll_out, one task per slot                    _train, one task
    ────────────────────────────                    ────────────────
    waits for a free slot (a ticket)                waits for the oldest tickets' groups, in order
    takes the next query                            checks their policy lag
    generate ─▶ score                               learner.step ─▶ sync.publish
    puts the group, or voids the ticket             releases the slots: new groups may start

A failure in any task cancels all. The collaborators are Protocols, so that tests, the simulation and
`alphadrive debug` run this file; `cluster.launch` plugs in Ray. No Ray, torch or vLLM here.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from alphadrive.errors import (
    EngineDiedError,
    GroupLostError,
    NonFiniteError,
    PolicyLagError,
    RewardError,
    RewardWorkerDiedError,
    RolloutError,
)
from alphadrive.types import DrivingQuery, GroupHeader, StepResult, WeightVersion
from cluster.buffer import SlotBuffer

logger = logging.getLogger(__name__)


class Outcome(StrEnum):
    """How a query ended. Every query of an epoch ends exactly once."""

    TRAINED = "trained"
    SKIPPED = "skipped"
    DEAD_LETTERED = "dead_lettered"


class Queries(Protocol):
    """The order of the queries and the ledger of how each ended."""

    @property
    def has_no_signal(self) -> bool:
        """Whether a whole epoch has ended without one group whose rewards differ."""

    def take(self, ticket: int) -> DrivingQuery | None:
        """The next query, from now on known by `ticket`; None when there are no more."""

    def settle(
        self, ticket: int, outcome: Outcome, *, has_signal: bool = False, error: Exception | None = None
    ) -> None:
        """Enter how the query ended. Raises DeadLetterError above the configured share."""

    def give_back(self, ticket: int, error: Exception) -> None:
        """The step on this query's group was not applied: it is to be asked once more, under another ticket,
        or, if it was before, dead-lettered. Raises as `settle`."""


class Rollouts(Protocol):
    """Draws groups; retries and replaces engines by itself."""

    async def generate(self, ticket: int, query: DrivingQuery) -> object:
        """A reference to a RolloutGroup. Raises RolloutError when this query is given up, its
        subclass EngineDiedError when no engine can be had any more."""


class Rewards(Protocol):
    """Scores groups; retries and replaces workers by itself."""

    async def score(self, group: object) -> GroupHeader:
        """Score the group behind a reference. Raises RewardError when this group is given up, its
        subclass RewardWorkerDiedError when no worker can be had any more, GroupLostError when the group
        itself is gone."""


class Learner(Protocol):
    """The policy being trained."""

    @property
    def version(self) -> WeightVersion:
        """The version of the policy as it is now."""

    def expect(self, place: int, row: int) -> None:
        """The group at this place in the order of training (from 0) has a query of this dataset row: its
        image may be read now."""

    async def step(self, scored: Sequence[object]) -> StepResult:
        """One optimizer step on the groups behind the references."""


class Sync(Protocol):
    """Brings weights to the engines and proves that they arrived."""

    async def publish(self, version: WeightVersion) -> None:
        """Return when every engine in service holds `version`. Raises WeightSyncError."""


class Recorder(Protocol):
    """What a run writes and shows."""

    def scored(self, header: GroupHeader) -> None:
        """A group was scored (it may yet be skipped)."""

    def stepped(self, result: StepResult, headers: Sequence[GroupHeader], lags: Sequence[int]) -> None:
        """A step was made on these groups, each as many versions old as `lags` says. Raises NonFiniteError
        when too many in a row had a `problem`."""

    async def evaluate(self, step: int) -> None:
        """Evaluate the policy that the engines hold."""

    @property
    def wants_checkpoint(self) -> bool:
        """Whether one is due after this step, whatever the schedule says."""

    async def checkpoint(self, step: int) -> None:
        """Write a checkpoint of the learner and the ledger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The collaborators of one run."""

    queries: Queries
    rollouts: Rollouts
    rewards: Rewards
    learner: Learner
    sync: Sync
    recorder: Recorder
    buffer: SlotBuffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When what happens. `steps` is the last step, `first_step` the first of this attempt; steps
    count from 1. `every` values of 0 mean never."""

    steps: int
    first_step: int = 1
    groups_per_step: int
    sync_every: int = 1
    max_policy_lag: int
    skips_flat_groups: bool
    eval_every: int = 0
    checkpoint_every: int = 0

    @property
    def lag_bound(self) -> int:
        """The most versions a trained group may be behind the policy that trains on it."""
        return self.max_policy_lag + self.sync_every - 1


async def run(parts: Parts, schedule: Schedule) -> None:
    """Train until the last step, the end of the queries, an epoch without signal, or `buffer.stop`.

    The weights reached are then published. Raises the first error of any task, all others cancelled.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            slots = [tasks.create_task(_roll_out(parts, schedule)) for _ in range(parts.buffer.num_slots)]
            await _train(parts, schedule)
            for slot in slots:
                slot.cancel()
    except BaseExceptionGroup as failures:
        raise _first_cause(failures) from None


async def _roll_out(parts: Parts, schedule: Schedule) -> None:
    buffer, queries = parts.buffer, parts.queries
    while (ticket := await buffer.acquire()) is not None:
        query = queries.take(ticket)
        if query is None:
            buffer.void(ticket)
            buffer.close()
            return
        try:
            header = await _drawn_and_scored(parts, ticket, query)
        except (EngineDiedError, RewardWorkerDiedError):
            raise
        except (RolloutError, RewardError) as error:
            queries.settle(ticket, Outcome.DEAD_LETTERED, error=error)
            buffer.void(ticket)
        else:
            parts.recorder.scored(header)
            if header.has_signal or not schedule.skips_flat_groups:
                buffer.put(header)
            else:
                queries.settle(ticket, Outcome.SKIPPED)
                buffer.void(ticket)
        for place, settled in buffer.settled():
            parts.learner.expect(place, settled.row)
        if queries.has_no_signal:
            buffer.close()


async def _drawn_and_scored(parts: Parts, ticket: int, query: DrivingQuery) -> GroupHeader:
    """A scored group; drawn again, with its ticket, when it was lost with the node that held it."""
    while True:
        group = await parts.rollouts.generate(ticket, query)
        try:
            return await parts.rewards.score(group)
        except GroupLostError as error:
            logger.warning("ticket %d is drawn again: %s", ticket, error)


async def _train(parts: Parts, schedule: Schedule) -> None:
    learner, buffer, recorder = parts.learner, parts.buffer, parts.recorder
    published = learner.version
    for step in range(schedule.first_step, schedule.steps + 1):
        headers = await buffer.take(schedule.groups_per_step)
        if not headers:
            break
        lags = _checked_lags(headers, learner.version, schedule.lag_bound)
        result = await learner.step([header.scored for header in headers])
        is_eval_due = _is_due(step, schedule.eval_every)
        if step % schedule.sync_every == 0 or step == schedule.steps or is_eval_due:
            await parts.sync.publish(result.weight_version)
            published = result.weight_version
        for header in headers:
            if result.was_updated:
                parts.queries.settle(header.ticket, Outcome.TRAINED, has_signal=header.has_signal)
            else:
                parts.queries.give_back(header.ticket, NonFiniteError(f"step {step}: {result.problem}"))
        buffer.release(headers)
        recorder.stepped(result, headers, lags)
        if is_eval_due:
            await recorder.evaluate(step)
        # The last step's is written at the end of the run, after its evaluation: once it is there, a run that
        # was killed is taken for finished.
        is_checkpoint_due = _is_due(step, schedule.checkpoint_every) or recorder.wants_checkpoint
        if is_checkpoint_due and step < schedule.steps:
            await recorder.checkpoint(step)
        if parts.queries.has_no_signal:
            buffer.close()
    buffer.close()
    if published != learner.version:
        await parts.sync.publish(learner.version)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _checked_lags(headers: Sequence[GroupHeader], policy: WeightVersion, bound: int) -> list[int]:
    """The policy lag of every group. Raises PolicyLagError for one that may not be trained."""
    for header in headers:
        drawn = header.weight_version
        if drawn.attempt != policy.attempt or policy.step - drawn.step > bound:
            raise PolicyLagError(
                f"ticket {header.ticket} ({header.query_id}) was drawn under version {drawn}, the policy is "
                f"{policy}: expected the same attempt and at most {bound} steps between them "
                "(grpo.max_policy_lag + grpo.sync_every - 1)"
            )
    return [policy.step - header.weight_version.step for header in headers]


def _first_cause(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    first = failures.exceptions[0]
    return _first_cause(first) if isinstance(first, BaseExceptionGroup) else first
