"""Whether, and when, a run is as it was before a fault.

Recovered is a run of which all of this holds:

    its driver lives and its status, written after the fault, says that it trains
    as many workers serve as are wanted, and no node is missing
    what the fault hit is gone, and there are no more engine processes than engines
    it has made a step since
"""

import time
from dataclasses import dataclass

from chaos_faults import Injected, engine_cores, leftovers
from chaos_run import RunUnderTest

POLL_S = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How a fault ended. `seconds` is None where it did not, and `missing` says what it lacked."""

    kind: str
    victim: str
    at_s: float
    seconds: float | None
    missing: str = ""

    def line(self) -> str:
        """For the log."""
        how = f"recovered in {self.seconds:.1f} s" if self.seconds is not None else f"NOT: {self.missing}"
        return f"{self.at_s:7.1f} s  {self.kind:<18}  {self.victim}: {how}"


@dataclass(frozen=True, slots=True)
class Mark:
    """Where the run was when the fault was done."""

    unix_s: float
    attempt: int
    step: int

    @classmethod
    def of(cls, run: RunUnderTest) -> "Mark":
        """Now."""
        status = run.status()
        return cls(time.time(), status["attempt"], status["step"])


def wait_for_recovery(run: RunUnderTest, injected: Injected, mark: Mark, cap_s: float) -> str:
    """Wait until the run has recovered; empty, or what it lacks after `cap_s`, or at once where its driver
    has ended by itself."""
    while missing := what_is_missing(run, injected, mark):
        run.nodes.tend()
        if run.driver.poll() is not None:
            return f"the driver ended with {run.driver.returncode}"
        if time.time() - mark.unix_s > cap_s:
            return missing
        time.sleep(POLL_S)
    return ""


def what_is_missing(run: RunUnderTest, injected: Injected, mark: Mark) -> str:
    """The first thing that a run lacks to be as before; empty when it has recovered."""
    status = run.status()
    if status.get("updated_s", 0.0) <= mark.unix_s or status["status"] != "running":
        return f"it does not say that it runs: {status.get('status')}"
    if not run.nodes.is_whole:
        return "a node is missing"
    if not run.is_staffed(status):
        return f"workers are missing: {status.get('pending')}"
    if not has_stepped(status, mark):
        return f"no step since the fault, at step {status['step']} of attempt {status['attempt']}"
    if left := leftovers(injected):
        return f"processes of the fault are left: {sorted(process.pid for process in left)}"
    cores = engine_cores()
    if len(cores) > run.size.engines:
        return f"more engine processes than engines: {sorted(process.pid for process in cores)}"
    return ""


def has_stepped(status: dict[str, object], mark: Mark) -> bool:
    """Whether a step was made since, in an attempt that began from an earlier step perhaps."""
    attempt, step = status["attempt"], status["step"]
    if attempt == mark.attempt:
        return bool(step > mark.step)  # type: ignore[operator]
    attempts: list[dict[str, int]] = status["attempts"]  # type: ignore[assignment]
    return bool(step > attempts[-1]["from_step"])  # type: ignore[operator]
