"""`alphadrive status`, `scale` and `stop`: looking at a live run, changing it, ending it, from anywhere.

    0   done; for `stop`: the run has ended, with a checkpoint of its last step
    1   the run is not live, or did not end so
    2   no such run, or something that cannot be asked of it

They reach the run through its control actor (`cluster.run_client`), wherever the cluster can be reached.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from alphadrive.errors import ClusterError, InputError, RunNotLiveError
from alphadrive.run_status import Status, pending_lines, status_text, workers_text

if TYPE_CHECKING:
    from cluster.run_client import LiveRun, RunPlace

MAX_WORKERS = 1000
"""More is taken for a slip."""
APPLY_TIMEOUT_S = 15.0
END_TIMEOUT_S = 180.0
POLL_S = 0.3

_RUN_HELP = "the folder of a run, its name below runs/, or with --address its name on that cluster"
_ADDRESS_HELP = "Ray's address, host:port or ray://host:port (default: what the run's cluster.json says)"


def add_run_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `status`, `scale` and `stop`; each sets `run`, a function of the parsed arguments."""
    status = _add(
        subparsers, "status", run_status, "how a live run is: steps, throughput, every worker", "runs/first"
    )
    status.add_argument("--json", action="store_true", help="for machines; the keys are in docs/operating.md")
    scale = _add(
        subparsers,
        "scale",
        run_scale,
        "change the number of workers of a live grpo run",
        "runs/first --rollout-workers 4 --wait",
    )
    for kind in ("rollout", "reward"):
        scale.add_argument(
            f"--{kind}-workers", type=_num_workers, metavar="N", help=f"how many {kind} workers to have"
        )
    scale.add_argument("--wait", action="store_true", help="return once so many workers serve")
    stop = _add(subparsers, "stop", run_stop, "end a live run with a checkpoint", "runs/first")
    stop.add_argument("--no-wait", action="store_true", help="ask for the end only")


def run_status(args: argparse.Namespace) -> int:
    """Print the status of a run: a live run's own, else what its `status.json` says.

    Raises RunFolderError when there is no such run, RunNotLiveError or ClusterError when it is known by its
    name only and cannot be asked.
    """
    from cluster.run_client import driver_has_died, find_run, live_run
    from cluster.status import ENDED, read_status

    place = find_run(args.run_or_folder, args.address)
    try:
        with live_run(place) as live:
            status = live.status() | {"live": True}
    except (RunNotLiveError, ClusterError) as error:
        if place.folder is None:
            raise
        note = str(error).removeprefix(f"{place}: ")
        status = read_status(place.folder) | {"live": False, "note": note}
        if status["status"] not in ENDED and driver_has_died(place):
            status["status"] = "crashed"
    print(json.dumps(status, indent=2) if args.json else status_text(str(place), status, time.time()))
    return 0


def run_scale(args: argparse.Namespace) -> int:
    """Ask for other numbers of workers and say what is pending.

    Raises InputError for what no run or not this one can be asked, RunNotLiveError when it is not live.
    """
    from cluster.run_client import find_run, live_run

    wanted = {"rollout": args.rollout_workers, "reward": args.reward_workers}
    wanted = {kind: count for kind, count in wanted.items() if count is not None}
    if not wanted:
        raise InputError("scale: nothing asked for; give --rollout-workers N, --reward-workers M or both")
    place = find_run(args.run_or_folder, args.address)
    with live_run(place) as live:
        before = live.status()
        if before["stage"] != "grpo":
            raise InputError(
                f"{place}: a run of stage {before['stage']} has no rollout or reward workers; its learner "
                "ranks cannot be changed while it runs"
            )
        live.scale(args.rollout_workers, args.reward_workers)
        if "rollout" in wanted and (before.get("autoscale") or {}).get("is_on"):
            print(f"{place}: rollout.autoscale is set aside until the end of the run")
        status = _wait_until(live, lambda status: _is_applied(status, wanted), APPLY_TIMEOUT_S)
        _say_scaled(place, before, status, wanted)
        if args.wait:
            _wait_until_served(place, live, wanted, status)
    return 0


