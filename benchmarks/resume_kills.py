"""`make resume-test N=50`: kill runs with SIGKILL at random moments, resume them, look for what was lost.

    fakes   the shipped launch, loop, buffer, ledger, recorder, rewards, rollout writer and checkpoint store
            on the engine and learner of `resume_fakes`, each life a process forked from this one
    real    `alphadrive debug` on the tiny model: vLLM, the DeepSpeed learner, the weight sync; compared bit
            by bit

Every run is killed and resumed until it ends, then held against one that was never killed: what it trained
on and in which order, the ledger, metrics, rollouts. Of the runs on fakes one in three is synchronous and
compared in all of that; one has lag 2 and is compared in what it trained on and in which order; and one has
lag 2 and steps that are not applied, so that the order depends on timing: there every query must have ended
once. Prints one line; exit code 1 when anything differs.
"""

import argparse
import contextlib
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil
from resume_compare import learner_differences, queries_of, rollouts_of, run_differences
from resume_fakes import Phase, train_with_fakes

import cluster.grpo  # noqa: F401  imported here once, not in every process forked from this one
from alphadrive.cli import run as run_command
from alphadrive.config import Config, load_config
from alphadrive.run_folder import read_metrics
from cluster.launch import execute

NUM_ROWS = 40
STEPS = 14
REAL_STEPS = 4


@dataclass(kw_only=True)
class Tally:
    """What happened: kills by what the run was doing, runs that ended, and what was wrong."""

    kills: Counter[str] = field(default_factory=Counter)
    real_kills: int = 0
    runs: int = 0
    problems: list[str] = field(default_factory=list)

    def line(self, seconds: float) -> str:
        """The summary."""
        what = ", ".join(f"{count} {phase}" for phase, count in sorted(self.kills.items()))
        return (
            f"resume-test: {self.kills.total()} kills on fakes ({what}), {self.real_kills} of real debug "
            f"runs; {self.runs} runs resumed to their end; {len(self.problems)} problems; {seconds:.0f} s"
        )


def fake_config(folder: Path, name: str, seed: int, lag: int) -> Config:
    """A run on fakes: 14 steps of 4 queries, a checkpoint every second step, an evaluation every fourth."""
    return load_config(
        "debug",
        [
            f"seed={seed}",
            f"data.train={folder / 'train'}",
            f"data.eval={folder / 'eval'}",
            f"run.root={folder}",
            f"run.name={name}",
            "run.tensorboard=false",
            f"grpo.max_policy_lag={lag}",
            f"grpo.steps={STEPS}",
            "grpo.group_size=3",
            "grpo.groups_per_step=4",
            "grpo.max_new_tokens=250",
            "eval.every_steps=4",
            "checkpoint.every_steps=2",
            "rewards.max_dead_letter_share=1.0",
        ],
    )


def one_life(config: Config, phase: Phase, bad_every: int, log: Path, *, resume: bool) -> int:
    """Fork a process that runs, or goes on with, a run on fakes; gives its id."""
    phase.enter("starting")
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with log.open("a") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            execute(
                "grpo",
                config,
                lambda attempt: train_with_fakes(attempt, phase, bad_every),
                resume=resume,
                on_ray=False,
            )
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended_by_itself(child: int, after_s: float) -> int | None:
    """Wait so long for a process; its exit code, or None when it was then killed."""
    deadline_s = time.monotonic() + after_s
    while time.monotonic() < deadline_s:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def _new_phase() -> Phase:
    return Phase(mmap.mmap(-1, 1))  # type: ignore[arg-type]


def kill_fake_run(folder: Path, seed: int, tally: Tally, num_kills: int) -> None:
    """Run one on fakes with kills until it ends; compare it with one without."""
    lag, bad_every = ((0, 5), (2, 0), (2, 5))[seed % 3]
    phase = _new_phase()
    log = folder / f"log-{seed}.txt"
    whole, killed = (fake_config(folder, f"{name}-{seed}", seed, lag) for name in ("whole", "killed"))
    started_s = time.monotonic()
    if code := ended_by_itself(one_life(whole, phase, bad_every, log, resume=False), 120):
        tally.problems.append(f"seed {seed}: the run without kills ended with {code}, see {log}")
        return
    length_s = time.monotonic() - started_s
    for _ in range(10 * num_kills):
        is_over = tally.kills.total() >= num_kills
        child = one_life(killed, phase, bad_every, log, resume=True)
        code = ended_by_itself(child, 120 if is_over else random.uniform(0, 1.1 * length_s))
        if code is None:
            tally.kills[str(phase)] += 1
            continue
        if code:
            tally.problems.append(f"seed {seed}: a resumed run ended with {code}, see {log}")
            return
        break
    tally.runs += 1
    is_ordered = not (lag and bad_every)
    runs = (folder / whole.run.name, folder / killed.run.name)
    tally.problems += [f"seed {seed}: {problem}" for problem in fake_problems(*runs, lag == 0, is_ordered)]


