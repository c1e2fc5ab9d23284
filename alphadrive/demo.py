"""`alphadrive demo`: the whole main job on two CPU cores, and the controls its gain is held against.

    scenes (cached) ─▶ SFT on a quarter of them ─▶ eval ─▶ GRPO on all ─▶ eval ─▶ runs/demo/summary.json

Every stage is the command a user would type, run as a process of its own; this file only strings
them together, measures, and compares. `--controls` starts from the same SFT checkpoint and asks
what else could explain the gain.
"""

import argparse
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from alphadrive.atomic import write_json
from alphadrive.config import Config, load_config
from alphadrive.errors import AlphaDriveError, DataError, RunFolderError
from alphadrive.metrics.statistics import paired_difference
from alphadrive.report import write_report

CONFIG = "demo"
NUM_TRAIN, NUM_EVAL = 6000, 1000
SFT_SHARE = 0.25
PASS_AT = ("--samples=8", "--sample-rows=400")
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SFT_RANKS = "learner.num_ranks=2"
"""SFT has both cores for itself; in GRPO the engine has one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPaths:
    """Where the demo of one seed keeps its things."""

    data: Path
    run: Path
    sft: Path

    @classmethod
    def of(cls, seed: int) -> "DemoPaths":
        """`runs/demo` for seed 0, `runs/demo-seed1` for seed 1, and so on."""
        name = "demo" if seed == 0 else f"demo-seed{seed}"
        return cls(data=Path("data") / name, run=Path("runs") / name, sft=Path("runs") / f"{name}-sft")


def overrides_of(paths: DemoPaths, name: str, seed: int) -> list[str]:
    """What makes the shipped configuration that of the run `name` of a seed."""
    data = [f"data.train={paths.data}/train", f"data.eval={paths.data}/eval"]
    return [f"run.name={name}", f"seed={seed}", *data]


def run_demo(args: argparse.Namespace) -> None:
    """Run the demo, or with `--controls` the controls beside a finished demo. Raises
    AlphaDriveError when a stage fails; its own message is on the screen by then."""
    paths = DemoPaths.of(args.seed)
    if args.controls:
        _run_controls(paths, args.seed)
    else:
        _run_main_job(paths, args.seed)


def _run_main_job(paths: DemoPaths, seed: int) -> None:
    from cluster.processes import ProcessTree

    config = load_config(CONFIG)
    seconds: dict[str, float] = {}
    with ProcessTree() as tree:
        with _timed(seconds, "data"):
            _make_data(paths, seed)
        with _timed(seconds, "sft"):
            rows = int(NUM_TRAIN * SFT_SHARE)
            _train("sft", paths, paths.sft.name, seed, f"data.num_rows={rows}", SFT_RANKS)
        with _timed(seconds, "eval"):
            sft = _evaluate(config, paths.sft, paths, "eval-sft", *PASS_AT)
        with _timed(seconds, "grpo"):
            _train("grpo", paths, paths.run.name, seed, f"model.path={paths.sft}")
        with _timed(seconds, "eval"):
            grpo = _evaluate(config, paths.run, paths, "eval-grpo", *PASS_AT)
    seconds["total"] = sum(seconds.values())
    summary = _read_json(paths.run / "summary.json")
    gain, interval = paired_difference(sft.correct, grpo.correct, seed)
    summary["sft"] = sft.figures() | {"samples": config.sft.steps * config.sft.batch_size}
    summary.setdefault("grpo", {}).update(grpo.figures() | {"gain": gain, "gain_ci95": list(interval)})
    summary["majority"] = sft.majority
    summary["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
    summary["peak_rss_bytes"] = tree.peak_bytes
    summary["seed"] = seed
    write_json(paths.run / "summary.json", summary)
    write_report(paths.run)
    _print_demo(summary, paths)


def _run_controls(paths: DemoPaths, seed: int) -> None:
    if not (paths.run / "eval-grpo" / "eval.json").is_file():
        raise RunFolderError(f"{paths.run}: no finished demo here; run `make demo` first (seed {seed})")
    config = load_config(CONFIG)
    summary = _read_json(paths.run / "summary.json")
    sft_run = _read_json(paths.sft / "summary.json")
    grpo_prompts = summary["grpo"]["samples"] // config.grpo.group_size
    sft_rate = sft_run["sft"]["samples_per_s"]
    equal_prompts = math.ceil(grpo_prompts / config.sft.batch_size)
    equal_time = max(1, round(summary["grpo"]["loop_seconds"] * sft_rate / config.sft.batch_size))
    baseline = _read_eval(paths.sft / "eval-sft")
    controls: dict[str, Any] = {}

    def trained(name: str, stage: str, *overrides: str) -> None:
        run_name = f"{paths.run.name}-{name}"
        _train(stage, paths, run_name, seed, f"model.path={paths.sft}", *overrides)
        outcome = _evaluate(config, paths.run.with_name(run_name), paths, f"eval-{name}")
        difference, interval = paired_difference(baseline.correct, outcome.correct, seed)
        samples = _read_json(paths.run.with_name(run_name) / "summary.json")[stage]["samples"]
        gained = {"gain": difference, "gain_ci95": list(interval), "samples": samples}
        controls[name] = outcome.figures() | gained

    for name, steps, target in (
        ("sft-equal-prompts", equal_prompts, "teacher"),
        ("sft-equal-time", equal_time, "teacher"),
        ("sft-recorded", equal_time, "recorded"),
    ):
        overrides = (f"sft.steps={steps}", f"sft.target={target}", SFT_RANKS)
        trained(name, "sft", *overrides)
    trained("random-reward", "grpo", "rewards.variant=random")
    _evaluate(config, paths.run, paths, "eval-ablated", "--ablate=image=blank|shuffle")
    for image in ("blank", "shuffle"):
        controls[f"{image}-image"] = _ablated(paths.run / "eval-ablated", f"image={image}", baseline, seed)
    controls["majority"] = {"planning_accuracy": baseline.majority}
    write_json(paths.run / "controls.json", controls)
    _print_controls(summary, controls, paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What `alphadrive eval` wrote: the accuracy figures and a 1.0 or 0.0 for each scene."""

    strict: dict[str, Any]
    samples: dict[str, Any] | None
    majority: float
    correct: list[float]

    def figures(self) -> dict[str, Any]:
        """What goes into a summary."""
        kept = ("planning_accuracy", "planning_accuracy_ci95", "invalid_rate", "macro_f1", "num_rows")
        figures = {name: self.strict[name] for name in kept}
        if self.samples:
            figures["pass_at_8"] = self.samples["pass_at"]["8"]
            figures["pass_at_8_rows"] = self.samples["num_rows"]
        return figures


