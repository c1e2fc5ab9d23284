"""What a run's folder tells about the speed of its parts.

rollouts/*.parquet   lengths, when each group was asked for, how long drawing and scoring took
metrics.jsonl        steps, tokens of a step, parts of each weight sync
summary.json         how long engines took to start
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from alphadrive import metric_names as names
from alphadrive.config import Config, load_config
from alphadrive.errors import RunFolderError
from alphadrive.planning.driver_costs import MEASURED_DRIVER
from alphadrive.planning.engine_fit import DrawnGroups, fitted_speed, replayed
from alphadrive.planning.measured import DriverCosts, Measured, Seconds
from alphadrive.run_folder import read_metrics

COLUMNS = ("engine_id", "time_s", "generate_started_s", "generate_s", "score_s", "num_tokens", "rewards")
TIMINGS = (
    names.UPDATE_S,
    names.SYNC_EXPORT_S,
    names.SYNC_ENGINE_S,
    names.SYNC_CANARY_S,
    names.ENGINE_PAUSED_S,
)
MAX_FITTED_GROUPS = 400
"""Of one engine; more only make the fit slower."""
MIN_STEPS, MIN_GROUPS = 3, 8
FLAT = 1e-6
"""As `GroupHeader.has_signal`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """One run, as it was recorded. `steps` are its metrics, the first step left out: it is no usual one."""

    path: Path
    config: Config
    groups: pa.Table
    steps: list[dict[str, float]]
    summary: dict[str, Any]

    def metric(self, name: str) -> Seconds:
        """A metric of all steps."""
        return np.array([step[name] for step in self.steps])


def read_run(path: Path) -> RecordedRun:
    """Read a run's folder. Raises RunFolderError for one that has not what is needed."""
    if not (path / "config.yaml").is_file():
        raise RunFolderError(f"{path}: no run's folder: expected config.yaml, metrics.jsonl, rollouts/ in it")
    try:
        parts = sorted(path.glob("rollouts/*.parquet"))
        tables = [pq.read_table(part, columns=list(COLUMNS)) for part in parts]
        steps = [step for step in read_metrics(path / "metrics.jsonl") if names.STEP_S in step]
        summary_path = path / "summary.json"
        summary = json.loads(summary_path.read_text(encoding="utf-8")) if summary_path.is_file() else {}
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise RunFolderError(f"{path}: cannot be read for calibration: {error}") from error
    groups = pa.concat_tables(tables) if tables else None
    if groups is None or len(groups) < MIN_GROUPS or len(steps) < MIN_STEPS:
        raise RunFolderError(
            f"{path}: {0 if groups is None else len(groups)} groups and {len(steps)} GRPO steps; a "
            f"calibration needs {MIN_GROUPS} and {MIN_STEPS} at least"
        )
    has_timings = all(step.get(name) is not None for step in steps for name in TIMINGS)
    if not has_timings or not np.any(groups["generate_s"].to_numpy() > 0):
        raise RunFolderError(
            f"{path}: its groups or steps carry no timings: expected a run of `alphadrive grpo` (debug has "
            "no workers) by this version; make a short one"
        )
    usual = [{name: value or 0.0 for name, value in step.items()} for step in steps[1:]]
    config = load_config(str(path / "config.yaml"))
    return RecordedRun(path=path, config=config, groups=groups, steps=usual, summary=summary)


def calibrate(paths: Sequence[Path], driver: DriverCosts = MEASURED_DRIVER) -> Measured:
    """The speed of the parts, from one run or several. Several show more: engines at another load, a learner
    with another number of tokens. Lengths are those of the first one's group size. Raises RunFolderError."""
    runs = [read_run(path) for path in paths]
    drawn = [drawn_groups(run) for run in runs]
    speed = fitted_speed(drawn)
    ratios = np.concatenate([each.generate_s / replayed(speed, each) for each in drawn])
    size = runs[0].config.grpo.group_size
    same_size = [run for run in runs if run.config.grpo.group_size == size]
    rewards = np.concatenate([_matrix(run, "rewards") for run in same_size])
    step_s, token_s, step_spread = _step_costs(runs)
    largest = max(runs, key=lambda run: run.metric(names.ROLLOUT_WORKERS).mean())
    canary_s = largest.metric(names.SYNC_CANARY_S) / largest.metric(names.ROLLOUT_WORKERS)
    starts = [seconds for run in runs for seconds in run.summary.get("engine_start_s", [])]
    score_s = np.concatenate([run.groups["score_s"].to_numpy() for run in runs])
    return Measured(
        tokens=np.concatenate([_matrix(run, "num_tokens") for run in same_size]).astype(np.int64),
        prompt_tokens=float(np.mean([run.metric(names.PROMPT_LENGTH_MEAN).mean() for run in runs])),
        flat_share=float((rewards.std(axis=1) <= FLAT).mean()),
        engine=speed,
        spread=np.clip(ratios, 0.1, 10.0),
        score_s=score_s,
        hop_s=min(_hop_s(run) for run in runs),
        step_s=step_s,
        token_s=token_s,
        step_spread=step_spread,
        num_ranks=runs[0].config.learner.num_ranks,
        export_s=np.concatenate([run.metric(names.SYNC_EXPORT_S) for run in runs]),
        sync_engine_s=np.concatenate([run.metric(names.SYNC_ENGINE_S) for run in runs]),
        paused_s=np.concatenate([run.metric(names.ENGINE_PAUSED_S) for run in runs]),
        canary_s=float(np.median(canary_s)),
        engine_start_s=float(np.median(starts)) if starts else float("nan"),
        driver=driver,
    )


