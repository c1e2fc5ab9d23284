"""Starting and ending a run: checks first, then Ray, then the stage; an orderly end whatever happens.

    check configuration, model, data, memory ─▶ run folder ─▶ Ray ─▶ stage ─▶ summary.json, status.json

`run_grpo` and `run_sft` are what the command line calls. Nothing is started before the checks passed.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from alphadrive.checkpoints import Checkpoint
from alphadrive.config import Config
from alphadrive.config_checks import check_config
from alphadrive.preflight import check_run
from alphadrive.run_folder import RunFolder
from alphadrive.types import WeightVersion
from cluster.collector import rare_collections
from cluster.control_room import control_room
from cluster.inventory import live_nodes
from cluster.jobs import check_paths, cluster_to_join, stop_note
from cluster.node_paths import check_nodes
from cluster.placement import Placement, num_engines, plan_placement
from cluster.processes import ProcessTree, Reaper
from cluster.progress import RunProgress
from cluster.ray_session import ray_session
from cluster.resuming import end_of_finished, kept_checkpoints, newest_start, start_of
from cluster.stall import Deadman, guarded, stall_limit_s
from cluster.status import RunStatus
from cluster.stopping import StopSignals, sigterm_as_interrupt
from cluster.watched import Watched
from rewards.further import load_terms

logger = logging.getLogger(__name__)

WEIGHTS_FOLDER = Path("/dev/shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a run ended. `status` is `finished` or `no_signal`."""

    status: str
    folder: Path
    summary: dict[str, Any]
    checkpoint: Checkpoint | None


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One attempt at a run: what a stage works with. A resumed run is a new attempt, and so is one whose
    learner restarts, in the same object."""

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
    data_sha256: str = ""
    placement: Placement | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    watched: Watched = field(default_factory=Watched)

    async def begin_again(self, cause: str) -> None:
        """Go back to the last committed checkpoint, as the next attempt; `cause` is for people. Raises
        as `newest_start`."""
        start = await asyncio.to_thread(newest_start, self.run, self.data_sha256)
        self.checkpoint, self.saved = start.checkpoint, start.saved
        attempt = max(start.version.attempt, self.version.attempt + 1)
        self.version = WeightVersion(attempt, start.version.step)
        self.status.begin_attempt(attempt, start.version.step, cause)


Stage = Callable[[Attempt], Coroutine[Any, Any, None]]


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
    check_paths(config)
    if on_ray:
        cluster_to_join()
    if stage == "grpo":
        load_terms(config.rewards, Path.cwd())
    checked = check_run(config, stage if on_ray else "debug")
    run = RunFolder.create(config, resume, overwrite, stage)
    start = start_of(run, resume=resume)
    steps = config.grpo.steps if stage == "grpo" else config.sft.steps
    if start.version.step >= steps:
        with run:
            summary = end_of_finished(run, stage, steps, start)
        return RunResult(status="finished", folder=run.path, summary=summary, checkpoint=start.checkpoint)
    status = RunStatus(run, stage, steps, start.version.attempt)
    with (
        sigterm_as_interrupt(),
        run,
        Reaper(f"{WEIGHTS_FOLDER}/*{weights_prefix(run)}*") as reaper,
        ProcessTree(reaper) as tree,
        RunProgress(stage, steps, may_be_live=on_ray) as progress,
    ):
        attempt = Attempt(
            config=config,
            run=run,
            model_folder=checked.model_folder,
            checkpoint=start.checkpoint,
            saved=start.saved,
            version=start.version,
            status=status,
            progress=progress,
            stop=StopSignals(config.checkpoint.stop_grace_s),
            data_sha256=start.data_sha256,
        )
        status.begin_attempt(
            start.version.attempt, start.version.step, "resumed" if start.version.attempt else "started"
        )
        if (note := stop_note(config.checkpoint.stop_grace_s)) is not None:
            progress.say(note)
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
                "attempt": attempt.version.attempt,
                "attempts": status.attempts,
                "seconds": {stage: time.monotonic() - started_s},
                "peak_rss_bytes": tree.peak_bytes,
                "checkpoints": kept_checkpoints(run),
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
    if tree is None:
        return _run_loop(attempt, train(attempt))
    with _deadman(attempt) as deadman, ray_session(num_gpus, tree):
        _place(attempt, stage, deadman)
        _run_loop(attempt, guarded(train(attempt), deadman.pulse()))


def _place(attempt: Attempt, stage: str, deadman: Deadman) -> None:
    """Compare what the run asks for with the nodes there are, and say it. Raises ResourceError, NodeError."""
    nodes = live_nodes()
    attempt.placement = plan_placement(attempt.config, stage, nodes)
    for words in (attempt.placement.table, attempt.placement.note):
        if words:
            attempt.progress.say(words)
    folders = (attempt.model_folder, attempt.run.path)
    check_nodes(attempt.config, stage, attempt.placement, *folders, nodes, deadman.touch)


def _deadman(attempt: Attempt) -> Deadman:
    def report(words: str) -> None:
        attempt.status.write(status="failed", reason=words)

    return Deadman(stall_limit_s(attempt.config), report)


def _run_loop(attempt: Attempt, work: Coroutine[Any, Any, None]) -> None:
    """Run the event loop. Raises KeyboardInterrupt after an orderly end by a signal."""

    async def with_signals() -> None:
        with attempt.stop:
            async with control_room(attempt) if attempt.placement is not None else nullcontext():
                await work

    try:
        with rare_collections():
            asyncio.run(with_signals())
    except asyncio.CancelledError:
        if not attempt.stop.was_asked:
            raise
    if attempt.stop.was_asked:
        raise attempt.stop.interrupt()


def weights_prefix(run: RunFolder) -> str:
    """How the names of a run's weights files in `WEIGHTS_FOLDER` start: the same for every attempt, so that
    the next one removes what the last one left."""
    return scratch_prefix(run.path)


def scratch_prefix(run_path: Path) -> str:
    """The same for the run in a folder; `cluster.meeting` uses it too."""
    return f"alphadrive-{hashlib.sha256(str(run_path.resolve()).encode()).hexdigest()[:16]}"


def remove_leftover_weights(run: RunFolder) -> None:
    """Remove what an attempt of this run that was cut off has left in `WEIGHTS_FOLDER`."""
    for path in WEIGHTS_FOLDER.glob(f"*{weights_prefix(run)}*"):
        path.unlink(missing_ok=True)
