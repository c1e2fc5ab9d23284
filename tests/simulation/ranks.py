"""Learner ranks without a model: what they hold is the name of the weights, and which groups led to them.

Ranks do everything together, as with torch: a call waits until all ranks are in it. When a rank is gone the
others wait for ever, or find the connection broken and raise.
"""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulation.actors import ActorProcess
from simulation.parts import BASE, LARGE_DIFFERENCE, SMALL_DIFFERENCE, drawn_by

from alphadrive.errors import CheckpointWriteError
from alphadrive.types import RolloutGroup, ScoredGroup, StepResult, WeightsFile, WeightVersion
from cluster.actors import Meeting
from cluster.batches import Pick, unpacked

if TYPE_CHECKING:
    from simulation.world import World

NOTICED_S = (0.01, 3.0)
"""After a rank's death its peers may find their connections broken."""


class Gang:
    """What the ranks of a learner hold together."""

    def __init__(self, world: "World", num_ranks: int, attempt: int) -> None:
        self.num_ranks = num_ranks
        self.weights = BASE
        self.version = WeightVersion(attempt, 0)
        self.trained: tuple[int, ...] = ()
        """The tickets of all groups whose update is in the weights."""
        self._world = world
        self._meetings: dict[int, dict[int, Any]] = {}
        self._met: dict[int, asyncio.Event] = {}
        self.is_broken = False
        """A rank has raised, and is no longer where the others are."""
        world.oracle.gang_begins(self)

    async def meet(self, number: int, rank: int, value: Any) -> list[Any]:
        """A collective: wait until all ranks are here; what they brought, by rank."""
        meeting = self._meetings.setdefault(number, {})
        met = self._met.setdefault(number, asyncio.Event())
        meeting[rank] = value
        if len(meeting) == self.num_ranks:
            met.set()
        await met.wait()
        if len(meeting) < self.num_ranks:
            raise RuntimeError("Connection closed by peer")
        return [meeting[rank] for rank in range(self.num_ranks)]

    def rank_died(self) -> None:
        """Those that wait for a rank which is gone learn of it, some time later."""
        for met in self._met.values():
            met.set()

    def step(self, shares: list[tuple[ScoredGroup, ...]], is_finite: bool) -> StepResult:
        """The update, made once for all ranks; `shares` by rank."""
        groups = [
            share[turn] for turn in range(max(map(len, shares))) for share in shares if turn < len(share)
        ]
        self._world.oracle.before_step(self.version, groups)
        tickets = tuple(scored.group.ticket for scored in groups)
        if is_finite:
            self.trained += tickets
            self.weights = hashlib.sha256(f"{self.weights} {self.version} {tickets}".encode()).hexdigest()[
                :12
            ]
        self.version = WeightVersion(self.version.attempt, self.version.step + 1)
        self._world.oracle.stepped(self.version, self.weights, tickets, is_finite)
        return StepResult(
            step=self.version.step,
            weight_version=self.version,
            metrics={"loss": 0.5},
            problem=None if is_finite else "loss is nan",
            was_updated=is_finite,
        )


