"""The Ray actors: thin shells around an engine, the rewards and a learner rank.

    RolloutActor   one per engine     async; `exchange` gives (receipts, groups); control calls have threads
                                      of their own in the scheduler, so they pass waiting requests
    RewardActor    one per worker     one call at a time; (headers, scored groups); writes rollouts to disk
    LearnerActor   one per rank       one call at a time, all ranks together

Methods that give two values are called with `num_returns=2`: the driver fetches the first, small one and
hands the reference of the second on. Heavy packages are imported in the actors, never by the driver.
"""

import asyncio
import dataclasses
import os
import socket
import threading
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import ray

from alphadrive.config import Config, RewardConfig
from alphadrive.data.fetching import local_folder
from alphadrive.errors import AlphaDriveError, RewardError
from alphadrive.profiling import spans
from alphadrive.profiling.spans import SpanBatch, span
from alphadrive.resources import put_our_packages_first
from alphadrive.secrets import redact
from alphadrive.types import (
    DrivingQuery,
    GroupHeader,
    RolloutGroup,
    ScoredGroup,
    StepResult,
    WeightsFile,
    WeightsOffer,
    WeightsSent,
    WeightsStream,
)
from cluster.batches import Pick, unpacked
from cluster.exchange import Desk, Order, Reply
from cluster.headers import GroupReceipt, header_of, num_tokens, receipt_of

if TYPE_CHECKING:
    from alphadrive.weight_layout import WeightLayout
    from rewards.further import FurtherTerm
    from rollout.engine import RolloutEngine
    from rollout.settings import EngineSettings, Sampling, UpdateReceipt
    from rollout.weight_sender import WeightSender

T = TypeVar("T")

# Here, because a worker imports this module before anything else of ours that a user's folder may hide.
put_our_packages_first()

CONTROL = "control"


def taken_spans(kind: str, source: str, is_on: bool = True) -> SpanBatch | None:
    """What this process has recorded since the last call; from the first one on it records, until one that
    says not to."""
    if is_on:
        spans.begin(kind, source)
    batch = spans.take()
    if not is_on:
        spans.end()
    return batch


def where() -> tuple[int, str]:
    """The id of this process, and the hex id of its Ray node."""
    return os.getpid(), ray.get_runtime_context().get_node_id()


class RolloutActor:
    """One vLLM engine.

    Ray runs each concurrency group in an event loop of its own, and an engine belongs to the loop that
    started it: control calls hand their work over to that loop.
    """

    _engine: "RolloutEngine"
    _loop: asyncio.AbstractEventLoop

    async def start(self, settings: "EngineSettings", engine_id: str) -> int:
        """Start the engine; returns this process's id. Raises as `RolloutEngine.start`."""
        from rollout.engine import RolloutEngine

        self._loop = asyncio.get_running_loop()
        self._engine = await RolloutEngine.start(settings, engine_id)
        return os.getpid()

    async def generate(
        self, ticket: int, query: DrivingQuery, sampling: "Sampling"
    ) -> tuple[GroupReceipt, RolloutGroup]:
        """Draw a group of the training set."""
        name = "generate" if ticket >= 0 else "canary"
        asked_s, started_s = time.time(), time.monotonic()
        with span(name, "groups", ticket=ticket) as drawing:
            group = await self._engine.generate(ticket, query, sampling)
            drawing.note(tokens=num_tokens(group))
        generate_s = time.monotonic() - started_s
        return receipt_of(group), dataclasses.replace(
            group, generate_started_s=asked_s, generate_s=generate_s
        )

    @cached_property
    def _desk(self) -> Desk:
        return Desk(self.generate)

    async def exchange(
        self, orders: Sequence[Order], dropped: Sequence[int]
    ) -> tuple[list[Reply], tuple[RolloutGroup, ...]]:
        """Draw groups of the training set; see `cluster.exchange`."""
        return await self._desk.exchange(orders, dropped)

    async def answer(self, query: DrivingQuery, sampling: "Sampling") -> str:
        """The text of one completion on the evaluation set."""
        with span("evaluate", "groups"):
            group = await self._engine.generate(-1, query, sampling, dataset="eval")
        return group.completions[0].text

    @ray.method(concurrency_group=CONTROL)
    async def take_spans(self, kind: str, source: str, is_on: bool = True) -> SpanBatch | None:
        """What this process has recorded; from the first call on it records, until one says not to."""
        return taken_spans(kind, source, is_on)

    @ray.method(concurrency_group=CONTROL)
    async def where(self) -> tuple[int, str]:
        """The id of this process and of its node, as soon as there is a process."""
        return where()

    @ray.method(concurrency_group=CONTROL)
    async def see_offer(self, stream: WeightsStream) -> None:
        """Answer the roll call before a transfer. Raises as `RolloutEngine.see_offer`."""
        await self._in_engine_loop(self._engine.see_offer(stream))

    @ray.method(concurrency_group=CONTROL)
    async def update_weights(
        self, weights: WeightsFile | WeightsStream, queries: Sequence[DrivingQuery], sampling: "Sampling"
    ) -> "tuple[UpdateReceipt, *tuple[RolloutGroup, ...]]":
        """Swap to new weights and draw a canary group for each query: one receipt, then the groups."""
        update = self._engine.update_and_draw(weights, queries, sampling)
        with span("sync", version=str(weights.version)):
            receipt, groups = await self._in_engine_loop(update)
        return receipt, *groups

    @ray.method(concurrency_group=CONTROL)
    async def health(self) -> int:
        """Tokens drawn since the engine started. Raises EngineDiedError when its process is gone."""
        return await self._in_engine_loop(self._engine.health())

    @ray.method(concurrency_group=CONTROL)
    async def close(self) -> None:
        """Stop the engine and its processes."""
        await self._in_engine_loop(self._engine.close())

    async def _in_engine_loop(self, call: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._loop))


