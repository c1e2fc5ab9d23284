"""The command against a real server: vLLM's own, with the tiny model, on this machine.

The tiny model explains nothing, so no answer of its passes: what is tested is the protocol, the token
counts, the refusals and the stop under half. Acceptance is tested against the server of the tests.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from distill_command import CANARY, lines_of, summary_of

from alphadrive import cli
from alphadrive.data.parquet import write_records
from alphadrive.world.dataset import synthesize

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).resolve().parents[3]
NUM_ROWS = 4
START_S = 400
ENVIRONMENT = {
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_API_KEY": CANARY,
}
OPTIONS = (
    "--served-model-name=tiny",
    "--enforce-eager",
    "--dtype=float32",
    "--kv-cache-memory-bytes=67108864",
    "--block-size=32",
    "--max-num-seqs=8",
    "--max-model-len=1024",
)


def is_ready(port):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """A server in a process group of its own, which is ended as a whole: vLLM has child processes."""
    log = tmp_path_factory.mktemp("server") / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *OPTIONS]
    place = [f"--model={ROOT / 'assets' / 'tiny-vlm'}", "--host=127.0.0.1", f"--port={port}"]
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, *place],
            stdout=output,
            stderr=output,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_S
        while not is_ready(port):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield port
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def run(port, data, *options):
    url = f"http://127.0.0.1:{port}/v1"
    common = ["--out", str(data.parent / "out"), "--model", "tiny", "--base-url", url]
    short = ["--max-answer-tokens", "24", "--replace", "--request-timeout", "120"]
    return cli.run(["distill", str(data), *common, *short, *options])


@pytest.fixture
def data(tmp_path):
    write_records(synthesize(NUM_ROWS, 0, "train", num_processes=1), tmp_path / "data")
    return tmp_path / "data"


def test_real_answers_are_kept_judged_and_not_paid_for_twice(port, data, shown):
    assert run(port, data, "--check-visible") == 1
    assert f"of {NUM_ROWS} rows passed the checks, expected at least 50 %" in shown()
    answers = lines_of(data.parent / "out" / "answers.jsonl")
    assert len(answers) == 3 * NUM_ROWS == summary_of(data)["requests_sent"]
    assert all(answer["prompt_tokens"] > 200 for answer in answers)
    assert all(0 < answer["completion_tokens"] <= 24 for answer in answers)
    assert len(lines_of(data.parent / "out" / "rejected.jsonl")) == NUM_ROWS
    assert run(port, data, "--check-visible") == 1
    assert summary_of(data)["requests_sent"] == 0


def test_real_refusals_stop_at_once(port, data, shown, monkeypatch):
    assert run(port, data, "--model", "no-such-model") == 1
    assert "The model `no-such-model` does not exist" in shown()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-the-right-one")
    assert run(port, data) == 1
    message = shown()
    assert "the key in OPENAI_API_KEY is not accepted" in message and "not-the-right" not in message
    assert lines_of(data.parent / "out" / "answers.jsonl") == []


def test_cap_holds_on_counts_of_a_real_server(port, data, shown):
    assert run(port, data, "--max-tokens-total", "1500") == 1
    assert "--max-tokens-total is reached and no row has passed yet" in shown()
    summary = summary_of(data)
    assert summary["status"] == "capped" and summary["requests_sent"] >= 2
    assert 0 < summary["prompt_tokens"] + summary["completion_tokens"] <= 1500