def _read_eval(folder: Path) -> _Outcome:
    content = _read_json(folder / "eval.json")
    return _Outcome(
        strict=content,
        samples=content.get("samples"),
        majority=content["majority"]["planning_accuracy"],
        correct=_correct(folder / "predictions.jsonl"),
    )


def _correct(predictions: Path) -> list[float]:
    lines = predictions.read_text().splitlines()
    return [float(json.loads(line)["is_acceptable"]) for line in lines]


def _ablated(folder: Path, name: str, baseline: _Outcome, seed: int) -> dict[str, Any]:
    """The figures of an ablation, its gain over the SFT checkpoint as for every other control."""
    figures = _read_json(folder / "eval.json")["ablations"][name]
    correct = _correct(folder / f"predictions-{name.replace('=', '-')}.jsonl")
    difference, interval = paired_difference(baseline.correct, correct, seed)
    kept = ("planning_accuracy", "planning_accuracy_ci95", "invalid_rate", "num_rows")
    return {key: figures[key] for key in kept} | {"gain": difference, "gain_ci95": list(interval)}


def _make_data(paths: DemoPaths, seed: int) -> None:
    for split, count in (("train", NUM_TRAIN), ("eval", NUM_EVAL)):
        folder = paths.data / split
        if not _is_made(folder, count, f"world-{split}-{seed}-000000"):
            _command(
                "data", "synth", f"--out={folder}", f"--num={count}", f"--seed={seed}", f"--split={split}"
            )


def _is_made(folder: Path, count: int, first_id: str) -> bool:
    """Whether the scenes are there from an earlier run. Raises DataError for a folder that is damaged or
    holds anything else, for example the scenes of another version of the world."""
    from alphadrive.data.parquet import DrivingDataset
    from alphadrive.world.dataset import SOURCE

    if not any(folder.glob("*.parquet")):
        return False
    dataset = DrivingDataset(folder)
    first = dataset.record(0)
    found, expected = (len(dataset), first.query_id, first.source), (count, first_id, SOURCE)
    if found != expected:
        raise DataError(f"{folder}: holds (rows, first id, source) {found}, expected {expected}; remove it")
    return True