class SimulatedRank:
    """Stands for `LearnerActor`."""

    def __init__(self, world: "World", process: ActorProcess) -> None:
        self._world, self._process = world, process
        self._sleep, self._uniform = process.sleep, process.chance.uniform
        self._gang: Gang
        self._rank = 0
        self._num_meetings = 0
        self._expected: list[int] = []

    async def rendezvous(self, fault: str | None) -> Meeting:
        await self._sleep(self._uniform(0.1, 1.0))
        return Meeting(address="10.0.0.1", port=self._world.new_port(), node=self._process.node, pid=1)

    async def ping(self, fault: str | None) -> None:
        pass

    async def start(self, fault: str | None, stage: str, config: Any, placing: Any, environment: Any) -> int:
        await self._fail(fault)
        await self._sleep(self._uniform(0.5, 8.0))
        self._rank = placing["rank"]
        self._gang = self._world.gang(placing["meeting_point"], placing["world_size"], placing["attempt"])
        self._process.on_death.append(self._peers_may_notice)
        return 1

    def _peers_may_notice(self) -> None:
        if self._process.chance.random() < 0.5:
            asyncio.get_running_loop().call_later(self._uniform(*NOTICED_S), self._gang.rank_died)

    async def expect(self, fault: str | None, rows: list[int]) -> None:
        self._expected += rows

    async def step(
        self, fault: str | None, picks: Sequence[Pick], *batches: Sequence[ScoredGroup]
    ) -> StepResult:
        groups = unpacked(picks, batches)
        rows = [scored.group.query.row for scored in groups]
        told, self._expected = self._expected[: len(rows)], self._expected[len(rows) :]
        self._world.oracle.check(told == rows, f"I6 {self._process} was told to expect {told}, gets {rows}")
        await self._sleep(self._uniform(0.1, 3.0))
        await self._fail(fault)
        is_finite = fault != "step is not finite"
        if any(row in self._world.overflowing_rows for row in rows):
            self._world.faults.strike("query whose step is not finite")
            is_finite = False
        met = await self._meet("step", (groups, is_finite))
        result = self._world.once(
            (self._gang, self._num_meetings),
            lambda: self._gang.step([share for share, _ in met], all(is_finite for _, is_finite in met)),
        )
        if fault == "learner rank dies after its step":
            await self._process.crash(fault)
        await self._sleep(self._uniform(0.0, 0.1))
        return result

    async def logprob_differences(self, fault: str | None, *groups: RolloutGroup) -> list[float]:
        weights = self._gang.weights
        await self._sleep(self._uniform(0.02, 0.3))
        await self._fail(fault)
        return [self._difference(group, weights) for group in groups]

    async def export_weights(self, fault: str | None, path: Path) -> WeightsFile | None:
        await self._sleep(self._uniform(0.01, 0.2))
        if fault == "learner rank dies exporting" and self._rank == 0:
            path.write_text("{")
        await self._fail(fault)
        await self._meet("export_weights", None)
        if self._rank != 0:
            return None
        gang = self._gang
        path.write_text(json.dumps({"weights": gang.weights}))
        return WeightsFile(path=str(path), version=gang.version, sha256=gang.weights, num_bytes=1)

    async def save(self, fault: str | None, folder: Path) -> None:
        gang = self._gang
        await self._meet("save", None)
        await self._sleep(self._uniform(0.05, 1.0))
        await self._fail(fault)
        nonce = self._world.once((gang, self._num_meetings), lambda: self._world.oracle.saving(gang))
        problem = ""
        try:
            if self._rank == 0:
                (folder / "model").mkdir()
                (folder / "model" / "weights.json").write_text(json.dumps({"weights": gang.weights}))
            (folder / f"rank_{self._rank}.json").write_text(json.dumps({"nonce": nonce}))
        except OSError as error:
            problem = str(error)
        if any(problems := await self._meet("save ended", problem)):
            raise CheckpointWriteError(problem or f"another rank could not write its share: {problems}")

    async def load(self, fault: str | None, folder: Path) -> None:
        await self._sleep(self._uniform(0.1, 1.0))
        await self._fail(fault)
        mine = json.loads((folder / f"rank_{self._rank}.json").read_text())["nonce"]
        nonces = await self._meet("load", mine)
        gang = self._gang
        self._world.once((gang, self._num_meetings), lambda: self._world.oracle.loading(gang, folder, nonces))

    async def _meet(self, what: str, value: Any) -> list[Any]:
        self._num_meetings += 1
        met = await self._gang.meet(self._num_meetings, self._rank, (what, value))
        await self._process.sleep(0.0)
        if {name for name, _ in met} != {what}:
            if self._gang.is_broken:
                raise RuntimeError("Connection closed by peer")
            self._world.oracle.violation(f"the ranks were called differently: {[name for name, _ in met]}")
        return [brought for _, brought in met]

    async def _fail(self, fault: str | None) -> None:
        if fault in ("learner rank dies", "learner rank dies exporting"):
            await self._process.crash(fault)
        if fault == "learner rank hangs":
            self._process.freeze()
            await self._sleep(0.0)
        if fault == "learner rank raises":
            self._gang.is_broken = True
            raise ValueError("a bad batch")

    def _difference(self, group: RolloutGroup, weights: str) -> float:
        """Damaged weights ("~") are so little off that a canary cannot see it; the digest does."""
        process, drawn = drawn_by(group)
        if any(name.rstrip("~") != weights for name in drawn):
            return LARGE_DIFFERENCE
        for name in drawn:
            self._world.oracle.proved(process, name)
        return SMALL_DIFFERENCE
