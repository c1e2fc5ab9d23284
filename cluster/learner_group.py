"""The learner on a cluster: a gang of ranks, one actor each, that do everything together.

    step(groups) ──▶ rank 0: groups 0, R, 2R ...   rank 1: groups 1, R+1 ...   (object references)

Used by GRPO and SFT. If one rank is lost the others cannot go on: every call raises LearnerDiedError,
`watch` too, until `restart` has put a new gang in place. `lock` is held while weights change and while they
are compared with an engine's, so that the two never overlap.
"""

import asyncio
import dataclasses
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

from ray.util.placement_group import remove_placement_group

from alphadrive.checkpoints import bytes_below
from alphadrive.config import Config
from alphadrive.errors import LearnerDiedError, LearnerError, LearnerMovesError, ResourceError
from alphadrive.types import StepResult, WeightsFile, WeightsOffer, WeightsSent, WeightVersion
from cluster.actors import LearnerActor
from cluster.batches import BatchItem, packed
from cluster.gang import Gang, reserve
from cluster.meeting import leave, meeting_point
from cluster.placement import Placement
from cluster.workers import WorkerState, WorkerStatus

T = TypeVar("T")
logger = logging.getLogger(__name__)

RESTART_PLACEMENT_TIMEOUT_S = 600.0
"""Longer than `Placement.placing_s`, for the start: where a node was lost, another one may have to come."""
START_TIMEOUT_S = 600.0
EXPECT_DELAY_S, EXPECT_RANK_S, LONGEST_EXPECT_DELAY_S = 0.02, 0.004, 1.0
"""So that one call tells a rank of many images, and there are no more calls with more ranks."""


