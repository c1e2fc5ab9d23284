"""The learner on a cluster: a gang of ranks, one actor each, that do everything together.

    step(groups) ──▶ rank 0: groups 0, R, 2R ...   rank 1: groups 1, R+1 ...   (object references)

Used by GRPO and SFT. The ranks are placed all or none. If one dies the others cannot go on (they wait for
it in a collective), so the group raises LearnerError and is closed as a whole. `lock` is held while
weights change and while they are compared with an engine's, so that the two never overlap.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from alphadrive.config import Config
from alphadrive.errors import AlphaDriveError, LearnerError, ResourceError
from alphadrive.types import StepResult, WeightsFile, WeightVersion
from cluster.actors import LearnerActor
from cluster.placement import Placement
from cluster.remote import ActorGoneError, fetch, kill

T = TypeVar("T")

PLACEMENT_TIMEOUT_S = 60.0


class LearnerGroup:
    """All ranks of the learner. Make one with `start`."""

    def __init__(self, ranks: list[Any], gang: Any, version: WeightVersion) -> None:
        self.version = version
        self.lock = asyncio.Lock()
        self.pids: list[int] = []
        self._ranks = ranks
        self._gang = gang

    @classmethod
    async def start(
        cls,
        stage: str,
        config: Config,
        placement: Placement,
        *,
        model_folder: Path,
        dataset_folder: Path,
        version: WeightVersion,
        checkpoint: Path | None = None,
    ) -> Self:
        """Place and start all ranks of `stage` (`grpo` or `sft`); they go on from `checkpoint` if given.

        Raises ResourceError when the gang cannot be placed, LearnerError or what a rank raised.
        """
        num_ranks = config.learner.num_ranks
        resources = placement.rank_resources()
        gang = placement_group([resources] * num_ranks, strategy="PACK")
        try:
            await asyncio.wait_for(gang.ready(), PLACEMENT_TIMEOUT_S)
        except TimeoutError:
            remove_placement_group(gang)
            raise ResourceError(
                f"learner.num_ranks={num_ranks} ranks of {resources} could not be placed together in "
                f"{PLACEMENT_TIMEOUT_S:.0f} s; the cluster has {ray.available_resources()} free"
            ) from None
        ranks = [_spawn(gang, rank, resources) for rank in range(num_ranks)]
        group = cls(ranks, gang, version)
        try:
            await group._join(stage, config, placement, model_folder, dataset_folder, version.attempt)
            if checkpoint is not None:
                await group._all("load", [(checkpoint,)] * num_ranks)
        except BaseException:
            group.kill()
            raise
        return group

    def expect(self, place: int, row: int) -> None:
        """Have the rank that the group at `place` will be dealt to read its query's image."""
        self._ranks[place % len(self._ranks)].expect.remote([row])

    async def step(self, scored: Sequence[object]) -> StepResult:
        """One optimizer step on scored groups (references), dealt out to the ranks in turn."""
        async with self.lock:
            return await self._step("step", [tuple(share) for share in self._dealt(scored)])

    async def sft_step(self, rows: Sequence[int]) -> StepResult:
        """One optimizer step of SFT on rows of the dataset, dealt out to the ranks in turn."""
        return await self._step("sft_step", [(list(share),) for share in self._dealt(rows)])

    def expect_rows(self, rows: Sequence[int]) -> None:
        """Have the ranks read the images of a coming `sft_step`."""
        for rank, share in zip(self._ranks, self._dealt(rows), strict=True):
            rank.expect.remote(list(share))

    async def logprob_differences(self, groups: Sequence[object]) -> list[float]:
        """For every group (reference) the largest difference between its log-probabilities and ours."""
        shares = await self._all("logprob_differences", [tuple(share) for share in self._dealt(groups)])
        return [shares[index % len(shares)][index // len(shares)] for index in range(len(groups))]

    async def export_weights(self, path: Path) -> WeightsFile:
        """Write the weights as they are now to one file."""
        return (await self._all("export_weights", [(path,)] * len(self._ranks)))[0]

    async def save(self, folder: Path) -> None:
        """Write model and optimizer into a folder."""
        await self._all("save", [(folder,)] * len(self._ranks))

    def kill(self) -> None:
        """End all ranks and give their resources back."""
        for rank in self._ranks:
            kill(rank)
        remove_placement_group(self._gang)

    def _dealt(self, items: Sequence[T]) -> list[Sequence[T]]:
        """Every rank's share of the items, dealt out in turn."""
        return [items[rank :: len(self._ranks)] for rank in range(len(self._ranks))]

    async def _join(
        self,
        stage: str,
        config: Config,
        placement: Placement,
        model_folder: Path,
        dataset_folder: Path,
        attempt: int,
    ) -> None:
        meetings = await self._all("rendezvous", [()] * len(self._ranks))
        nodes = {address for address, _ in meetings}
        address, port = meetings[0]
        is_one_node = len(nodes) == 1
        environment = {"OMP_NUM_THREADS": str(placement.threads_per_rank)}
        if is_one_node and not placement.gpus_per_rank:
            environment["GLOO_SOCKET_IFNAME"] = "lo"
        arguments = [
            (
                stage,
                config,
                {
                    "rank": rank,
                    "world_size": len(self._ranks),
                    "master_addr": "127.0.0.1" if is_one_node else address,
                    "master_port": port,
                    "model_folder": model_folder,
                    "dataset_folder": dataset_folder,
                    "attempt": attempt,
                },
                environment,
            )
            for rank in range(len(self._ranks))
        ]
        self.pids = await self._all("start", arguments)

    async def _step(self, method: str, arguments: list[tuple[Any, ...]]) -> StepResult:
        results = await self._all(method, arguments)
        versions = {result.weight_version for result in results}
        if len(versions) != 1:
            raise LearnerError(f"the ranks are at different versions after a step: {sorted(versions)}")
        self.version = results[0].weight_version
        return results[0]

    async def _all(self, method: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        """Call a method on all ranks at once. Raises the first failure without waiting for the others."""
        references = [
            getattr(actor, method).remote(*args) for actor, args in zip(self._ranks, arguments, strict=True)
        ]
        calls = [self._checked(rank, method, reference) for rank, reference in enumerate(references)]
        return await asyncio.gather(*calls)

    async def _checked(self, rank: int, method: str, reference: Any) -> Any:
        label = f"learner rank {rank} of {len(self._ranks)}"
        try:
            return await fetch(reference)
        except ActorGoneError as error:
            raise LearnerError(f"{label} died in {method}: {error}") from error
        except AlphaDriveError:
            raise
        except Exception as error:
            raise LearnerError(f"{label} failed in {method}: {type(error).__name__}: {error}") from error


def _spawn(gang: Any, rank: int, resources: dict[str, float]) -> Any:
    strategy = PlacementGroupSchedulingStrategy(placement_group=gang, placement_group_bundle_index=rank)
    return (
        ray.remote(LearnerActor)
        .options(
            num_cpus=resources.get("CPU", 0),
            num_gpus=resources.get("GPU", 0),
            max_restarts=0,
            scheduling_strategy=strategy,
        )
        .remote()
    )
