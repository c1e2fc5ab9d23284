"""`alphadrive eval` and `alphadrive predict` on a real engine with the shipped model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from alphadrive.data.parquet import DrivingDataset

pytestmark = pytest.mark.vllm

PROGRAM = (sys.executable, "-m", "alphadrive.cli")
SMALL = ("--max-pixels=25088", "--max-new-tokens=8", "--max-model-len=512", f"--kv-cache-bytes={16 << 20}")
ABLATIONS = ("image=blank", "image=shuffle", "navigation=none", "speed=none")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("eval") / "data"
    subprocess.run([*PROGRAM, "data", "synth", "--out", folder, "--num", "5", "--seed", "77"], check=True)
    return folder


def test_eval_writes_every_figure_and_every_answer(tmp_path, data):
    command = [*PROGRAM, "eval", "tiny", data, "--num-rows=4", f"--out={tmp_path}", "--samples=2", *SMALL]
    command += [
        "--sample-rows=3",
        "--ablate",
        "image=blank|shuffle,navigation=none",
        "--ablate",
        "speed=none",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "planning accuracy" in done.stdout and "pass@2" in done.stdout
    content = json.loads((tmp_path / "eval.json").read_text())
    assert next(iter(content)) == "planning_accuracy"
    assert (content["num_rows"], content["reasoning"]["num_rows"]) == (4, 4)
    assert (content["samples"]["num_rows"], content["samples"]["num_samples"]) == (3, 2)
    assert list(content["ablations"]) == list(ABLATIONS)
    answers = {}
    for name in ("", *(f"-{name.replace('=', '-')}" for name in ABLATIONS)):
        lines = (tmp_path / f"predictions{name}.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        assert [one["row"] for one in found] == [0, 1, 2, 3]
        answers[name] = [one["text"] for one in found]
        assert all(answers[name])
    # The shipped model describes what it is told and sees: each input taken away changes what it says.
    assert all(answers[name] != answers[""] for name in answers if name)
    samples = [
        json.loads(line).get("texts") for line in (tmp_path / "predictions.jsonl").read_text().splitlines()
    ]
    assert [len(texts or ()) for texts in samples] == [2, 2, 2, 0]


def test_predict_answers_one_image(tmp_path, data):
    (tmp_path / "front.png").write_bytes(DrivingDataset(data).record(0).images[0].data)
    command = [*PROGRAM, "predict", "tiny", tmp_path / "front.png", "--speed=8.3", "--navigation=turn left"]
    done = subprocess.run(
        [*command, "--samples=3", "--json", *SMALL], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["text"]
    assert found["samples"]["num_samples"] == 3


def test_ctrl_c_leaves_no_process_and_no_results(tmp_path, data):
    command = [*PROGRAM, "eval", "tiny", data, f"--out={tmp_path}", "--samples=4096", *SMALL]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, process_group=0)
    started = []
    while "eval started" not in (line := process.stderr.readline()):
        assert line, "the engine did not start"
    time.sleep(1)
    started = psutil.Process(process.pid).children(recursive=True)
    assert started
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
    assert not (tmp_path / "eval.json").exists()
