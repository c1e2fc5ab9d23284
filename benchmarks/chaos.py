"""`make chaos MINUTES=30`: a real run on a cluster of three nodes, and a fault every 20 s.

    start ─▶ a part without faults ─▶ fault ─▶ recovered ─▶ … ─▶ `alphadrive stop` ─▶ where every group went

The parts are real: vLLM engines, reward workers, DeepSpeed ranks, the driver as its own process. Kinds of
faults are dealt from a shuffled pack, so that each comes as often as the others; a fault waits for the one
before to be recovered. Prints faults, times of recovery, throughput kept and groups lost or repeated, and
writes the same as JSON, the driver's log beside it. Exit code 1 when a fault is not recovered in time, a
group is lost or repeated, or anything is left behind.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from chaos_checks import Account, account_of
from chaos_faults import Chaos
from chaos_recovery import POLL_S, Mark, Recovery, wait_for_recovery
from chaos_report import report_of, text_of
from chaos_run import Nodes, RunUnderTest, Size, alive, command_of, descendants, keep_orphans, make_data

from alphadrive.run_folder import RunFolder
from cluster.launch import WEIGHTS_FOLDER, weights_prefix

KINDS = (
    "engine-kill",
    "engine-stop",
    "reward-kill",
    "reward-stop",
    "learner-kill",
    "learner-stop",
    "driver-kill",
    "driver-kill-damage",
    "node-loss",
)
START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 300.0
INTERRUPTED = 130
LEFT_S = 60.0
"""After so long nothing of a run may be left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do: `faults` in order, or, where there are none, a pack of all kinds for `minutes`."""

    seed: int
    minutes: float
    every_s: float
    baseline_s: float
    cap_s: float
    faults: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Soak:
    """What happened. Samples are those trained on in steps that were not taken back."""

    recoveries: list[Recovery] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    baseline_steps: int = 0
    baseline_s: float = 0.0
    chaos_steps: int = 0
    chaos_s: float = 0.0
    account: Account | None = None


def soak(run: RunUnderTest, plan: Plan) -> Soak:
    """Start the run, do the faults, end it in order."""
    found = Soak()
    rng = random.Random(plan.seed)
    run.start()
    try:
        wait_until_staffed(run, START_TIMEOUT_S, steps=3)
        started_s, first = time.monotonic(), run.status()["step"]
        while time.monotonic() - started_s < plan.baseline_s:
            run.driver_must_live()
            time.sleep(POLL_S)
        found.baseline_s, reached = time.monotonic() - started_s, run.status()["step"]
        found.baseline_steps = reached - first
        say(f"without faults: {found.baseline_steps} steps in {found.baseline_s:.0f} s")
        do_faults(run, plan, rng, found)
        found.chaos_s = time.monotonic() - started_s - found.baseline_s
        found.chaos_steps = run.status()["step"] - reached
        found.problems += end(run)
    except (TimeoutError, ChildProcessError, subprocess.TimeoutExpired) as error:
        found.problems.append(str(error))
    return found


def do_faults(run: RunUnderTest, plan: Plan, rng: random.Random, found: Soak) -> None:
    """One fault after another; the first that is not recovered is the last."""
    chaos, started_s, due_s = Chaos(run, rng), time.monotonic(), 0.0
    pack: list[str] = list(plan.faults)
    while not found.problems:
        if not pack:
            if plan.faults:
                return
            pack = rng.sample(KINDS, len(KINDS))
        while (now_s := time.monotonic() - started_s) < due_s:
            run.nodes.tend()
            time.sleep(POLL_S)
        if not plan.faults and now_s > 60 * plan.minutes:
            return
        wait_until_staffed(run, plan.cap_s)
        due_s = now_s + plan.every_s
        mark = Mark.of(run)
        injected = chaos.do(pack.pop(0))
        missing = wait_for_recovery(run, injected, mark, plan.cap_s)
        seconds = None if missing else time.time() - mark.unix_s
        recovery = Recovery(
            kind=injected.kind, victim=injected.victim, at_s=now_s, seconds=seconds, missing=missing
        )
        say(recovery.line())
        found.recoveries.append(recovery)
        if missing:
            found.problems.append(f"{injected.kind} of {injected.victim} was not recovered: {missing}")


def end(run: RunUnderTest) -> list[str]:
    """End the run as a user does; what is wrong with how it ended."""
    problems = []
    if code := run.ask_to_stop(STOP_TIMEOUT_S):
        problems.append(f"`alphadrive stop` ended with {code}")
    if run.driver.wait(STOP_TIMEOUT_S) != INTERRUPTED:
        problems.append(f"the driver ended with {run.driver.returncode}, expected {INTERRUPTED}")
    status = run.status()
    if status["status"] != "interrupted" or status["step"] != status["checkpoint_step"]:
        words = f"{status['status']}, {status.get('reason')}, step {status['step']}"
        problems.append(f"the last status is {words}, the newest checkpoint of {status['checkpoint_step']}")
    deadline_s = time.monotonic() + LEFT_S
    while (left := left_of_run(run)) and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
    problems += [f"left behind: {words}" for words in left]
    return problems


def left_of_run(run: RunUnderTest) -> list[str]:
    """Processes of the run, and its files of weights, that are there."""
    names = ((process.pid, command_of(process)) for process in descendants())
    ours = ("ray::Rollout", "ray::Reward", "ray::Learner", "ray::RunControl", "EngineCore", "reaper.py")
    processes = [f"process {pid}: {name[:80]}" for pid, name in names if any(part in name for part in ours)]
    weights = WEIGHTS_FOLDER.glob(f"*{weights_prefix(RunFolder(run.folder, run.config))}*")
    return processes + [str(path) for path in weights]


def wait_until_staffed(run: RunUnderTest, cap_s: float, steps: int = 0) -> None:
    """Wait until the run is staffed and at such a step. Raises TimeoutError, ChildProcessError."""
    deadline_s = time.monotonic() + cap_s
    while not run.is_staffed(status := run.status()) or status["step"] < steps:
        run.driver_must_live()
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the run was not up in {cap_s:.0f} s: {status}")
        time.sleep(POLL_S)


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)


def whole_test(folder: Path, size: Size, plan: Plan) -> Soak:
    """Data, cluster, soak, checks; nothing is left of it but the folder."""
    keep_orphans()
    make_data(folder)
    try:
        nodes = Nodes()
        run = RunUnderTest(folder, nodes, size, plan.seed)
        found = soak(run, plan)
        if (run.folder / "checkpoints").is_dir():
            found.account = account_of(run.folder, run.config)
            found.problems += found.account.problems
        nodes.shutdown()
        left = end_all()
        found.problems += [f"left when the cluster was gone: {words}" for words in left]
    except BaseException:
        end_all(at_once=True)
        raise
    return found


def end_all(at_once: bool = False) -> list[str]:
    """Wait a little for all that was started to end, then end it; what had to be ended."""
    gone_by_s = time.monotonic() + (0 if at_once else LEFT_S)
    while descendants() and time.monotonic() < gone_by_s:
        time.sleep(POLL_S)
    left = alive(descendants())
    words = [f"process {process.pid}: {command_of(process)[:80]}" for process in left]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=10)
    return words


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of faults (default: 30)")
    parser.add_argument("--every", type=float, default=20.0, help="seconds from fault to fault (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", default="", help=f"these and no others, by commas: {', '.join(KINDS)}")
    parser.add_argument("--baseline", type=float, default=60.0, help="seconds without faults (default: 60)")
    parser.add_argument("--cap", type=float, default=180.0, help="seconds to recover in (default: 180)")
    parser.add_argument("--ranks", type=int, default=1, choices=(1, 2, 4), help="of the learner (default: 1)")
    parser.add_argument("--json", type=Path, default=Path("chaos.json"), help="default: chaos.json")
    args = parser.parse_args()
    faults = tuple(args.faults.split(",")) if args.faults else ()
    if unknown := set(faults) - set(KINDS):
        parser.error(f"--faults: {sorted(unknown)} is not among {', '.join(KINDS)}")
    plan = Plan(
        seed=args.seed,
        minutes=args.minutes,
        every_s=args.every,
        baseline_s=args.baseline,
        cap_s=args.cap,
        faults=faults,
    )
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    size = Size(ranks=args.ranks)
    found = whole_test(folder, size, plan)
    report = report_of(found, asdict(plan) | asdict(size))
    args.json.write_text(json.dumps(report, indent=2) + "\n")
    shutil.copy(folder / "driver.log", args.json.with_suffix(".driver.log"))
    print(text_of(report))
    if found.problems:
        print(f"everything is in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