def run_stop(args: argparse.Namespace) -> int:
    """End a run with a checkpoint, wait for its end, say what came of it.

    Raises RunNotLiveError when it is not live.
    """
    from cluster.run_client import driver_has_died, find_run, live_run

    place = find_run(args.run_or_folder, args.address)
    with live_run(place) as live:
        status = live.status()
        live.stop()
        if status["status"] == "running":
            print(f"{place}: asked to end after the step under way ({status['step'] + 1}) and its checkpoint")
        else:
            print(f"{place}: asked to end; it is {status['status']}")
        if args.no_wait:
            return 0
        sys.stdout.flush()
        last = live.wait_for_end(lambda: driver_has_died(place))
    if place.folder is not None:
        last = _last_status(place) or last
    return _say_end(place, last)


def _add(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    command: Callable[[argparse.Namespace], int],
    help_text: str,
    example: str,
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        name, help=help_text, description=f"{help_text}.", epilog=f"example: alphadrive {name} {example}"
    )
    parser.add_argument("run_or_folder", metavar="RUN", help=_RUN_HELP)
    parser.add_argument("--address", metavar="A", help=_ADDRESS_HELP)
    parser.set_defaults(run=command)
    return parser


def _num_workers(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 to {MAX_WORKERS}")
    return int(text)


def _is_applied(status: Status, wanted: dict[str, int]) -> bool:
    now = status.get("wanted", {})
    return all(now.get(kind) == count for kind, count in wanted.items())


def _wait_until(live: "LiveRun", condition: Callable[[Status], bool], timeout_s: float) -> Status:
    """Poll until the condition holds or the time is over; returns the last status."""
    deadline_s = time.monotonic() + timeout_s
    while not condition(status := live.status()) and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
    return status


def _say_scaled(place: "RunPlace", before: Status, status: Status, wanted: dict[str, int]) -> None:
    if not _is_applied(status, wanted):
        print(f"{place}: asked for; the run is {status['status']} and does it once it trains")
        return
    for kind, count in wanted.items():
        print(f"{place}: {kind} workers {before['wanted'][kind]} -> {count}")
    _say_pending(status)


def _say_pending(status: Status) -> None:
    for line in pending_lines(status):
        print(f"  {line}")


def _wait_until_served(place: "RunPlace", live: "LiveRun", wanted: dict[str, int], status: Status) -> None:
    """Return once nothing is pending; `status` is the one shown last. Raises RunNotLiveError when the run
    ends, InputError when somebody else asked for other numbers meanwhile."""
    while not _is_applied(status, wanted) or status["pending"]:
        sys.stdout.flush()
        time.sleep(POLL_S)
        before, status = status, live.status()
        if _is_applied(before, wanted) and not _is_applied(status, wanted):
            raise InputError(f"{place}: somebody else asked for other numbers meanwhile: {status['wanted']}")
        if pending_lines(status) != pending_lines(before):
            _say_pending(status)
    for kind, count in wanted.items():
        print(f"{place}: {workers_text(count, kind)} serving")


def _last_status(place: "RunPlace") -> Status | None:
    """What a run that ends writes last, once it has: its processes are gone by then."""
    from cluster.run_client import driver_has_died
    from cluster.status import ENDED, read_status

    assert place.folder is not None
    deadline_s = time.monotonic() + END_TIMEOUT_S
    while time.monotonic() < deadline_s:
        has_died = driver_has_died(place)
        status = read_status(place.folder)
        if status["status"] in ENDED or has_died:
            return status
        time.sleep(POLL_S)
    return None


def _say_end(place: "RunPlace", last: Status) -> int:
    """Say how a run ended; returns the exit code."""
    from cluster.status import ENDED

    if last.get("status") not in ENDED:
        print(f"{place}: gone without an orderly end; --resume goes on from its newest checkpoint")
        return 1
    reason = f" ({last['reason']})" if last.get("reason") else ""
    ended = f"{place}: {last['status']}{reason} after step {last['step']} of {last['steps']}"
    saved = last.get("checkpoint_step")
    if saved is not None and saved == last["step"]:
        further = "" if last["status"] == "finished" else "; the same command with --resume goes on from it"
        print(f"{ended}, with a checkpoint{further}")
        return 1 if last["status"] == "failed" else 0
    newest = f"the newest is of step {saved}" if saved is not None else "there is none"
    print(f"{ended}, without a checkpoint of that step: {newest}")
    return 1