def drawn_groups(run: RecordedRun) -> DrawnGroups:
    """What the run's engine with the most groups drew."""
    ids = np.array(run.groups["engine_id"].to_pylist())
    kinds, counts = np.unique(ids, return_counts=True)
    own = np.flatnonzero(ids == kinds[np.argmax(counts)])
    asked_s = run.groups["generate_started_s"].to_numpy()
    own = own[np.argsort(asked_s[own], kind="stable")][:MAX_FITTED_GROUPS]
    started_s = asked_s[own] - asked_s[own[0]]
    pauses = [
        (begin_s, begin_s + step[names.ENGINE_PAUSED_S])
        for step in run.steps
        if 0 < (begin_s := _transfer_s(step) - asked_s[own[0]]) < started_s[-1]
    ]
    return DrawnGroups(
        started_s=started_s,
        tokens=_matrix(run, "num_tokens")[own].astype(np.int64),
        generate_s=run.groups["generate_s"].to_numpy()[own],
        seats=run.config.rollout.max_num_seqs,
        pauses=pauses,
    )


def _transfer_s(step: dict[str, float]) -> float:
    """When engines began to take the weights of a step (Unix time): its line is written after its sync."""
    return step["time_s"] - step[names.SYNC_S] + step[names.SYNC_EXPORT_S]


def _matrix(run: RecordedRun, column: str) -> NDArray[np.float64]:
    """A column of lists as [groups, group size]."""
    return np.array(run.groups[column].to_pylist(), dtype=np.float64)


def _hop_s(run: RecordedRun) -> float:
    """Between two processes: half of what passes at best from drawn to scored, besides scoring."""
    ended_s = run.groups["generate_started_s"].to_numpy() + run.groups["generate_s"].to_numpy()
    passed_s = run.groups["time_s"].to_numpy() - ended_s - run.groups["score_s"].to_numpy()
    return max(0.0, float(np.quantile(passed_s, 0.1))) / 2


def _step_costs(runs: Sequence[RecordedRun]) -> tuple[float, float, Seconds]:
    """Fixed seconds of a step, seconds of a token, and how far single steps were from that (factors).

    Steps whose numbers of tokens hardly differ do not tell the two apart: then all is the tokens'.
    """
    tokens = np.concatenate([run.metric(names.NUM_TOKENS) for run in runs])
    update_s = np.concatenate([run.metric(names.UPDATE_S) for run in runs])
    token_s, step_s = float(update_s.mean() / tokens.mean()), 0.0
    if tokens.std() > 0.1 * tokens.mean():
        slope, intercept = np.polyfit(tokens, update_s, 1)
        if slope > 0 and intercept > 0:
            token_s, step_s = float(slope), float(intercept)
    around_s = max(0.0, float(np.median(np.concatenate([_around_s(run) for run in runs]))))
    expected_s = around_s + step_s + tokens * token_s
    return step_s + around_s, token_s, (update_s + around_s) / expected_s


def _around_s(run: RecordedRun) -> Seconds:
    """What a step costs the loop besides the update, the weight sync, and waiting for groups."""
    syncs = np.array([step["step"] % run.config.grpo.sync_every == 0 for step in run.steps])
    busy_s = run.metric(names.STEP_S) * (1 - run.metric(names.LEARNER_IDLE_SHARE))
    around: Seconds = busy_s - run.metric(names.UPDATE_S) - syncs * run.metric(names.SYNC_S)
    return around