class Scores(NamedTuple):
    """What a reward worker tells of a call: each group's header or why there is none, and the time taken."""

    headers: list[GroupHeader | AlphaDriveError]
    seconds: float


class RewardActor:
    """Scores groups and writes them to disk. The user's functions are looked for in `user_folder`;
    `estimator` is that of `rewards.advantage`."""

    def __init__(
        self,
        config: RewardConfig,
        seed: int,
        rollouts_folder: str,
        worker_id: str,
        user_folder: str,
        estimator: str = "grpo",
    ) -> None:
        from alphadrive.rollout_writer import RolloutWriter
        from rewards.further import load_terms

        self._variant, self._seed, self._timeout_s = config.variant, seed, config.timeout_s
        self._further, self._estimator = load_terms(config, Path(user_folder)), estimator
        self._writer = RolloutWriter(Path(rollouts_folder), worker_id)

    def where(self) -> tuple[int, str]:
        """The id of this process and of its node, once it is up."""
        return where()

    def score(
        self, picks: Sequence[Pick], *batches: Sequence[RolloutGroup]
    ) -> tuple[Scores, tuple[ScoredGroup, ...]]:
        """Score the groups picked from batches (see `cluster.batches`), one after another.

        Returns what became of each, and those that have a header, in the same order. A worker whose reward
        hangs is killed, so what earlier calls have scored is on disk by then; of this call nothing is, as its
        groups will be scored again.
        """
        started_s = time.monotonic()
        rescue = threading.Timer(self._timeout_s / 2, self._writer.flush)
        rescue.start()
        try:
            with span("reward", groups=len(picks)):
                scored = [self._scored(group) for group in unpacked(picks, batches)]
        finally:
            rescue.cancel()
            rescue.join()
        for each in scored:
            if isinstance(each, ScoredGroup):
                self._writer.write(each)
        headers = [header_of(each, None) if isinstance(each, ScoredGroup) else each for each in scored]
        return Scores(headers, time.monotonic() - started_s), tuple(
            each for each in scored if isinstance(each, ScoredGroup)
        )

    def _scored(self, group: RolloutGroup) -> ScoredGroup | AlphaDriveError:
        started_s = time.monotonic()
        try:
            scored = scored_or_error(group, self._variant, self._seed, self._further, self._estimator)
        except AlphaDriveError as error:
            return error
        return dataclasses.replace(scored, score_s=time.monotonic() - started_s)

    def take_spans(self, kind: str, source: str, is_on: bool = True) -> SpanBatch | None:
        """As `RolloutActor.take_spans`."""
        return taken_spans(kind, source, is_on)

    def flush(self) -> None:
        """Write what is not on disk yet."""
        self._writer.flush()

    def close(self) -> None:
        """The same, at the end."""
        self._writer.close()


