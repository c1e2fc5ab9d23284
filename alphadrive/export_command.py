"""`alphadrive export RUN --out DIR`: the policy of a run's checkpoint, as a model folder for use elsewhere.

    RUN/checkpoints/step_000120/model/  ──(verified, converted)──▶  .DIR.partial/  ──rename──▶  DIR/

A checkpoint's model folder already is what an engine loads; this adds the choice of a dtype, a whole copy
that no later checkpoint removes, and a folder that is there completely or not at all.
"""

import argparse
import os
import shutil
from pathlib import Path

from alphadrive.atomic import fsync_path
from alphadrive.capacity import check_room, gib
from alphadrive.checkpoints import Checkpoint, CheckpointStore
from alphadrive.errors import RunFolderError
from alphadrive.manifest import verify
from alphadrive.model_folder import num_parameters

_DTYPE_BYTES = {"bfloat16": 2, "float32": 4}
_OTHER_FILES_BYTES = 32 << 20
"""Tokenizer, processor and configuration files, rounded up."""


def add_export_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `export`; it sets `run`, a function of the parsed arguments."""
    parser = subparsers.add_parser(
        "export",
        help="the policy of a run, as a model folder for use elsewhere",
        description="Write the policy of a run's newest checkpoint as a model folder that from_pretrained "
        "and vLLM load: safetensors, configuration, tokenizer, processor.",
        epilog="example: alphadrive export runs/demo-grpo --out my-planner",
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the folder of an sft or grpo run")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the model")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of step N, not the newest")
    parser.add_argument(
        "--dtype", choices=sorted(_DTYPE_BYTES), default="bfloat16", help="of the weights (default: bfloat16)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model folder at DIR")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, say what it would hold, write nothing"
    )
    parser.set_defaults(run=run_export)


def run_export(args: argparse.Namespace) -> int:
    """Write the model folder and say what it holds.

    Raises RunFolderError for a run without that checkpoint or a DIR that must not be replaced,
    ResourceError when the disk is too small, CheckpointError when the checkpoint is damaged.
    """
    out = args.out.absolute()
    _refuse_existing(out, args.overwrite)
    checkpoint = _checkpoint_of(args.run_folder, args.step)
    parameters = num_parameters(checkpoint.model_path)
    num_bytes = parameters * _DTYPE_BYTES[args.dtype]
    check_room(out, num_bytes + _OTHER_FILES_BYTES)
    words = (
        f"{args.out}: the policy of {args.run_folder}, step {checkpoint.step}: {parameters:,} parameters, "
        f"{args.dtype}, {gib(num_bytes)}"
    )
    if args.dry_run:
        print(f"{words} (not written)")
        return 0

    from learner.export import convert_model_folder

    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        convert_model_folder(checkpoint.model_path, partial, args.dtype)
        for path in partial.iterdir():
            fsync_path(path)
        _put_in_place(partial, out)
    except OSError as error:
        raise RunFolderError(f"{out}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(words)
    return 0


def _refuse_existing(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise RunFolderError(f"{out}: exists; replace it by --overwrite, or choose another --out")
    if not (out / "config.json").is_file() or not (out / "model.safetensors").is_file():
        raise RunFolderError(f"{out}: exists, but is no model folder that was exported; choose another --out")


def _checkpoint_of(run: Path, step: int | None) -> Checkpoint:
    if not (run / "checkpoints").is_dir():
        raise RunFolderError(f"{run}: no checkpoints in it; expected the folder of an sft or grpo run")
    store = CheckpointStore(run / "checkpoints")
    committed = {checkpoint.step: checkpoint for checkpoint in store.all()}
    if not committed:
        raise RunFolderError(f"{run}: this run has no checkpoint yet")
    if step is None:
        newest = store.latest()
        assert newest is not None, "there are checkpoints, and all damaged is an error of its own"
        return newest
    if step not in committed:
        steps = ", ".join(map(str, committed))
        raise RunFolderError(f"{run}: no checkpoint of step {step}; there are those of {steps}")
    verify(committed[step].path)
    return committed[step]


def _put_in_place(partial: Path, out: Path) -> None:
    """Rename `partial` to `out`; what was there goes once it is replaced."""
    replaced = out.with_name(f".{out.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        os.rename(out, replaced)
    os.rename(partial, out)
    fsync_path(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)
