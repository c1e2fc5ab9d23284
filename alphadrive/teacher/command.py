"""`alphadrive distill DATA --out DIR`: the arguments, and the way from them to a line of figures.

The work is in `alphadrive.teacher.distill`, imported only when the command runs.
"""

import argparse
from pathlib import Path
from typing import Any

from alphadrive.teacher.settings import (
    DEFAULT_BASE_URL,
    DEFAULT_CONCURRENCY,
    DEFAULT_MAX_ANSWER_TOKENS,
    DEFAULT_REQUEST_TIMEOUT_S,
    MAX_ASKS,
    REJECTED_FILE,
    DistillSettings,
)

_DESCRIPTION = f"""\
Ask a large model, for each row that has no reasoning, why the recorded plan is right, and write the rows
whose answer passes the checks as a new dataset. Each answer is kept in DIR/answers.jsonl: the same command
again goes on where it stopped and pays for nothing twice. After a refused answer the row is asked for
again, {MAX_ASKS} times in all. The key is read from the environment and written nowhere."""


def add_distill_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `distill`; it sets `run`, a function of the parsed arguments."""
    parser = subparsers.add_parser(
        "distill",
        help="reasoning for a dataset from a large model behind an OpenAI-compatible endpoint",
        description=_DESCRIPTION,
        epilog="example: alphadrive distill data/metaad --out data/metaad-cot --model gpt-4o --num-rows 100",
    )
    parser.add_argument("data", metavar="DATA", type=Path, help="a folder of Parquet shards")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the new dataset")
    parser.add_argument("--model", required=True, metavar="NAME", help="as the endpoint calls it")
    parser.add_argument(
        "--base-url", default=DEFAULT_BASE_URL, metavar="URL", help="of the endpoint (default: %(default)s)"
    )
    parser.add_argument(
        "--api-key-env",
        metavar="NAME",
        help="the environment variable that holds the key (default: OPENAI_API_KEY, which may be unset)",
    )
    parser.add_argument("--num-rows", type=int, metavar="N", help="only the first N rows")
    parser.add_argument(
        "--replace", action="store_true", help="also ask for rows that have a reasoning (default: kept)"
    )
    parser.add_argument(
        "--check-visible",
        action="store_true",
        help="ask a second time whether each object named is visible; about twice the tokens",
    )
    parser.add_argument(
        "--max-tokens-total",
        type=int,
        metavar="N",
        help="stop before the prompt and completion tokens of all runs on DIR pass N (default: no cap)",
    )
    for name, default, words in (
        ("concurrency", DEFAULT_CONCURRENCY, "requests at once, fewer when the endpoint asks to slow down"),
        ("max-answer-tokens", DEFAULT_MAX_ANSWER_TOKENS, "longest answer, hidden thinking included"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{words} (default: {default})"
        )
    parser.add_argument(
        "--request-timeout",
        type=float,
        default=DEFAULT_REQUEST_TIMEOUT_S,
        metavar="S",
        help="deadline of one request in seconds (default: %(default)g)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, count what would be asked, ask nothing",
    )
    parser.set_defaults(run=run_distill)


def run_distill(args: argparse.Namespace) -> int:
    """Run `alphadrive distill` from parsed arguments."""
    from alphadrive.teacher.api_key import ApiKey
    from alphadrive.teacher.distill import distill, rows_to_ask

    settings = DistillSettings(
        data=args.data,
        out=args.out,
        model=args.model,
        base_url=args.base_url,
        concurrency=args.concurrency,
        max_tokens_total=args.max_tokens_total,
        max_answer_tokens=args.max_answer_tokens,
        request_timeout_s=args.request_timeout,
        num_rows=args.num_rows,
        replace=args.replace,
        check_visible=args.check_visible,
    )
    key = ApiKey.from_environment(args.api_key_env)
    if args.dry_run:
        dataset, rows = rows_to_ask(settings)
        print(f"{args.out}: {args.model} at {args.base_url} would explain {len(rows)} of {len(dataset)} rows")
        passes = " and as many about what is visible" if args.check_visible else ""
        print(f"  {len(rows):,} requests when every answer passes, {MAX_ASKS * len(rows):,} at most{passes};")
        print(
            f"  {args.max_answer_tokens} tokens an answer at most; answers kept there are not asked for again"
        )
        print(f"  {key.variable} is {key.state}")
        return 0
    _print_summary(args.out, distill(settings, key))
    return 0


def _print_summary(out: Path, summary: dict[str, Any]) -> None:
    accepted, kept = summary["num_accepted"], summary["num_kept"]
    print(f"{out}: {summary['num_written']} rows written, {accepted} explained and {kept} kept as they were")
    print(f"  rejected {summary['num_rejected']}, without an answer {summary['num_unanswered']}", end="")
    print(f" (see {out / REJECTED_FILE}), left {summary['num_left']}")
    prompt, completion = summary["prompt_tokens"], summary["completion_tokens"]
    print(f"  tokens: {prompt:,} prompt + {completion:,} completion in all runs on this folder", end="")
    print(f", {summary['tokens_this_run']:,} of them now, in {summary['requests_sent']} requests")
    if summary["status"] == "capped":
        print("  --max-tokens-total is reached; the same command with a higher one goes on")
    if summary["status"] == "partial":
        print("  the same command asks again for the rows without an answer")
