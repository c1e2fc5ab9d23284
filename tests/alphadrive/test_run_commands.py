"""`alphadrive status`, `scale` and `stop`: messages and exit codes, without a cluster."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from alphadrive import cli, run_commands
from cluster import run_client

HOST = socket.gethostname()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_commands, "POLL_S", 0.0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def make_run(tmp_path: Path, *, cluster: dict[str, Any] | None = None, **status: Any) -> Path:
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 0\n")
    whole = {
        "status": "running",
        "stage": "grpo",
        "step": 3,
        "steps": 10,
        "attempt": 0,
        "pid": os.getpid(),
        "host": HOST,
        "started_s": time.time(),
        "updated_s": time.time(),
    }
    (folder / "status.json").write_text(json.dumps(whole | status))
    if cluster is not None:
        file = {
            "run": "first",
            "address": "127.0.0.1:1",
            "namespace": "alphadrive",
            "actor": "run-control:first:0",
            "job_id": "01",
            "dashboard": None,
            "auth_mode": "token",
            "host": HOST,
            "pid": whole["pid"],
            "started_s": whole["started_s"],
            "ended_s": None,
        }
        (folder / "cluster.json").write_text(json.dumps(file | cluster))
    return folder


def pid_of_the_dead() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


NOT_LIVE = {
    "ended": ({"status": "interrupted", "reason": "stopped by a signal"}, {}, "it has ended: interrupted"),
    "crashed": ({"pid": pid_of_the_dead()}, {}, "crashed or was killed"),
    "debug": ({}, None, "runs in one process, without Ray"),
    "starting": ({"status": "starting"}, None, "it is starting, Ray is not up yet"),
    "ending": ({}, {"ended_s": 1.0}, "it is ending"),
    "unreachable": ({}, {"address": f"127.0.0.1:{closed_port()}"}, "nothing answers at Ray's address 127"),
}


@pytest.mark.parametrize("case", NOT_LIVE)
def test_a_run_that_is_not_live_is_shown_from_its_file_and_refuses_the_rest(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, cluster, message = NOT_LIVE[case]
    folder = make_run(tmp_path, cluster=cluster, **status)
    assert cli.run(["status", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "not live, this is from status.json" in shown and message in shown
    assert "3 of 10" in shown
    for command in (["stop", str(folder)], ["scale", str(folder), "--rollout-workers", "2"]):
        assert cli.run(command) == 1
        assert message in capsys.readouterr().err


def test_for_machines_a_crash_is_told_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path, cluster={}, pid=pid_of_the_dead())
    assert cli.run(["status", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["live"], told["status"], told["step"]) == (False, "crashed", 3)
    assert "--resume" in told["note"]


@pytest.mark.parametrize("text", ["[]", "{}", '{"status": "running"}', "3"])
def test_a_status_of_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "config.yaml").touch()
    (tmp_path / "status.json").write_text(text)
    for command in ("status", "stop", "stack"):
        assert cli.run([command, str(tmp_path)]) == 2
        assert "not the status of a run: it has no pid, stage" in capsys.readouterr().err


def test_a_process_that_got_the_number_of_a_dead_driver_is_not_taken_for_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path, cluster={}, started_s=100.0)
    assert run_client.driver_has_died(run_client.find_run(str(folder), None))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("status no-such-run", "no run 'no-such-run': neither no-such-run nor runs/no-such-run is"),
        ("stop no-such-run", "no run 'no-such-run'"),
        ("scale no-such-run", "nothing asked for; give --rollout-workers N"),
    ],
)
def test_what_cannot_be_asked_is_wrong_input(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(arguments.split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "many", "1001"])
def test_numbers_of_workers_are_checked_before_anything_is_asked(number: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.run(["scale", "any", f"--rollout-workers={number}"])
    assert ended.value.code == 2
    assert "expected a whole number from 1 to 1000" in capsys.readouterr().err


def test_a_run_is_found_by_folder_by_name_below_runs_and_by_name_on_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    folder = make_run(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    for name in ("runs/first", "first", str(folder)):
        place = run_client.find_run(name, None)
        assert place.folder is not None and place.folder.resolve() == folder and place.name == "first"
    assert run_client.find_run("other", "head:6379").folder is None
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert run_client.find_run("other", None).address == "head:6379"
    assert run_client.find_run("first", None).address is None  # its own cluster.json knows better


class FakeLive:
    """A live run that goes through `statuses`, the last one for ever, and ends with `last`."""

    def __init__(self, statuses: list[dict[str, Any]], last: dict[str, Any] | None = None) -> None:
        base = {
            "status": "running",
            "stage": "grpo",
            "step": 3,
            "wanted": {"rollout": 1, "reward": 1},
            "pending": [],
        }
        self.statuses = [base | status for status in statuses]
        self.last = last or {}
        self.asked: list[object] = []

    def status(self) -> dict[str, Any]:
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

    def scale(self, rollout_workers: int | None, reward_workers: int | None) -> None:
        self.asked.append((rollout_workers, reward_workers))

    def stop(self) -> None:
        self.asked.append("stop")

    def wait_for_end(self, has_died: object) -> dict[str, Any]:
        self.asked.append("wait")
        return self.last


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command on a fake live run known by its name; returns exit code and what was printed."""

    def run(text: str, live: FakeLive) -> tuple[int, str]:
        @contextmanager
        def fake(place: object) -> Iterator[FakeLive]:
            yield live

        monkeypatch.setattr(run_client, "live_run", fake)
        code = cli.run([*text.split(), "--address", "head:6379"])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return run


