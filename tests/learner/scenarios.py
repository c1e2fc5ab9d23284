"""Scenarios on learner ranks in processes of their own.

Starting DeepSpeed takes longer than any scenario, so that all of one number of ranks share their processes,
whichever test module adds them: `scenario` adds one when its module is imported, the fixture `outcomes`
runs all of them, the tests look at what came out. Those of two ranks run first: the others may load what
they saved.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from alphadrive.processing import resolve_model

ROOT = Path(__file__).resolve().parents[2]
JOB = Path(__file__).with_name("learner_job.py")
LEARNING_RATE = 1e-3
MAX_PIXELS = 28 * 28 * 8
ALL_ROWS = list(range(6))
ONE_ROW = 200
"""A token budget that holds one of the groups or samples made here, but not two."""
Calls = tuple[tuple[str, Any], ...]
Outcomes = dict[str, list[list[Any]]]

SCENARIOS: dict[int, list[dict[str, Any]]] = {2: [], 1: []}


def scenario(
    name: str,
    *calls: tuple[str, Any],
    ranks: int = 1,
    stage: str = "grpo",
    attempt: int = 0,
    model: str | None = None,
    splits_small: bool = False,
    **options: Any,
) -> str:
    """Add a scenario; gives its name. Options are configuration keys, `__` for the dot; `model` is the folder
    to start from, within the scenario's (the shipped model when not given). With `splits_small` ZeRO-3 splits
    small tensors, too, and so all of the shipped model's."""
    config = {
        "model.max_pixels": MAX_PIXELS,
        "grpo.learning_rate": LEARNING_RATE,
        "sft.learning_rate": LEARNING_RATE,
        "sft.steps": 1000,
        "sft.warmup_ratio": 0.0,
    } | {key.replace("__", "."): value for key, value in options.items()}
    SCENARIOS[ranks].append(
        dict(
            name=name,
            calls=calls,
            stage=stage,
            attempt=attempt,
            model=model,
            splits_small=splits_small,
            config=config,
        )
    )
    return name


def run_scenarios(ranks: int, folder: Path, dataset: Path) -> Outcomes:
    """Run every scenario of a number of ranks; gives the results of their calls, by rank."""
    job = dict(
        world_size=ranks,
        meeting_point=f"file://{folder / f'ranks{ranks}'}",
        model=str(resolve_model("tiny")),
        dataset=str(dataset),
    )
    path = folder / f"job{ranks}.json"
    path.write_text(json.dumps(job | dict(folder=str(folder), scenarios=SCENARIOS[ranks])))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([sys.executable, JOB, path, str(rank)], env=environment, stderr=subprocess.PIPE)
        for rank in range(ranks)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors.decode()[-3000:]
    finally:
        for process in processes:
            process.kill()
    by_rank = [json.loads(Path(f"{path}.rank{rank}").read_text()) for rank in range(ranks)]
    return {each["name"]: [results[each["name"]] for results in by_rank] for each in SCENARIOS[ranks]}


def run_all(folder: Path, dataset: Path) -> Outcomes:
    """Every scenario that was added; its results by rank."""
    outcomes: Outcomes = {}
    for ranks, scenarios in SCENARIOS.items():
        if scenarios:
            outcomes |= run_scenarios(ranks, folder, dataset)
    return outcomes


def saved_name(name: str) -> str:
    """A parameter's name in a model folder."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
