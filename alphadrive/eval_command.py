"""`alphadrive eval MODEL DATA`: the arguments, and the way from them to a table and two files.

The work is in `alphadrive.engine_evaluation`, imported only when the command runs.
"""

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from alphadrive.config import Config, DataConfig, EvalConfig, GrpoConfig, ModelConfig, RolloutConfig

if TYPE_CHECKING:
    from alphadrive.engine_evaluation import EvalOptions

IMAGE_MODES = ("real", "blank", "shuffle")
_NVIDIA_DEVICE = Path("/dev/nvidiactl")


def add_eval_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `eval`; it sets `run`, a function of the parsed arguments."""
    parser = subparsers.add_parser(
        "eval",
        help="planning accuracy of a model on a dataset (greedy, strict parse)",
        description="Answer every row greedily on a vLLM engine and judge the answers strictly.",
        epilog="example: alphadrive eval runs/demo data/demo/eval --max-pixels 25088 --samples 8",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a run, a checkpoint, a model folder, 'tiny', or a hub id"
    )
    parser.add_argument("data", metavar="DATA", type=Path, help="a folder of Parquet shards")
    parser.add_argument("--revision", metavar="COMMIT", help="the commit of a hub id")
    parser.add_argument("--num-rows", type=int, metavar="N", help="only the first N rows")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write eval.json and predictions.jsonl here")
    parser.add_argument(
        "--samples", type=int, default=0, metavar="K", help="also draw K answers a row: pass@K (default: 0)"
    )
    parser.add_argument(
        "--sample-rows", type=int, metavar="N", help="draw them for the first N rows only (default: all)"
    )
    parser.add_argument(
        "--image",
        choices=IMAGE_MODES,
        action="append",
        help="control: a grey image, or that of another row; may be repeated (default: real)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of samples and shuffle (default: 0)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is an NVIDIA GPU"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on cuda")
    for name, default, words in (
        ("max-pixels", ModelConfig.max_pixels, "images are scaled down to this"),
        ("max-new-tokens", GrpoConfig.max_new_tokens, "longest answer"),
        ("max-num-seqs", RolloutConfig.max_num_seqs, "answers drawn at once"),
        ("max-model-len", RolloutConfig.max_model_len, "prompt, image and answer"),
        ("kv-cache-bytes", RolloutConfig.kv_cache_bytes, "KV cache on CPU"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{words} (default: {default})"
        )
    parser.set_defaults(run=run_eval)


def run_eval(args: argparse.Namespace) -> int:
    """Run `alphadrive eval` from parsed arguments."""
    from alphadrive.data.parquet import DrivingDataset
    from alphadrive.engine_evaluation import EvalOptions, evaluate_model, majority_of, write_eval
    from alphadrive.eval_table import answer_progress, print_eval
    from alphadrive.preflight import check_run

    device = args.device or ("cuda" if _NVIDIA_DEVICE.exists() else "cpu")
    options = EvalOptions(
        model=args.model,
        data=args.data,
        revision=args.revision,
        num_rows=args.num_rows,
        samples=args.samples,
        sample_rows=args.sample_rows,
        images=tuple(dict.fromkeys(args.image or IMAGE_MODES[:1])),
        seed=args.seed,
        device=device,
        dtype=args.dtype or ("bfloat16" if device == "cuda" else "float32"),
        max_pixels=args.max_pixels,
        max_new_tokens=args.max_new_tokens,
        max_num_seqs=args.max_num_seqs,
        max_model_len=args.max_model_len,
        kv_cache_bytes=args.kv_cache_bytes,
    )
    check_run(_as_config(options), "eval")
    num_rows = len(DrivingDataset(options.data, options.num_rows))
    sampled_rows = min(num_rows, options.sample_rows or num_rows) if options.samples else 0
    with answer_progress((num_rows + sampled_rows) * len(options.images)) as on_answer:
        reports = asyncio.run(evaluate_model(options, on_answer))
    print_eval(options, reports, majority_of(options))
    if args.out is not None:
        write_eval(args.out, options, reports)
        print(f"wrote {args.out / 'eval.json'} and {args.out / 'predictions.jsonl'}")
    return 0


def _as_config(options: "EvalOptions") -> Config:
    """The options as the configuration that the checks before a start take."""
    return Config(
        model=ModelConfig(
            path=options.model,
            revision=options.revision,
            max_pixels=options.max_pixels,
            dtype=options.dtype,
        ),
        data=DataConfig(eval=str(options.data)),
        grpo=GrpoConfig(max_new_tokens=options.max_new_tokens),
        rollout=RolloutConfig(
            max_num_seqs=options.max_num_seqs,
            max_model_len=options.max_model_len,
            kv_cache_bytes=options.kv_cache_bytes,
            gpus_per_worker=float(options.device == "cuda"),
        ),
        eval=EvalConfig(num_rows=options.num_rows),
    )
