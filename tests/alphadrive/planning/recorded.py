"""A run in virtual time: the shipped loop, buffer, ledger, recorder and rollout writer; parts of known speed.

An engine is simulated token by token, which is slow and plain. What it leaves is a run's folder.
"""

import asyncio
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

from alphadrive import metric_names as names
from alphadrive.config import Config, default_config
from alphadrive.rollout_writer import RolloutWriter
from alphadrive.run_folder import RunFolder
from alphadrive.types import (
    Completion,
    DrivingQuery,
    RewardBreakdown,
    RolloutGroup,
    ScoredGroup,
    StepResult,
    VersionSpan,
    WeightVersion,
)
from cluster.buffer import SlotBuffer
from cluster.grpo import make_schedule
from cluster.headers import header_of
from cluster.loop import Parts, run
from cluster.progress import RunProgress
from cluster.queries import QueryLedger
from cluster.recorder import GrpoRecorder
from cluster.status import RunStatus
from cluster.virtual_time import run_virtual

EPOCH_S = 1_700_000_000.0


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """What the parts cost. A step of an engine with n sequences takes `token_s + n * sequence_token_s`."""

    token_s: float = 0.02
    sequence_token_s: float = 0.002
    prompt_tokens: int = 10
    lengths: tuple[int, int] = (20, 60)
    score_s: float = 0.01
    step_s: float = 0.3
    learner_token_s: float = 2e-4
    export_s: float = 0.1
    engine_update_s: float = 0.2
    paused_s: float = 0.15
    canary_s: float = 0.05
    flat_share: float = 0.0


def config_of(folder: Path, **keys: object) -> Config:
    values = {
        "data.train": folder,
        "run.root": folder,
        "run.tensorboard": "false",
        "grpo.steps": 30,
        "grpo.group_size": 4,
        "grpo.groups_per_step": 4,
        "rollout.max_num_seqs": 16,
    } | {key.replace("__", "."): value for key, value in keys.items()}
    return default_config([f"{key}={value}" for key, value in values.items()])


@dataclass
class Engine:
    """Draws up to `seats` sequences at once, a token of each in every step."""

    name: str
    seats: int
    speeds: Speeds
    num_under_way: int = 0
    version: WeightVersion = field(default_factory=lambda: WeightVersion(0, 0))
    running: list = field(default_factory=list)
    queue: list = field(default_factory=list)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    paused_until_s: float = 0.0

    async def run(self):
        loop = asyncio.get_running_loop()
        while True:
            while self.queue and len(self.running) < self.seats:
                self.running.append([*self.queue.pop(0), self.version])
            if not self.running:
                self.wake.clear()
                await self.wake.wait()
                continue
            await asyncio.sleep(max(0.0, self.paused_until_s - loop.time()))
            await asyncio.sleep(self.speeds.token_s + len(self.running) * self.speeds.sequence_token_s)
            for sequence in self.running:
                sequence[0] -= 1
            for _, ended, version in [each for each in self.running if each[0] <= 0]:
                ended.set_result(version)
            self.running = [each for each in self.running if each[0] > 0]

    async def draw(self, lengths):
        loop = asyncio.get_running_loop()
        ends = [loop.create_future() for _ in lengths]
        self.queue += [
            (length + self.speeds.prompt_tokens, end) for length, end in zip(lengths, ends, strict=True)
        ]
        self.wake.set()
        return min(await asyncio.gather(*ends))