def _train(stage: str, paths: DemoPaths, name: str, seed: int, *overrides: str) -> None:
    _command(stage, CONFIG, "--overwrite", *overrides_of(paths, name, seed), *overrides)


def _evaluate(config: Config, model: Path, paths: DemoPaths, name: str, *options: str) -> _Outcome:
    folder = paths.run / name
    if name == "eval-sft":
        folder = paths.sft / name
    _command(
        "eval",
        str(model),
        str(paths.data / "eval"),
        f"--out={folder}",
        f"--max-pixels={config.model.max_pixels}",
        f"--max-new-tokens={config.grpo.max_new_tokens}",
        f"--max-num-seqs={config.rollout.max_num_seqs}",
        f"--max-model-len={config.rollout.max_model_len}",
        *options,
    )
    return _read_eval(folder)


def _command(*arguments: str) -> None:
    """Run an `alphadrive` command as a process of its own, its output on this screen."""
    shown = f"alphadrive {' '.join(arguments)}"
    print(f"\n$ {shown}", flush=True)
    # A process group of its own: Ctrl-C reaches this process alone, which passes it on once and waits for
    # the orderly end (subprocess.run would kill the command a quarter of a second later).
    process = subprocess.Popen([sys.executable, "-m", "alphadrive.cli", *arguments], process_group=0)
    before = {
        number: signal.signal(number, lambda *_: process.send_signal(signal.SIGINT)) for number in STOPPING
    }
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise AlphaDriveError(f"`{shown}` ended with exit code {code}; see above")


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started_s = time.monotonic()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.monotonic() - started_s


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _points(value: float) -> str:
    return f"{100 * value:.1f} %"


def _print_demo(summary: dict[str, Any], paths: DemoPaths) -> None:
    sft, grpo = summary["sft"], summary["grpo"]
    low, high = grpo["gain_ci95"]
    table = Table(title=f"Planning accuracy on {sft['num_rows']} held-out scenes, greedy, strict parse")
    for column in ("", "SFT", "GRPO"):
        table.add_column(column, justify="left" if not column else "right")
    for label, key in (
        ("accuracy", "planning_accuracy"),
        (f"pass@8 ({sft['pass_at_8_rows']} scenes)", "pass_at_8"),
        ("invalid", "invalid_rate"),
    ):
        table.add_row(label, _points(sft[key]), _points(grpo[key]))
    table.add_section()
    table.add_row("always the most frequent plan", _points(summary["majority"]), "")
    table.add_row(
        "gain of GRPO (95 % interval)",
        "",
        f"{100 * grpo['gain']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
    )
    console = Console()
    console.print(table)
    seconds = summary["seconds"]
    console.print(
        f"GRPO: {grpo['steps']} steps, {grpo['samples_per_s']:.0f} samples/s, "
        f"{grpo['rollout_tokens_per_s']:.0f} tokens/s; weight sync "
        f"{summary['weight_sync']['median_s']:.2f} s, engines within "
        f"{summary['canary']['max_abs_diff']:.1e} of the learner\n"
        f"Time: {seconds['total'] / 60:.1f} min (data {seconds['data']:.0f} s, SFT {seconds['sft']:.0f} s, "
        f"eval {seconds['eval']:.0f} s, GRPO {seconds['grpo']:.0f} s); memory at most "
        f"{summary['peak_rss_bytes'] / 2**30:.1f} GiB\n"
        f"Everything is in {paths.run}/ (open {paths.run}/report.html). Next: make demo-controls"
    )


def _print_controls(summary: dict[str, Any], controls: dict[str, Any], paths: DemoPaths) -> None:
    table = Table(title="What else could explain the gain? All from the same SFT checkpoint and scenes")
    for column in ("", "accuracy", "gain", "95 % interval"):
        table.add_column(column, justify="left" if not column else "right")
    rows = {"SFT": summary["sft"], "GRPO": summary["grpo"], **controls}
    for name, figures in rows.items():
        gain = f"{100 * figures['gain']:+.1f}" if "gain" in figures else ""
        interval = "{:+.1f} to {:+.1f}".format(*(100 * end for end in figures["gain_ci95"])) if gain else ""
        table.add_row(name, _points(figures["planning_accuracy"]), gain, interval)
    console = Console()
    console.print(table)
    console.print(f"Written to {paths.run}/controls.json")