def fake_problems(whole: Path, killed: Path, is_exact: bool, is_ordered: bool) -> Iterator[str]:
    """What is wrong with a run that was killed, beside the one that was not."""
    name = f"checkpoints/step_{STEPS:06d}"
    if is_exact:
        # The fake engine makes log-probabilities up from the version, attempt and all.
        yield from run_differences(whole, killed, STEPS, left_out=["rollout_logprobs"])
    states = [json.loads((run / name / "learner.json").read_text()) for run in (whole, killed)]
    if is_ordered and states[0] != states[1]:
        yield "it was trained on other groups, or in another order"
    trained = states[1]["trained"]
    if len(set(trained)) != len(trained):
        yield "a query was trained twice"
    content = queries_of(killed / name)
    queries, tickets = content["queries"], content["next_ticket"]
    ended = Counter(outcome for draws in queries["open_epochs"].values() for outcome in draws.values())
    for counts in queries["closed_epochs"].values():
        ended.update(counts)
        if sum(counts.values()) != NUM_ROWS:
            yield f"an epoch of {NUM_ROWS} queries has ended with {counts}"
    if ended["trained"] != len(trained):
        yield f"the ledger counts {ended['trained']} trained queries, the learner {len(trained)}"
    issued = sum(queries["issued"].values())
    if issued != ended.total() + len(queries["failed"]) + len(queries["under_way"]):
        yield f"{issued} queries were issued, {dict(ended)} ended"
    if [line["step"] for line in read_metrics(killed / "metrics.jsonl")] != list(range(1, STEPS + 1)):
        yield "not one line of metrics for every step"
    rows = [row["ticket"] for row in rollouts_of(killed)]
    if len(set(rows)) != len(rows):
        yield "a group was written twice"
    if not set(rows) >= set(range(tickets)) - set(content["open_tickets"]) and is_exact:
        yield "a group is missing from the rollouts"


def real_command(folder: Path, name: str) -> list[str]:
    """`alphadrive debug` on the tiny model, four steps of two queries, a checkpoint and an evaluation every
    second step."""
    overrides = [
        f"data.train={folder / 'train'}",
        f"data.eval={folder / 'eval'}",
        f"run.root={folder}",
        f"run.name={name}",
        f"grpo.steps={REAL_STEPS}",
        "grpo.max_policy_lag=0",
        "grpo.group_size=4",
        "grpo.groups_per_step=2",
        "grpo.max_new_tokens=16",
        "grpo.kl_coef=0.01",
        "rewards.variant=random",
        "eval.every_steps=2",
        "eval.num_rows=4",
        "checkpoint.every_steps=1",
        "checkpoint.keep_last=4",
    ]
    return [sys.executable, "-m", "alphadrive.cli", "debug", "debug", *overrides]


def kill_real_runs(folder: Path, num_kills: int, tally: Tally) -> None:
    """Kill real debug runs until there are so many kills; compare each bit by bit with one left alone."""
    if not num_kills:
        return
    log = folder / "log-real.txt"
    started_s = time.monotonic()
    with log.open("a") as stream:
        subprocess.run(real_command(folder, "whole-real"), stdout=stream, stderr=stream, check=True)
        length_s = time.monotonic() - started_s
        while tally.real_kills < num_kills and not tally.problems:
            killed = f"killed-real-{tally.runs}"
            code = _kill_until_it_ends(real_command(folder, killed), num_kills, length_s, stream, tally)
            if code:
                tally.problems.append(f"a resumed debug run ended with {code}, see {log}")
                return
            tally.runs += 1
            runs = (folder / "whole-real", folder / killed)
            states = [run / f"checkpoints/step_{REAL_STEPS:06d}" for run in runs]
            problems = [*run_differences(*runs, REAL_STEPS), *learner_differences(*states)]
            tally.problems += [f"{killed}: {problem}" for problem in problems]


def _kill_until_it_ends(
    command: list[str], num_kills: int, length_s: float, stream: IO[str], tally: Tally
) -> int:
    """Start, kill, resume, until the run ends by itself; its exit code."""
    while True:
        process = subprocess.Popen([*command, "--resume"], stdout=stream, stderr=stream)
        is_over = tally.real_kills >= num_kills
        try:
            return process.wait(600 if is_over else random.uniform(0.3, 1.0) * length_s)
        except subprocess.TimeoutExpired:
            _kill_tree(process)
            tally.real_kills += 1


def _kill_tree(process: "subprocess.Popen[bytes]") -> None:
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def make_data(folder: Path) -> None:
    """Few scenes to train and evaluate on."""
    synth = ["data", "synth", "--out"]
    assert run_command([*synth, str(folder / "train"), "--num", str(NUM_ROWS)]) == 0
    assert run_command([*synth, str(folder / "eval"), "--num", "8", "--seed", "9", "--split", "eval"]) == 0


def run_test(num_kills: int, num_real: int, first_seed: int, folder: Path) -> Tally:
    """So many kills on fakes, and of real debug runs; data and runs go into `folder`."""
    tally = Tally()
    make_data(folder)
    # The first start checks the data, which later ones remember.
    first = one_life(
        fake_config(folder, "first", 0, 0), _new_phase(), 0, folder / "log-first.txt", resume=False
    )
    if code := ended_by_itself(first, 300):
        tally.problems.append(f"the first run ended with {code}, see {folder / 'log-first.txt'}")
    seed = first_seed
    while tally.kills.total() < num_kills and not tally.problems:
        random.seed(seed)
        kill_fake_run(folder, seed, tally, num_kills)
        seed += 1
    if not tally.problems:
        kill_real_runs(folder, num_real, tally)
    return tally


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of runs on fakes (default: 50)")
    parser.add_argument("--real-kills", type=int, default=2, help="of a real debug run (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the first run (default: 0)")
    args = parser.parse_args()
    started_s = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="resume-test-"))
    tally = run_test(args.kills, args.real_kills, args.seed, folder)
    print(tally.line(time.monotonic() - started_s))
    if not tally.problems:
        shutil.rmtree(folder)
        return 0
    print("\n".join([*tally.problems, f"everything is in {folder}"]))
    return 1


if __name__ == "__main__":
    sys.exit(main())