class LearnerGroup:
    """All ranks of the learner of `stage` (`grpo` or `sft`). Make one with `start`."""

    def __init__(
        self, stage: str, config: Config, placement: Placement, model_folder: Path, dataset_folder: str
    ) -> None:
        self.version = WeightVersion(0, 0)
        self.lock = asyncio.Lock()
        self.is_up = False
        """Whether there is a gang that takes calls."""
        self._stage, self._config, self._placement = stage, config, placement
        self._model_folder, self._dataset_folder = model_folder, dataset_folder
        self._gang: Gang | None = None
        self._place: Any = None
        """The ranks' placement group, kept while they restart: engines that wait for room would take it."""
        self._nodes: set[str] = set()
        """Where the ranks are, or were."""
        self._leaving_nodes: set[str] = set()
        self._meeting_point = ""
        self._lost: asyncio.Future[LearnerDiedError] = asyncio.get_running_loop().create_future()
        self._expected: list[tuple[int, int]] = []
        self._groups_done = [0] * config.learner.num_ranks
        self._last_step_s: float | None = None

    @classmethod
    async def start(
        cls,
        stage: str,
        config: Config,
        placement: Placement,
        *,
        model_folder: Path,
        dataset_folder: str,
        version: WeightVersion,
        checkpoint: Path | None = None,
        place: Any = None,
    ) -> Self:
        """Place and start all ranks, in `place` if `reserve` gave it; they go on from `checkpoint` if given.
        Each finds `dataset_folder` for itself: it may be an address.

        Raises ResourceError when the gang cannot be placed, LearnerError or what a rank raised.
        """
        group = cls(stage, config, placement, model_folder, dataset_folder)
        group._place = place
        try:
            await group._bring_up(version, checkpoint, placement.placing_s)
        except BaseException:
            group.kill()
            raise
        return group

    async def restart(self, version: WeightVersion, checkpoint: Path | None) -> None:
        """End what is left of the ranks, start new ones that go on from `checkpoint` (the starting model if
        None) as `version`: in the same place, or, where a node is lost or goes away, when there is room.
        Raises LearnerError, or what a rank raised."""
        if self.must_move:
            self.kill()
        self.end()
        self._lost = asyncio.get_running_loop().create_future()
        has_place = self._place is not None
        try:
            try:
                await self._bring_up(version, checkpoint, RESTART_PLACEMENT_TIMEOUT_S)
            except LearnerDiedError:
                if not has_place:
                    raise
                # A node of its place may be gone without Ray's having noticed yet.
                self.kill()
                await self._bring_up(version, checkpoint, RESTART_PLACEMENT_TIMEOUT_S)
        except ResourceError as error:
            raise LearnerError(f"the learner was lost and cannot restart: {error}") from error

    async def watch(self) -> NoReturn:
        """Raises LearnerDiedError once the learner is lost, whether anybody calls it or not."""
        assert self._gang is not None
        death = asyncio.ensure_future(self._gang.watch())
        try:
            await asyncio.wait([death, self._lost], return_when=asyncio.FIRST_COMPLETED)
            if death.done():
                self._lose(_death_of(death))
            # Engines in the middle of an update must not be left there: their sync ends by itself.
            async with self.lock:
                raise self._lost.result()
        finally:
            death.cancel()

    def expect(self, place: int, row: int) -> None:
        """Have the rank that the group at `place` will be dealt to read its query's image, a moment later."""
        if not self._expected:
            delay_s = max(EXPECT_DELAY_S, self._config.learner.num_ranks * EXPECT_RANK_S)
            asyncio.get_running_loop().call_later(min(delay_s, LONGEST_EXPECT_DELAY_S), self._tell_expected)
        self._expected.append((place, row))

    async def step(self, scored: Sequence[BatchItem]) -> StepResult:
        """One optimizer step on scored groups, dealt out to the ranks in turn."""
        self._tell_expected()
        shares = [packed(share) for share in self._dealt(scored)]
        async with self.lock:
            return await self._step("step", [(picks, *batches) for picks, batches in shares], len(scored))

    async def sft_step(self, rows: Sequence[int]) -> StepResult:
        """One optimizer step of SFT on rows of the dataset, dealt out to the ranks in turn."""
        return await self._step("sft_step", [(list(share),) for share in self._dealt(rows)], len(rows))

    def expect_rows(self, rows: Sequence[int]) -> None:
        """Have the ranks read the images of a coming `sft_step`."""
        for rank, share in zip(self._ranks, self._dealt(rows), strict=True):
            rank.expect.remote(list(share))

    async def logprob_differences(self, groups: Sequence[object]) -> list[float]:
        """For every group (reference) the largest difference between its log-probabilities and ours."""
        shares = await self._call("logprob_differences", [tuple(share) for share in self._dealt(groups)])
        return [shares[index % len(shares)][index // len(shares)] for index in range(len(groups))]

    async def export_weights(self, path: Path) -> WeightsFile:
        """Write the weights as they are now to one file."""
        return (await self._call("export_weights", [(path,)] * len(self._ranks)))[0]

    async def offer_weights(self, kind: str, bucket_bytes: int, timeout_s: float) -> WeightsOffer:
        """Get ready to send the weights as they are now to engines."""
        return (await self._call("offer_weights", [(kind, bucket_bytes, timeout_s)] * len(self._ranks)))[0]

    async def send_weights(self, members: Sequence[str], living: Sequence[str]) -> WeightsSent:
        """Send what was offered to the engines `members`; all others that are `living` keep their links."""
        return (await self._call("send_weights", [(members, living)] * len(self._ranks)))[0]

    async def answer(self) -> None:
        """Returns when every rank has answered. Raises LearnerDiedError."""
        await self._call("ping", [()] * len(self._ranks))

    async def save(self, folder: Path) -> None:
        """Write model and optimizer into a folder. As long as that grows, it may take any time."""
        async with self.lock:
            await self._call(
                "save", [(folder,)] * len(self._ranks), measure=lambda: bytes_below(Path(folder))
            )

    def drain_node(self, node_id: str, deadline_s: float | None) -> None:
        """Note that a node goes away: ranks on it move after the next checkpoint, which is due at once."""
        self._leaving_nodes.add(node_id)
        if self.must_move:
            logger.warning("the learner moves after the step under way: node %s goes away", node_id[:8])

    @property
    def must_move(self) -> bool:
        """Whether a rank is on a node that goes away."""
        return not self._nodes.isdisjoint(self._leaving_nodes)

    def checkpointed(self) -> None:
        """A checkpoint was committed: a learner that must move is given up now, to go on elsewhere."""
        if self.must_move:
            self._lose(LearnerMovesError("the learner's node goes away"))

    def end(self) -> None:
        """End all ranks; their place is kept."""
        self.is_up = False
        gang, self._gang = self._gang, None
        if gang is not None:
            gang.end()
        leave(self._meeting_point)

    def kill(self) -> None:
        """End all ranks and give their resources back."""
        self.end()
        place, self._place = self._place, None
        if place is not None:
            remove_placement_group(place)

    def actors(self) -> list[tuple[str, Any]]:
        """Id and actor of every rank; none while there is no gang."""
        ranks = self._gang.ranks if self._gang is not None else []
        return [(f"rank-{rank}", actor) for rank, actor in enumerate(ranks)]

    def workers(self) -> list[WorkerStatus]:
        """The ranks, for `alphadrive status`."""
        if self._lost.done():
            state = WorkerState.DEAD
        else:
            state = WorkerState.SERVING if self.is_up else WorkerState.STARTING
        processes = self._gang.processes if self._gang is not None else []
        return [
            WorkerStatus(
                kind="learner",
                id=f"rank-{rank}",
                pid=processes[rank].pid if processes else None,
                node=processes[rank].node if processes else None,
                state=state,
                weight_version=str(self.version),
                groups_done=num_groups,
                last_progress_s=self._last_step_s,
            )
            for rank, num_groups in enumerate(self._groups_done)
        ]

    def doing(self) -> str:
        """What the learner does, in words."""
        if self._gang is None or not self.is_up:
            return "the learner is not up"
        if self._gang.call_under_way is None:
            return f"the learner waits at version {self.version}"
        method, since_s = self._gang.call_under_way
        return f"the learner is in {method} for {time.monotonic() - since_s:.0f} s"

    def _tell_expected(self) -> None:
        expected, self._expected = self._expected, []
        if self._gang is None:
            return
        rows_of: defaultdict[int, list[int]] = defaultdict(list)
        for place, row in expected:
            rows_of[place % len(self._gang.ranks)].append(row)
        for rank, rows in rows_of.items():
            self._gang.ranks[rank].expect.remote(rows)

    @property
    def _ranks(self) -> list[Any]:
        if self._gang is None:
            raise LearnerDiedError("the learner is not up")
        return self._gang.ranks

    def _dealt(self, items: Sequence[T]) -> list[Sequence[T]]:
        """Every rank's share of the items, dealt out in turn."""
        num_ranks = self._config.learner.num_ranks
        return [items[rank::num_ranks] for rank in range(num_ranks)]

    async def _bring_up(self, version: WeightVersion, checkpoint: Path | None, placement_s: float) -> None:
        num_ranks, resources = self._config.learner.num_ranks, self._placement.rank_resources()
        kept, self._place = self._place, None
        pool = self._placement.learner_pool
        self._place = await reserve(num_ranks, resources, pool, placement_s, kept)
        self._gang = gang = Gang.place(LearnerActor, num_ranks, resources, self._place)
        try:
            await self._join(gang, version.attempt)
            if checkpoint is not None:
                await gang.call("load", [(checkpoint,)] * num_ranks, START_TIMEOUT_S)
        except BaseException:
            self.end()
            raise
        self.version = version
        self.is_up = True

    async def _join(self, gang: Gang, attempt: int) -> None:
        """Have the ranks load the model and find each other."""
        meetings = await gang.meet(START_TIMEOUT_S)
        self._nodes = {meeting.node for meeting in meetings}
        is_one_node = len({meeting.address for meeting in meetings}) == 1
        environment = {"OMP_NUM_THREADS": str(self._placement.threads_per_rank)}
        if is_one_node and not self._placement.gpus_per_rank:
            environment["GLOO_SOCKET_IFNAME"] = "lo"
        self._meeting_point = meeting_point(meetings, Path(self._config.run.root) / self._config.run.name)
        placing = {
            "world_size": len(meetings),
            "meeting_point": self._meeting_point,
            "model_folder": self._model_folder,
            "dataset_folder": self._dataset_folder,
            "attempt": attempt,
        }
        # Ranks write torch's traces into the run's folder, and their working directory need not be ours.
        run = dataclasses.replace(self._config.run, root=os.path.abspath(self._config.run.root))
        config = dataclasses.replace(self._config, run=run)
        arguments = [
            (self._stage, config, placing | {"rank": rank}, environment) for rank in range(len(meetings))
        ]
        await gang.call("start", arguments, START_TIMEOUT_S)

    async def _step(self, method: str, arguments: list[tuple[Any, ...]], num_items: int) -> StepResult:
        results = await self._call(method, arguments)
        versions = {result.weight_version for result in results}
        if len(versions) != 1:
            raise LearnerError(f"the ranks are at different versions after a step: {sorted(versions)}")
        self.version = results[0].weight_version
        self._last_step_s = time.time()
        for rank, share in enumerate(self._dealt(range(num_items))):
            self._groups_done[rank] += len(share)
        return results[0]

    async def _call(
        self,
        method: str,
        arguments: list[tuple[Any, ...]],
        measure: Callable[[], object] = lambda: None,
    ) -> list[Any]:
        if self._lost.done():
            raise self._lost.result()
        if self._gang is None or not self.is_up:
            raise LearnerDiedError("the learner is not up")
        try:
            return await self._gang.call(method, arguments, self._config.learner.hang_timeout_s, measure)
        except LearnerDiedError as error:
            self._lose(error)
            raise

    def _lose(self, error: LearnerDiedError) -> None:
        self.is_up = False
        if not self._lost.done():
            self._lost.set_result(error)


def _death_of(watch: "asyncio.Future[NoReturn]") -> LearnerDiedError:
    error = watch.exception()
    if isinstance(error, LearnerDiedError):
        return error
    raise error or LearnerError("the watch on the learner ended")
