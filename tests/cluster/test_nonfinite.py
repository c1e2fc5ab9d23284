"""Steps that are not finite: left out, written down, none of their queries lost, the end after three."""

import asyncio
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from alphadrive import metric_names as names
from alphadrive.cli import run as run_command
from alphadrive.config import Config, load_config
from alphadrive.errors import NonFiniteError
from alphadrive.run_folder import RunFolder, read_metrics
from alphadrive.types import DrivingQuery, GroupHeader, StepResult, WeightVersion
from cluster.buffer import SlotBuffer
from cluster.launch import Attempt
from cluster.loop import Parts, Schedule, run
from cluster.progress import RunProgress
from cluster.queries import QueryLedger
from cluster.recorder import GrpoRecorder
from cluster.sft import _steps
from cluster.status import RunStatus

PROBLEM = "the loss is nan"


def result_of(step: int, *, is_bad: bool) -> StepResult:
    loss = math.nan if is_bad else 0.5
    return StepResult(
        step=step,
        weight_version=WeightVersion(0, step),
        metrics={
            names.LOSS: loss,
            names.SFT_LOSS: loss,
            names.SAMPLES_PER_S: 1.0,
            names.SFT_LEARNING_RATE: 1.0,
        },
        problem=PROBLEM if is_bad else None,
        was_updated=not is_bad,
    )


class FakeSystem:
    """Engines, rewards, learner and sync in one; the learner's `bad_steps` are not finite."""

    def __init__(self, bad_steps: set[int]) -> None:
        self.bad_steps = bad_steps
        self.version = WeightVersion(0, 0)
        self.trained: list[object] = []

    async def generate(self, ticket: int, query: DrivingQuery) -> object:
        await asyncio.sleep(1.0)
        return GroupHeader(
            ticket=ticket,
            query_id=query.query_id,
            row=query.row,
            weight_version=self.version,
            reward_mean=1.0,
            reward_std=0.5,
            reward_min=0.5,
            reward_max=1.5,
            term_means={},
            term_stds={},
            num_tokens=10,
            scored=ticket,
        )

    async def score(self, group: object) -> object:
        return group

    def expect(self, place: int, row: int) -> None:
        pass

    def expect_rows(self, rows: list[int]) -> None:
        pass

    async def step(self, scored: list[object]) -> StepResult:
        await asyncio.sleep(1.0)
        result = result_of(self.version.step + 1, is_bad=self.version.step + 1 in self.bad_steps)
        self.version = result.weight_version
        return result

    async def publish(self, version: WeightVersion) -> None:
        pass


def run_grpo(
    tmp_path: Path, bad_steps: set[int], steps: int = 6
) -> tuple[RunFolder, QueryLedger, GrpoRecorder]:
    """The shipped loop, ledger and recorder on a fake system. Gives what they hold at the end."""
    config, steps = Config(), 6
    config.run.root, config.run.tensorboard = str(tmp_path), False
    config.grpo.steps, config.grpo.groups_per_step = steps, 2

    def query_of_row(row: int) -> DrivingQuery:
        return DrivingQuery(
            query_id=f"q{row}", row=row, speed_mps=5.0, navigation="go", plans=("KEEP, STRAIGHT",)
        )

    folder = RunFolder.create(config)
    ledger = QueryLedger(query_of_row, 100, seed=0, max_dead_letters=2)
    system = FakeSystem(bad_steps)
    recorder = GrpoRecorder(
        config,
        folder,
        ledger,
        RunProgress("grpo", steps, may_be_live=False),
        RunStatus(folder, "grpo", steps, 0),
        answer=None,
        save=None,
        sync_seconds=[0.1],
        canary_differences=[0.0],
    )
    parts = Parts(
        queries=ledger,
        rollouts=system,
        rewards=system,
        learner=system,
        sync=system,
        recorder=recorder,
        buffer=SlotBuffer(4, 2 * steps),
    )
    schedule = Schedule(steps=steps, groups_per_step=2, max_policy_lag=1, skips_flat_groups=True)
    try:
        asyncio.run(asyncio.wait_for(run(parts, schedule), 60))
    finally:
        folder.close()
    return folder, ledger, recorder


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: sleep(seconds / 1000))