class World:
    """Engines, rewards, learner and weight sync of known speed, behind the loop's protocols."""

    def __init__(self, config: Config, speeds: Speeds, writer: RolloutWriter, seed: int) -> None:
        self.config, self.speeds, self.writer = config, speeds, writer
        self.random = random.Random(seed)
        self.version = WeightVersion(0, 0)
        seats = config.rollout.max_num_seqs
        self.engines = [Engine(f"engine-{n}", seats, speeds) for n in range(config.rollout.num_workers)]
        for engine in self.engines:
            engine.settled.set()
        self.seconds, self.canary_differences, self.paused_seconds = [0.0], [0.0], [0.0]
        self.latest = {}
        self.open = asyncio.Event()
        self.open.set()

    async def generate(self, ticket, query):
        await self.open.wait()
        engine = min(self.engines, key=lambda each: each.num_under_way)
        lengths = [self.random.randint(*self.speeds.lengths) for _ in range(self.config.grpo.group_size)]
        started_s = asyncio.get_running_loop().time()
        engine.num_under_way += 1
        version = await engine.draw(lengths)
        generate_s = asyncio.get_running_loop().time() - started_s
        engine.num_under_way -= 1
        await engine.settled.wait()
        completions = tuple(
            Completion(
                text="x",
                token_ids=(1,) * length,
                rollout_logprobs=(-1.0,) * length,
                finish_reason="stop",
                weight_versions=(VersionSpan(version=version, start=0, end=length),),
            )
            for length in lengths
        )
        return RolloutGroup(
            ticket=ticket,
            query=query,
            prompt_token_ids=(1,) * 100,
            completions=completions,
            engine_id=engine.name,
            generate_started_s=EPOCH_S + started_s,
            generate_s=generate_s,
        )

    async def score(self, group):
        await asyncio.sleep(self.speeds.score_s)
        is_flat = self.random.random() < self.speeds.flat_share
        totals = [0.0 if is_flat else float(n) for n in range(len(group.completions))]
        rewards = tuple(RewardBreakdown(terms={"speed": total}, total=total) for total in totals)
        scored = ScoredGroup(group=group, rewards=rewards, advantages=(0.0,) * len(totals))
        self.writer.write(replace(scored, score_s=self.speeds.score_s))
        return header_of(scored, scored)

    def expect(self, place, row):
        pass

    async def step(self, scored):
        lengths = [len(each.token_ids) for one in scored for each in one.group.completions]
        tokens = sum(lengths) + 100 * len(scored)
        seconds = self.speeds.step_s + self.speeds.learner_token_s * tokens
        await asyncio.sleep(seconds)
        self.version = WeightVersion(0, self.version.step + 1)
        metrics = {names.UPDATE_S: seconds, names.NUM_TOKENS: tokens, names.PROMPT_LENGTH_MEAN: 100.0}
        return StepResult(step=self.version.step, weight_version=self.version, metrics=metrics)

    async def publish(self, version):
        speeds, loop = self.speeds, asyncio.get_running_loop()
        started_s = loop.time()
        self.open.clear()
        for engine in self.engines:
            engine.settled.clear()
        await asyncio.sleep(speeds.export_s)
        for engine in self.engines:
            engine.version, engine.paused_until_s = version, loop.time() + speeds.paused_s
        await asyncio.sleep(speeds.engine_update_s)
        await asyncio.sleep(speeds.canary_s * len(self.engines))
        for engine in self.engines:
            engine.settled.set()
        self.open.set()
        self.latest |= {
            names.SYNC_EXPORT_S: speeds.export_s,
            names.SYNC_ENGINE_S: speeds.engine_update_s,
            names.SYNC_CANARY_S: speeds.canary_s * len(self.engines),
        }
        self.seconds.append(loop.time() - started_s)
        self.paused_seconds.append(speeds.paused_s)


class Silent(RunProgress):
    def step(self, step, figures):
        pass


def query_of_row(row: int) -> DrivingQuery:
    return DrivingQuery(query_id=f"q{row}", row=row, speed_mps=5.0, navigation="", plans=("KEEP, STRAIGHT",))


def record(monkeypatch, folder: Path, speeds: Speeds, *, seed: int = 0, **keys: object) -> Path:
    """Run a configuration to its end in virtual time; the run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(folder, **keys)

    async def whole() -> Path:
        loop = asyncio.get_running_loop()
        clock = SimpleNamespace(monotonic=loop.time, time=lambda: EPOCH_S + loop.time())
        for module in ("alphadrive.run_folder", "alphadrive.rollout_writer", "cluster.recorder"):
            monkeypatch.setattr(f"{module}.time", clock)
        with RunFolder.create(config) as run_folder, RolloutWriter(run_folder.rollouts_path, "w0") as writer:
            world = World(config, speeds, writer, seed)
            ledger = QueryLedger(query_of_row, 10_000, seed=0, max_dead_letters=0)
            buffer = SlotBuffer(config.num_slots, config.grpo.steps * config.grpo.groups_per_step)
            recorder = GrpoRecorder(
                config,
                run_folder,
                ledger,
                Silent("grpo", config.grpo.steps),
                RunStatus(run_folder, "grpo", config.grpo.steps, 0),
                answer=None,
                save=None,
                sync_seconds=world.seconds,
                canary_differences=world.canary_differences,
                paused_seconds=world.paused_seconds,
                sync_parts=world.latest,
                waited_s=lambda: buffer.waited_s,
                worker_metrics=lambda: {names.ROLLOUT_WORKERS: float(len(world.engines))},
            )
            parts = Parts(
                queries=ledger,
                rollouts=world,
                rewards=world,
                learner=world,
                sync=world,
                recorder=recorder,
                buffer=buffer,
            )
            tasks = [asyncio.create_task(engine.run()) for engine in world.engines]
            schedule = replace(make_schedule(config, 1), checkpoint_every=0)
            await world.publish(world.version)
            recorder.start()
            await run(parts, schedule)
            recorder.end()
            for task in tasks:
                task.cancel()
            summary = recorder.summary(config.grpo.steps)
            run_folder.write_summary(summary | {"engine_start_s": [12.0, 14.0]})
            return run_folder.path

    path = run_virtual(whole())
    monkeypatch.undo()
    return path