def scored_or_error(
    group: RolloutGroup, variant: str, seed: int, further: "tuple[FurtherTerm, ...]", estimator: str
) -> ScoredGroup:
    """Score a group; an error of any other kind becomes a RewardError that names the query."""
    from rewards import score_group

    try:
        return score_group(group, variant, seed, further, estimator)
    except AlphaDriveError:
        raise
    except Exception as error:
        raise RewardError(
            redact(f"query {group.query.query_id}: the reward raised {type(error).__name__}: {error}")
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where a rank runs; `node` is Ray's id of its node."""

    address: str
    port: int
    node: str
    pid: int


class LearnerActor:
    """One rank of the learner: `LearnerRank` for GRPO, `SftRank` for SFT."""

    _rank: Any
    _layout: "WeightLayout"
    _sender: "WeightSender | None" = None
    """Rank 0's, once weights were offered."""

    def rendezvous(self) -> Meeting:
        """Where this process runs, with a free port for the ranks to meet at."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        node = ray.get_runtime_context().get_node_id()
        return Meeting(address=ray.util.get_node_ip_address(), port=port, node=node, pid=os.getpid())

    def ping(self) -> None:
        """Answered when the calls before it have ended."""

    def start(self, stage: str, config: Config, placing: dict[str, Any], environment: dict[str, str]) -> None:
        """Load the model and join the other ranks.

        `stage` is `grpo` or `sft`, `placing` the keyword arguments of the rank besides the
        configuration (its `dataset_folder` may be an address), `environment` what must be set before torch
        is imported.
        """
        os.environ.update(environment)
        placing = placing | {"dataset_folder": local_folder(str(placing["dataset_folder"]))}
        if config.profile.enabled:
            spans.begin("learner", f"rank-{placing['rank']}")
        if stage == "grpo":
            from learner.rank import LearnerRank

            self._rank = LearnerRank(config, **placing)
        else:
            from learner.sft import SftRank

            self._rank = SftRank(config, **placing)

    def take_spans(self, kind: str, source: str, is_on: bool = True) -> SpanBatch | None:
        """As `RolloutActor.take_spans`."""
        return taken_spans(kind, source, is_on)

    def expect(self, rows: list[int]) -> None:
        """Start reading the images of rows of the dataset that this rank will train on soon."""
        self._rank.expect(rows)

    def step(self, picks: Sequence[Pick], *batches: Sequence[ScoredGroup]) -> StepResult:
        """One optimizer step on this rank's share: groups picked from batches (see `cluster.batches`)."""
        return self._rank.step(tuple(unpacked(picks, batches)))

    def sft_step(self, rows: list[int]) -> StepResult:
        """One optimizer step of SFT; `rows` are this rank's share."""
        return self._rank.step(rows)

    def logprob_differences(self, *groups: RolloutGroup) -> list[float]:
        """For every group the largest difference between the engine's log-probabilities and ours."""
        with span("canary"):
            return largest_differences(groups, self._rank.score(groups))

    def export_weights(self, path: Path) -> WeightsFile | None:
        """Take part in writing the weights; rank 0 returns what it wrote."""
        with span("export"):
            return self._rank.export_weights(path)

    def offer_weights(self, kind: str, bucket_bytes: int, timeout_s: float) -> WeightsOffer | None:
        """Get ready to send the weights as they are now; rank 0 returns where engines find them."""
        self._layout = self._rank.weight_layout(bucket_bytes)
        if not self._rank.is_first:
            return None
        if self._sender is None:
            from rollout.weight_sender import WeightSender

            self._sender = WeightSender(kind, ray.util.get_node_ip_address(), timeout_s)
        return self._sender.offer(self._layout)

    def send_weights(self, members: Sequence[str], living: Sequence[str]) -> WeightsSent | None:
        """Take part in sending what was offered to the engines `members`, of all that are `living`; rank 0
        returns what it sent, and to whom not."""
        buckets = self._rank.weight_buckets(self._layout)
        if self._sender is not None:
            return self._sender.send(members, living, buckets)
        for _ in buckets:
            pass
        return None

    def save(self, folder: Path) -> None:
        """Write a checkpoint and the model, loadable by itself in `folder/model`."""
        with span("checkpoint"):
            self._rank.save_checkpoint(folder)
            self._rank.save_model(folder / "model")

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        self._rank.load_checkpoint(folder)


def largest_differences(
    groups: tuple[RolloutGroup, ...], policy_logprobs: list[list[list[float]]]
) -> list[float]:
    """For every group the largest |rollout - policy| log-probability of any token."""
    return [
        max(
            abs(drawn - policy)
            for completion, ours in zip(group.completions, of_group, strict=True)
            for drawn, policy in zip(completion.rollout_logprobs, ours, strict=True)
        )
        for group, of_group in zip(groups, policy_logprobs, strict=True)
    ]