def test_grpo_goes_on_and_asks_again_for_the_queries_of_a_step_that_was_not_finite(tmp_path: Path) -> None:
    folder, ledger, recorder = run_grpo(tmp_path, bad_steps={2, 3, 5})
    counts = ledger.counts()[0]
    num_ended = counts["trained"] + counts.get("dead_lettered", 0)
    assert counts["trained"] == 6 and num_ended == ledger.num_ended
    # Twelve groups were drawn, those of the three bad steps for nothing.
    num_second_tries = 12 - counts["issued"]
    assert 0 < num_second_tries <= 6 and counts["issued"] - num_ended == len(ledger.state()["failed"])
    files = sorted((folder.path / "nonfinite").iterdir())
    assert [path.name for path in files] == ["step_000002.json", "step_000003.json", "step_000005.json"]
    dump = json.loads(files[0].read_text())
    assert (dump["step"], dump["problem"], len(dump["batch"])) == (2, PROBLEM, 2)
    assert [group["ticket"] for group in dump["batch"]] == [2, 3]
    assert {group["query_id"][0] for group in dump["batch"]} == {"q"}
    assert dump["batch"][0]["oldest_weight_version"] in ("0.0", "0.1")
    for line in read_metrics(folder.path / "metrics.jsonl"):
        at_lag = [int(line.get(f"training/policy_lag/groups_at_{lag}", 0)) for lag in (0, 1)]
        assert sum(at_lag) == 2 and line["training/policy_lag/max"] == (at_lag[1] > 0)
    lines = read_metrics(folder.metrics_path)
    assert [line[names.LOSS] for line in lines] == [0.5, None, None, 0.5, None, 0.5]
    assert lines[1][names.END_TO_END_SAMPLES_PER_S] == 0
    summary = recorder.summary(6)["grpo"]
    assert (summary["nonfinite_steps"], summary["samples"]) == (3, 6 * 8)
    folder.write_summary(recorder.summary(6))


def test_three_in_a_row_end_a_grpo_run_and_name_their_groups(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"step 2: the loss is nan; step 3: .*; step 4: .*nonfinite"):
        run_grpo(tmp_path, bad_steps={2, 3, 4})
    assert len(list((tmp_path / "run" / "nonfinite").iterdir())) == 3
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 4


def run_sft(tmp_path: Path, bad_steps: set[int]) -> Attempt:
    assert run_command(["data", "synth", "--out", str(tmp_path / "train"), "--num", "4"]) == 0
    overrides = [f"data.train={tmp_path / 'train'}", f"run.root={tmp_path}", "run.tensorboard=false"]
    config = load_config("debug", [*overrides, "run.name=run", "sft.steps=5", "sft.batch_size=2"])
    folder = RunFolder.create(config)
    attempt = Attempt(
        config=config,
        run=folder,
        model_folder=tmp_path,
        checkpoint=None,
        saved={},
        version=WeightVersion(0, 0),
        status=RunStatus(folder, "sft", 5, 0),
        progress=RunProgress("sft", 5, may_be_live=False),
        stop=SimpleNamespace(on_stop=None, was_asked=False),
    )
    learner = FakeSystem(bad_steps)
    learner.sft_step = learner.step

    async def save(path: Path) -> None:
        (path / "weights").write_text("w")

    learner.save, learner.must_move = save, False
    try:
        asyncio.run(_steps(attempt, learner))
    finally:
        folder.write_summary(attempt.summary)
        folder.close()
    return attempt


def test_sft_goes_on_and_writes_down_the_rows(tmp_path: Path) -> None:
    attempt = run_sft(tmp_path, bad_steps={2, 5})
    summary = attempt.summary["sft"]
    assert (summary["steps"], summary["loss"], summary["nonfinite_steps"]) == (5, 0.5, 2)
    dump = json.loads((attempt.run.path / "nonfinite" / "step_000002.json").read_text())
    assert len({entry["row"] for entry in dump["batch"]}) == 2
    assert all(entry["query_id"] for entry in dump["batch"])


def test_three_in_a_row_end_sft(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="3 steps in a row"):
        run_sft(tmp_path, bad_steps={1, 2, 3})
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["sft"]["loss"] is None
    assert summary["sft"]["nonfinite_steps"] == 3
