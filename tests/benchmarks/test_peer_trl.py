"""`benchmarks/peer_trl.py`, without TRL and without any run: its figures, its refusals, its processes."""

import re
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def peer_trl(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module("peer_trl")


def _blocks(peer_trl: ModuleType, *seconds: float) -> list[object]:
    return [peer_trl.Block(samples=100, seconds=each, processor_s={"engine": each}) for each in seconds]


def _steps(peer_trl: ModuleType, completion_tokens: float) -> list[object]:
    return [
        peer_trl.Step(parts_s={"update": 2.56}, prompt_tokens=192.0, completion_tokens=completion_tokens),
        peer_trl.Step(parts_s={"update": 5.12}, prompt_tokens=194.0, completion_tokens=completion_tokens),
    ]


def test_the_ratio_is_of_medians_and_its_spread_of_neighbouring_blocks(peer_trl: ModuleType) -> None:
    blocks = {"alphadrive": _blocks(peer_trl, 1.0, 2.0, 4.0), "TRL": _blocks(peer_trl, 10.0, 5.0, 4.0)}
    steps = {name: _steps(peer_trl, 48.0) for name in blocks}
    found = peer_trl.summary(8, 48, blocks, steps)
    assert found["ratio"] == 50 / 20
    assert found["ratio_of_pairs"]["all"] == [10.0, 2.5, 1.0]
    ours = found["sides"]["alphadrive"]
    assert ours["samples_per_s"]["all"] == [100.0, 50.0, 25.0]
    assert ours["ms_a_sample"] == {"update": pytest.approx(15.0)}
    assert ours["processor_ms_a_sample"] == {"engine": pytest.approx(1000 * 7 / 300)}
    assert ours["prompt_tokens"] == 193.0


def test_completions_of_another_length_are_another_task(peer_trl: ModuleType) -> None:
    blocks = {"alphadrive": _blocks(peer_trl, 1.0), "TRL": _blocks(peer_trl, 1.0)}
    steps = {"alphadrive": _steps(peer_trl, 47.0), "TRL": _steps(peer_trl, 48.0)}
    with pytest.raises(peer_trl.SideError, match=r"alphadrive: completions of 47.0 to 47.0 .* expected 48"):
        peer_trl.summary(8, 48, blocks, steps)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--group-sizes", "8", "3"], r"--group-sizes \[8, 3\]: expected divisors of 256"),
        (["--repeats", "0"], "--repeats=0: expected 1 or more"),
        (["--trl-python", "nowhere/python"], "nowhere/python is missing: run `make bench-peers`"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    peer_trl: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit):
        peer_trl.parse_arguments(["--trl-python", sys.executable, *arguments])
    assert re.search(said, capsys.readouterr().err)


def _wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(3000):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("not so after half a minute")


def test_a_side_is_stopped_with_all_its_children_and_ends_even_then(
    peer_trl: ModuleType, tmp_path: Path
) -> None:
    processes = import_module("peer_processes").Processes(tmp_path / "log")
    code = "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    processes.start([sys.executable, "-c", code], {})
    _wait_until(lambda: len(psutil.Process(processes.roots[0].pid).children()) == 1)
    tree = [psutil.Process(processes.roots[0].pid), *psutil.Process(processes.roots[0].pid).children()]
    processes.pause()
    _wait_until(lambda: all(process.status() == psutil.STATUS_STOPPED for process in tree))
    processes.close()
    _, alive = psutil.wait_procs(tree, timeout=30)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