STARTING = {"kind": "rollout", "count": 1, "what": "starting"}
SCALED = {"wanted": {"rollout": 2, "reward": 1}}


def test_scale_says_what_is_pending_and_does_not_wait(command: Any) -> None:
    live = FakeLive([{}, {}, SCALED | {"pending": [STARTING]}])
    code, shown = command("scale first --rollout-workers 2", live)
    assert (code, live.asked) == (0, [(2, None)])
    assert shown == "first: rollout workers 1 -> 2\n  1 rollout worker starting\n"


def test_scale_waits_until_nothing_is_pending(command: Any) -> None:
    waiting = {"kind": "rollout", "count": 1, "what": "waiting", "needs": {"CPU": 1.0}}
    states = [{}, *(SCALED | {"pending": [entry]} for entry in (waiting, STARTING, STARTING)), SCALED]
    code, shown = command("scale first --rollout-workers 2 --wait", FakeLive(states))
    assert code == 0
    assert shown.splitlines() == [
        "first: rollout workers 1 -> 2",
        "  1 rollout worker waiting for room in the cluster: 1 CPU each; Ray has been asked for it",
        "  1 rollout worker starting",
        "first: 2 rollout workers serving",
    ]


def test_waiting_ends_when_somebody_else_asks_for_other_numbers(command: Any) -> None:
    other = {"wanted": {"rollout": 5, "reward": 1}}
    live = FakeLive([{}, SCALED | {"pending": [STARTING]}, SCALED | {"pending": [STARTING]}, other])
    code, shown = command("scale first --rollout-workers 2 --wait", live)
    assert code == 2 and "somebody else asked for other numbers" in shown


def test_scale_says_that_autoscale_is_set_aside(command: Any) -> None:
    live = FakeLive([{"autoscale": {"is_on": True}}, SCALED])
    assert (
        "rollout.autoscale is set aside until the end of the run"
        in command("scale first --rollout-workers 2", live)[1]
    )
    live = FakeLive([{"autoscale": {"is_on": True}}, {"wanted": {"rollout": 1, "reward": 2}}])
    assert "set aside" not in command("scale first --reward-workers 2", live)[1]


def test_an_sft_run_has_nothing_to_scale(command: Any) -> None:
    live = FakeLive([{"stage": "sft"}])
    code, shown = command("scale first --rollout-workers 2", live)
    assert (code, live.asked) == (2, [])
    assert "a run of stage sft has no rollout or reward workers" in shown


def test_a_run_that_starts_is_scaled_once_it_trains(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_commands, "APPLY_TIMEOUT_S", 0.0)
    code, shown = command("scale first --rollout-workers 2", FakeLive([{"status": "starting"}]))
    assert (code, shown) == (0, "first: asked for; the run is starting and does it once it trains\n")


@pytest.mark.parametrize(
    ("last", "code", "message"),
    [
        (
            {"status": "interrupted", "reason": "stopped by `alphadrive stop`", "checkpoint_step": 4},
            0,
            "interrupted (stopped by `alphadrive stop`) after step 4 of 10, with a checkpoint; the same",
        ),
        ({"status": "finished", "checkpoint_step": 4}, 0, "finished after step 4 of 10, with a checkpoint\n"),
        ({"status": "interrupted", "checkpoint_step": 2}, 1, "without a checkpoint of that step: the newest"),
        ({"status": "interrupted", "checkpoint_step": None}, 1, "of that step: there is none"),
        ({"status": "failed", "reason": "Error: no", "checkpoint_step": 4}, 1, "failed (Error: no)"),
        (None, 1, "gone without an orderly end"),
    ],
)
def test_stop_waits_and_tells_what_came_of_it(
    last: dict[str, Any] | None, code: int, message: str, command: Any
) -> None:
    live = FakeLive([{}], last and {"step": 4, "steps": 10} | last)
    ended, shown = command("stop first", live)
    assert (ended, live.asked) == (code, ["stop", "wait"])
    assert "asked to end after the step under way (4) and its checkpoint" in shown and message in shown


def test_stop_does_not_wait_when_told_so(command: Any) -> None:
    live = FakeLive([{}])
    assert command("stop first --no-wait", live)[0] == 0
    assert live.asked == ["stop"]
