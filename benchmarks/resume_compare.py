"""Whether two runs have become the same: what is compared, and what may differ.

Left out are figures of time (`timing_s/*`, `perf/*` but the tokens, `*seconds`, `*idle_ratio`), the number of
the attempt in versions, and what is written when.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from alphadrive.run_folder import LEDGER_FILE, read_metrics

KEPT_TIMINGS = ("perf/total_num_tokens",)


def is_timing(name: str) -> bool:
    """Whether a metric is a figure of time."""
    is_time = name.startswith(("timing_s/", "perf/")) or name.endswith(("seconds", "idle_ratio"))
    return name == "time_s" or (is_time and name not in KEPT_TIMINGS)


def metrics_of(run: Path) -> list[dict[str, float | None]]:
    """The metrics of every step, without timings."""
    return [
        {name: value for name, value in line.items() if not is_timing(name)}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def queries_of(checkpoint: Path) -> dict[str, Any]:
    """The ledger of a checkpoint."""
    content = json.loads((checkpoint / LEDGER_FILE).read_text())
    return {key: content[key] for key in ("queries", "next_ticket", "open_tickets", "nonfinite", "step")} | {
        "evaluation": {name: value for name, value in content["evaluation"].items() if not is_timing(name)}
    }


def rollouts_of(run: Path, left_out: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Every group, by ticket, without attempts and times."""
    left_out = ("time_s", "weight_version", "versions", *left_out)
    rows = pq.read_table(run / "rollouts").sort_by("ticket").to_pylist()
    return [
        {key: value for key, value in row.items() if key not in left_out}
        | {"steps": [version.partition(".")[2] for version in row["versions"]]}
        for row in rows
    ]


def run_differences(ours: Path, theirs: Path, step: int, left_out: Sequence[str] = ()) -> Iterator[str]:
    """What differs between two runs' records and their ledgers at a step; `left_out` are columns of the
    rollouts."""
    name = f"checkpoints/step_{step:06d}"
    if queries_of(ours / name) != queries_of(theirs / name):
        yield "the ledgers differ"
    both = metrics_of(ours), metrics_of(theirs)
    if len(both[0]) != len(both[1]):
        yield f"there are {len(both[0])} lines of metrics and {len(both[1])}"
    for mine, other in zip(*both, strict=False):
        for key in sorted(mine.keys() | other.keys()):
            if mine.get(key) != other.get(key):
                yield f"step {mine['step']}: {key} is {mine.get(key)} and {other.get(key)}"
    if rollouts_of(ours, left_out) != rollouts_of(theirs, left_out):
        yield "the rollouts differ"


def learner_differences(ours: Path, theirs: Path) -> Iterator[str]:
    """What differs between two checkpoints of a real learner: weights, optimizer, random states."""
    import torch

    names = sorted(path.relative_to(ours).as_posix() for path in ours.rglob("*.pt"))
    others = sorted(path.relative_to(theirs).as_posix() for path in theirs.rglob("*.pt"))
    if names != others:
        yield f"the files differ: {names} and {others}"
    for name in names:
        both = (torch.load(folder / name, weights_only=False) for folder in (ours, theirs))
        yield from _differences(name, *both)
    for path in sorted((ours / "model").iterdir()):
        if path.read_bytes() != (theirs / "model" / path.name).read_bytes():
            yield f"model/{path.name} differs"


def _differences(place: str, ours: Any, theirs: Any) -> Iterator[str]:
    import torch

    if type(ours) is not type(theirs):
        yield f"{place}: {type(ours).__name__} and {type(theirs).__name__}"
    elif isinstance(ours, torch.Tensor):
        if ours.dtype != theirs.dtype or not torch.equal(ours, theirs):
            yield f"{place}: tensors differ"
    elif isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            yield f"{place}: keys differ: {sorted(map(str, ours.keys() ^ theirs.keys()))}"
        for key in ours.keys() & theirs.keys():
            yield from _differences(f"{place}[{key}]", ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            yield f"{place}: lengths differ"
        for index, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
            yield from _differences(f"{place}[{index}]", mine, other)
    elif isinstance(ours, int | float | str | bool | bytes | None) and ours != theirs:
        yield f"{place}: {ours!r} and {theirs!r}"
