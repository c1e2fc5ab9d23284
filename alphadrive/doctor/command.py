"""`alphadrive doctor`: all checks at once, in one table.

0   nothing is wrong, or there are warnings only
1   something has to be mended first
2   the configuration itself is wrong
"""

import argparse
import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alphadrive.config import Config


def add_doctor_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `doctor`; it sets `run`, a function of the parsed arguments."""
    text = "whether this machine has what a run needs, with a remedy for what is missing"
    parser = subparsers.add_parser(
        "doctor",
        help=text,
        description=f"{text}. With CONFIG, disk and shared memory are compared with what its run needs.",
        epilog="example: alphadrive doctor qwen2vl_2b_8gpu run.root=/shared/runs --address head:6379",
    )
    parser.add_argument(
        "config", metavar="CONFIG", nargs="?", help="a YAML file, or the name of a shipped one"
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="override a key, as run.root=/data")
    parser.add_argument(
        "--address",
        metavar="A",
        help="Ray to reach: host:6379, ray://host:10001 or http://host:8265 (default: RAY_ADDRESS)",
    )
    parser.add_argument("--json", action="store_true", help="a list of checks, for machines")
    parser.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    """Print the table; returns the exit code. Raises ConfigError for a wrong configuration."""
    from alphadrive.doctor.check import Status, summary_text, table_text
    from alphadrive.doctor.checkup import all_checks

    checks = all_checks(_config(args), args.address or os.environ.get("RAY_ADDRESS"))
    if args.json:
        print(json.dumps([check.as_fields() for check in checks], indent=2))
    else:
        print(f"{table_text(checks)}\n\n{summary_text(checks)}")
    return int(any(check.status is Status.FAIL for check in checks))


def _config(args: argparse.Namespace) -> "Config":
    from alphadrive.config import default_config, load_config

    words = [args.config, *args.overrides] if args.config else args.overrides
    if words and "=" not in words[0]:
        return load_config(words[0], words[1:])
    return default_config(words)
