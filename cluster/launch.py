"""Starting and ending a run: checks first, then Ray, then the stage; an orderly end whatever happens.

    check configuration, model, data, memory ─▶ run folder ─▶ Ray ─▶ stage ─▶ summary.json, status.json

`run_grpo` and `run_sft` are what the command line calls. Nothing is started before the checks passed.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from alphadrive.checkpoints import Checkpoint
from alphadrive.config import Config
from alphadrive.config_checks import check_config
from alphadrive.errors import CheckpointError
from alphadrive.preflight import check_run
from alphadrive.run_folder import RunFolder
from alphadrive.types import WeightVersion
from cluster.control_room import control_room
from cluster.placement import Placement, num_engines, plan_placement
from cluster.processes import ProcessTree
from cluster.progress import RunProgress
from cluster.ray_session import cluster_size, ray_session
from cluster.recorder import LEDGER_FILE
from cluster.status import RunStatus
from cluster.stopping import StopSignals
from cluster.watched import Watched
from rewards.further import load_terms

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a run ended. `status` is `finished` or `no_signal`."""

    status: str
    folder: Path
    summary: dict[str, Any]
    checkpoint: Checkpoint | None


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One attempt at a run: what a stage works with. A resumed run is a new attempt."""

    config: Config
    run: RunFolder
    model_folder: Path
    checkpoint: Checkpoint | None
    saved: dict[str, Any]
    """What the checkpoint's ledger file holds; empty at the start."""
    version: WeightVersion
    status: RunStatus
    progress: RunProgress
    stop: StopSignals
    placement: Placement | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    watched: Watched = field(default_factory=Watched)


Stage = Callable[[Attempt], Awaitable[None]]


def run_grpo(config: Config, resume: bool = False, overwrite: bool = False) -> RunResult:
    """Stage 2 on Ray. Raises InputError before anything is started, AlphaDriveError for what fails
    later, KeyboardInterrupt after an orderly end by Ctrl-C or SIGTERM."""
    from cluster.grpo import train_on_ray

    return execute("grpo", config, train_on_ray, resume=resume, overwrite=overwrite)


def run_sft(config: Config, resume: bool = False, overwrite: bool = False) -> RunResult:
    """Stage 1 on Ray. Raises as `run_grpo`."""
    from cluster.sft import train_sft

    return execute("sft", config, train_sft, resume=resume, overwrite=overwrite)


def execute(
    stage: Literal["grpo", "sft"],
    config: Config,
    train: Stage,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_ray: bool = True,
) -> RunResult:
    """Run one stage from its checks to its summary."""
    started_s = time.monotonic()
    check_config(config)
    if stage == "grpo":
        load_terms(config.rewards, Path.cwd())
    checked = check_run(config, stage if on_ray else "debug")
    run = RunFolder.create(config, resume, overwrite)
    checkpoint = run.latest_checkpoint() if resume else None
    saved = _read_ledger(checkpoint)
    steps = config.grpo.steps if stage == "grpo" else config.sft.steps
    version = WeightVersion(_next_attempt(run, saved) if resume else 0, checkpoint.step if checkpoint else 0)
    status = RunStatus(run, stage, steps, version.attempt)
    with run, ProcessTree() as tree, RunProgress(stage, steps, may_be_live=on_ray) as progress:
        attempt = Attempt(
            config=config,
            run=run,
            model_folder=checked.model_folder,
            checkpoint=checkpoint,
            saved=saved,
            version=version,
            status=status,
            progress=progress,
            stop=StopSignals(),
        )
        status.write(step=version.step)
        try:
            _run_stage(stage, attempt, train, tree if on_ray else None)
        except KeyboardInterrupt:
            status.write(status="interrupted", reason=attempt.stop.reason)
            progress.say(f"{stage} interrupted; `alphadrive {stage} … --resume` goes on from {run.path}")
            raise
        except BaseException as error:
            status.write(status="failed", reason=f"{type(error).__name__}: {error}")
            raise
        finally:
            summary = attempt.summary | {
                "status": status.state,
                "stage": stage,
                "attempt": version.attempt,
                "seconds": {stage: time.monotonic() - started_s},
                "peak_rss_bytes": tree.peak_bytes,
            }
            run.write_summary(summary)
    committed = run.checkpoints.all()
    return RunResult(
        status=status.state,
        folder=run.path,
        summary=summary,
        checkpoint=committed[-1] if committed else None,
    )


def _run_stage(stage: str, attempt: Attempt, train: Stage, tree: ProcessTree | None) -> None:
    """Run a stage, on Ray if `tree` is given."""
    config = attempt.config
    engines = num_engines(config, stage)
    num_gpus = (
        engines * config.rollout.gpus_per_worker + config.learner.num_ranks * config.learner.gpus_per_rank
    )
    with ray_session(num_gpus, tree) if tree is not None else nullcontext():
        if tree is not None:
            attempt.placement = plan_placement(config, stage, *cluster_size())
            if attempt.placement.note:
                attempt.progress.say(attempt.placement.note)
        try:
            asyncio.run(_with_signals(attempt, train))
        except asyncio.CancelledError:
            if not attempt.stop.was_asked:
                raise
        if attempt.stop.was_asked:
            raise KeyboardInterrupt("stopped by a signal")


async def _with_signals(attempt: Attempt, train: Stage) -> None:
    with attempt.stop:
        async with control_room(attempt) if attempt.placement is not None else nullcontext():
            await train(attempt)


def _read_ledger(checkpoint: Checkpoint | None) -> dict[str, Any]:
    if checkpoint is None:
        return {}
    try:
        return json.loads((checkpoint.path / LEDGER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint.path / LEDGER_FILE}: not readable: {error}") from error


def _next_attempt(run: RunFolder, saved: dict[str, Any]) -> int:
    """One more than any attempt before, whether it reached a checkpoint or not."""
    before = [saved["attempt"]] if saved else []
    if run.status_path.is_file():
        try:
            before.append(json.loads(run.status_path.read_text(encoding="utf-8"))["attempt"])
        except (ValueError, KeyError):
            logger.warning("%s is not readable; the attempt is counted from the checkpoint", run.status_path)
    return max(before, default=-1) + 1
