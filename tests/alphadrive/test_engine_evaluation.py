"""`alphadrive eval` on a real engine with the shipped model."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.vllm

PROGRAM = (sys.executable, "-m", "alphadrive.cli")
SMALL = (
    f"--samples 2 --max-pixels 25088 --max-new-tokens 8 --max-model-len 512 --kv-cache-bytes {16 << 20} "
    "--image real --image blank --image shuffle"
)


def test_eval_writes_every_metric_and_every_answer(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    subprocess.run([*PROGRAM, "data", "synth", "--out", data, "--num", "5", "--seed", "77"], check=True)
    done = subprocess.run(
        [*PROGRAM, "eval", "tiny", data, "--num-rows", "4", "--out", out, *SMALL.split()],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "planning accuracy" in done.stdout and "pass@2" in done.stdout
    content = json.loads((out / "eval.json").read_text())
    for image in ("real", "blank", "shuffle"):
        assert content[image]["greedy"]["num_rows"] == 4
        assert content[image]["variety"]["num_samples"] == 2
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [(line["image"], line["row"]) for line in lines] == [
        (image, row) for image in ("real", "blank", "shuffle") for row in range(4)
    ]
    assert all(line["text"] for line in lines)
