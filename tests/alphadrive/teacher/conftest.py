"""What the teacher's tests share: a dataset without reasoning, an environment of their own, a server.

The server is in `faulty_endpoint`, the command's words and files in `distill_command`, beside this file.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from distill_command import CANARY, distill_arguments
from faulty_endpoint import Behaviour, FaultyEndpoint, explanation

from alphadrive import cli
from alphadrive.data.parquet import write_records
from alphadrive.data.records import DrivingRecord


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What was printed since the last look, both streams; never with the key in it."""

    def look() -> str:
        captured = capsys.readouterr()
        assert CANARY not in captured.out + captured.err
        return captured.out + captured.err

    return look


@pytest.fixture(autouse=True)
def key_is_nowhere(environment: None, tmp_path: Path, shown: Callable[[], str]) -> Iterator[None]:
    """Every test here ends with a search for the key in what it wrote and printed."""
    yield
    shown()
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert CANARY.encode() not in file.read_bytes(), file


@pytest.fixture
def make_data(tmp_path: Path, make_record: Callable[..., DrivingRecord]) -> Callable[..., Path]:
    """A dataset of `num` rows, each with a picture and a speed of its own, and no reasoning."""

    def make(num: int = 6, name: str = "data", **changes: object) -> Path:
        fields = {"reasoning": None, **changes}
        records = (make_record(index, speed_mps=1.0 + index / 10, **fields) for index in range(num))
        write_records(records, tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def serve() -> Iterator[Callable[..., FaultyEndpoint]]:
    """Start a server that behaves as told."""
    with ExitStack() as stack:
        yield lambda behave=explanation: stack.enter_context(FaultyEndpoint(behave))


@pytest.fixture
def distill(make_data, serve):
    """Run the command in this process against a server; gives exit code and server."""

    def run(data: Path, behave: Behaviour | FaultyEndpoint, *options: str):
        endpoint = behave if isinstance(behave, FaultyEndpoint) else serve(behave)
        return cli.run(distill_arguments(data, endpoint, *options)), endpoint

    return run


@pytest.fixture
def start_distill():
    """Start the command as a process, its output in pipes; killed at the end of the test if it still runs."""
    started: list[subprocess.Popen[str]] = []

    def start(
        data: Path, endpoint: FaultyEndpoint, *options: str, verbose: bool = False
    ) -> subprocess.Popen[str]:
        program = [sys.executable, "-m", "alphadrive.cli", *(["-v"] if verbose else [])]
        command = [*program, *distill_arguments(data, endpoint, *options)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()
