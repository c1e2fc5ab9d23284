"""The two systems that `benchmarks/peer_trl.py` compares: started once, then run in turn, a block at a time.

    Ours   `alphadrive grpo`: Ray, a vLLM engine, the DeepSpeed learner; stopped when a block's steps are in
           metrics.jsonl
    Trl    `benchmarks/peer_trl_worker.py`; stops itself at the end of a block

While one runs, all processes of the other are stopped (SIGSTOP), so that each has the whole machine. A block
ends where a step ends, so a number of blocks is a whole number of steps of steady state.
"""

import json
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
from peer_processes import ROOT, Processes, SideError, difference

from alphadrive import metric_names as names

WORKER = ROOT / "benchmarks" / "peer_trl_worker.py"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
POLL_S = 0.002
START_TIMEOUT_S = 300.0
END_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What one side did in one turn: samples trained, wall-clock seconds, and seconds of processor by kind of
    process."""

    samples: int
    seconds: float
    processor_s: dict[str, float]

    @property
    def samples_per_s(self) -> float:
        """Samples generated, scored and trained a second."""
        return self.samples / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step: seconds of its parts, which add up to it, and mean lengths in tokens."""

    parts_s: dict[str, float]
    prompt_tokens: float
    completion_tokens: float


class Side(Protocol):
    """One system under test."""

    name: str

    def start(self) -> None:
        """Bring it up and let it reach its steady state; then it is stopped."""

    def run_block(self) -> Block:
        """Let it go on for a block; then it is stopped."""

    def steps(self) -> list["Step"]:
        """The steps after the warm-up."""

    def close(self) -> None:
        """End all its processes."""


class Ours:
    """This project: `alphadrive grpo` as a user would start it."""

    name = "alphadrive"

    def __init__(self, overrides: list[str], run: Path, samples_per_step: int, block_steps: int) -> None:
        self._command = [sys.executable, "-m", "alphadrive.cli", "grpo", "demo", *overrides, "--overwrite"]
        self._metrics = run / "metrics.jsonl"
        self._samples, self._block_steps = samples_per_step * block_steps, block_steps
        self._processes = Processes(run.parent / f"{run.name}.log")
        self._first_step = 0

    def start(self) -> None:
        """Start Ray, engine and learner; train a warm-up block."""
        self._metrics.unlink(missing_ok=True)
        self._processes.start(self._command, {})
        self._wait_for(self._block_steps, START_TIMEOUT_S)
        self._processes.pause()
        self._first_step = self._num_steps()

    def run_block(self) -> Block:
        """Train `block_steps` steps."""
        wanted = self._num_steps() + self._block_steps
        before, started_s = self._processes.processor_seconds(), time.perf_counter()
        self._processes.resume()
        self._wait_for(wanted, START_TIMEOUT_S)
        seconds = time.perf_counter() - started_s
        self._processes.pause()
        used = difference(before, self._processes.processor_seconds())
        return Block(samples=self._samples, seconds=seconds, processor_s=used)

    def steps(self) -> list[Step]:
        """From metrics.jsonl; steps with a stop in between are left out. Rollouts and rewards go on while the
        learner updates and take a part of their own only where it waits for them."""
        lines = [json.loads(text) for text in self._metrics.read_text().splitlines()][self._first_step :]
        whole = [line for number, line in enumerate(lines) if number % self._block_steps]
        return [
            Step(
                parts_s={
                    "update": line[names.UPDATE_S],
                    "weight sync": line[names.SYNC_S],
                    "waiting for groups": line[names.STEP_S] - line[names.UPDATE_S] - line[names.SYNC_S],
                },
                prompt_tokens=line[names.PROMPT_LENGTH_MEAN],
                completion_tokens=line[names.RESPONSE_LENGTH_MEAN],
            )
            for line in whole
        ]

    def close(self) -> None:
        """End the run as Ctrl-C does, so that Ray leaves nothing behind."""
        self._processes.close(END_TIMEOUT_S)

    def _num_steps(self) -> int:
        return self._metrics.read_bytes().count(b"\n") if self._metrics.exists() else 0

    def _wait_for(self, num_steps: int, timeout_s: float) -> None:
        deadline_s = time.perf_counter() + timeout_s
        while self._num_steps() < num_steps:
            self._processes.check()
            if time.perf_counter() > deadline_s:
                raise SideError(
                    f"{self.name}: not at step {num_steps} after {timeout_s:.0f} s; see {self._processes.log}"
                )
            time.sleep(POLL_S)


class Trl:
    """TRL's GRPOTrainer in its own environment, one process a rank."""

    name = "TRL"

    def __init__(self, python: Path, settings: dict[str, Any], folder: Path, num_ranks: int) -> None:
        self._python, self._num_ranks = python, num_ranks
        self._log = folder / "steps.jsonl"
        self._settings_file = folder / "settings.json"
        self._samples = settings["samples_per_step"] * settings["steps_per_block"]
        self._processes = Processes(folder / "trl.log")
        self._first_step = settings["steps_per_block"]
        folder.mkdir(parents=True, exist_ok=True)
        self._log.unlink(missing_ok=True)
        settings = {**settings, "log": str(self._log), "output": str(folder / "output")}
        self._settings_file.write_text(json.dumps(settings, indent=1))

    def start(self) -> None:
        """Start the ranks; they train a warm-up block and stop themselves."""
        port = free_port()
        for rank in range(self._num_ranks):
            distributed = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(self._num_ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo",
            }
            command = [str(self._python), str(WORKER), str(self._settings_file)]
            self._processes.start(command, OFFLINE | (distributed if self._num_ranks > 1 else {}))
        self._wait_until_stopped()

    def run_block(self) -> Block:
        """Train a block."""
        before, started_s = self._processes.processor_seconds(), time.perf_counter()
        self._processes.resume()
        self._wait_until_stopped()
        seconds = time.perf_counter() - started_s
        used = difference(before, self._processes.processor_seconds())
        return Block(samples=self._samples, seconds=seconds, processor_s=used)

    def steps(self) -> list[Step]:
        """From the worker's log."""
        lines = [json.loads(text) for text in self._log.read_text().splitlines()]
        return [
            Step(
                parts_s={
                    "generation": line["generation_s"],
                    "reward": line["reward_s"],
                    "making the batch": line["rollout_s"] - line["generation_s"] - line["reward_s"],
                    "update": line["step_s"] - line["rollout_s"],
                },
                prompt_tokens=line["prompt_tokens"],
                completion_tokens=line["completion_tokens"],
            )
            for line in lines[self._first_step :]
        ]

    def close(self) -> None:
        """End the ranks."""
        self._processes.close()

    def _wait_until_stopped(self) -> None:
        deadline_s = time.perf_counter() + START_TIMEOUT_S
        while any(process.status() != psutil.STATUS_STOPPED for process in self._ranks()):
            self._processes.check()
            if time.perf_counter() > deadline_s:
                raise SideError(
                    f"{self.name}: no block in {START_TIMEOUT_S:.0f} s; see {self._processes.log}"
                )
            time.sleep(POLL_S)

    def _ranks(self) -> list[psutil.Process]:
        return [psutil.Process(root.pid) for root in self._processes.roots]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
