"""`alphadrive stack`: where every process of a live run stands, for the day something hangs.

0   every process could be looked at
1   some could not (each says why), or the run is not live
2   no such run, or no such worker
"""

import argparse
import textwrap
from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.stack_client import Standing
    from cluster.stacks import StackDump


def add_stack_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `stack`; it sets `run`, a function of the parsed arguments."""
    text = "where the threads of every process of a live run stand, on whichever node it is (py-spy)"
    parser = subparsers.add_parser(
        "stack",
        help=text,
        description=f"{text}. Neither pauses the run for longer than a moment nor needs it to answer.",
        epilog="example: alphadrive stack runs/first --worker engine-0",
    )
    parser.add_argument(
        "run_or_folder",
        metavar="RUN",
        help="the folder of a run, its name below runs/, or with --address its name on that cluster",
    )
    parser.add_argument("--worker", metavar="ID", help="only this one: driver, rank-0, engine-0, w0, …")
    parser.add_argument(
        "--address",
        metavar="A",
        help="Ray's address, host:port or ray://host:port (default: what the run's cluster.json says)",
    )
    parser.set_defaults(run=run_stack)


def run_stack(args: argparse.Namespace) -> int:
    """Print where every process stands; returns the exit code.

    Raises RunFolderError when there is no such run, RunNotLiveError when it is over.
    """
    from cluster.run_client import find_run
    from cluster.stack_client import look

    with ExitStack() as stack:
        standings, notes = look(find_run(args.run_or_folder, args.address), args.worker, stack)
        for note in notes:
            print(f"note: {note}\n")
        print("\n\n".join(standing_text(standing) for standing in standings), flush=True)
    return 0 if all(standing.is_seen for standing in standings) else 1


def standing_text(standing: "Standing") -> str:
    """A worker with all its processes, as text."""
    target = standing.target
    pid = f"  pid {target.pid}" if target.pid is not None else ""
    where = f"  {standing.where}" if standing.where else ""
    lines = [f"== {target.id} ({target.kind}){pid}{where}"]
    if standing.note:
        lines.append(f"  {standing.note}")
    for dump in standing.dumps:
        lines += _dump_lines(dump, is_child=dump.pid != target.pid)
    return "\n".join(lines)


def _dump_lines(dump: "StackDump", is_child: bool) -> list[str]:
    indent = "    " if is_child else "  "
    lines = [f"  -- its process {dump.pid} {dump.title}".rstrip()] if is_child else []
    if dump.note:
        lines.append(f"{indent}! {dump.note}")
    if dump.stack:
        lines.append(textwrap.indent(dump.stack, indent))
    return lines
