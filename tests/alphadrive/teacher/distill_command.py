"""The command as the tests of the teacher call it, and what it leaves behind."""

import json
from pathlib import Path

from faulty_endpoint import FaultyEndpoint

CANARY = "sk-canary-5f2d9c7e41ab-never-to-be-seen"
"""The key in every test here. It must be in no file and in no output."""


def distill_arguments(data: Path, endpoint: FaultyEndpoint, *options: str) -> list[str]:
    out = data.parent / "out"
    return ["distill", str(data), "--out", str(out), "--model", "m", "--base-url", endpoint.url, *options]


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def summary_of(data: Path) -> dict:
    return json.loads((data.parent / "out" / "distill.json").read_text())
