"""No secret stands in a configuration, and none comes out again."""

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from alphadrive import secrets
from alphadrive.cli import run as run_command
from alphadrive.config import load_config
from alphadrive.config_checks import check_config
from alphadrive.errors import ConfigError, RewardError
from alphadrive.run_folder import RunFolder
from alphadrive.secrets import RedactingFormatter, name_secret, redact, redacted
from alphadrive.teacher.api_key import ApiKey
from alphadrive.types import DrivingQuery
from cluster.status import RunStatus
from rewards.further import FurtherTerm, term_values

CANARY = "sk-canary-5f1d0c7e9a"


@pytest.fixture(autouse=True)
def canary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SERVICE_API_KEY", CANARY)


@pytest.mark.parametrize(
    "name",
    ["OPENAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "db_password"],
)
def test_a_variable_with_a_telling_name_is_secret(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "hidden-value-1")
    assert redact("got hidden-value-1!") == "got ***!"


def test_any_variable_that_was_named_for_a_key_is_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_JUDGE", "hidden-value-2")
    assert redact("hidden-value-2") == "hidden-value-2"
    name_secret("MY_JUDGE")
    assert redact("hidden-value-2") == "***"


def test_placeholders_and_other_variables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_API_KEY", "EMPTY")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "some-long-value")
    assert redact("EMPTY some-long-value") == "EMPTY some-long-value"


def test_a_secret_that_holds_another_is_hidden_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGER_API_KEY", f"{CANARY}-and-more")
    assert redact(f"{CANARY}-and-more {CANARY}") == "*** ***"


def test_trees_keep_their_shape() -> None:
    tree = {"reason": f"x {CANARY}", "list": [CANARY, 1, None, {"deep": (1, 2)}], "number": 0.5}
    assert redacted(tree) == {"reason": "x ***", "list": ["***", 1, None, {"deep": (1, 2)}], "number": 0.5}


def test_the_environment_is_read_once_for_a_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    values = secrets._values
    monkeypatch.setattr(secrets, "_values", lambda: reads.append(1) or values())
    assert redacted([{"text": CANARY}] * 1000) == [{"text": "***"}] * 1000
    assert len(reads) == 1


def test_log_lines_and_their_tracebacks_hold_none() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(RedactingFormatter("%(levelname)s %(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    try:
        raise ValueError(f"wrong key {CANARY}")
    except ValueError:
        logger.exception("asked with %s", CANARY)
    assert CANARY not in out.getvalue()
    assert "ERROR asked with ***" in out.getvalue() and "ValueError: wrong key ***" in out.getvalue()


def test_a_program_that_fails_shows_none() -> None:
    code = (
        "import alphadrive.cli as cli\n"
        f"def fail(args): raise RuntimeError('wrong key {CANARY}')\n"
        "cli._demo = fail\n"
        "cli.main(['demo'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert CANARY not in done.stderr and "RuntimeError: wrong key ***" in done.stderr


def test_an_error_shown_by_a_command_holds_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["sft", f"/nowhere/{CANARY}.yaml"]) == 2
    shown = capsys.readouterr().err
    assert CANARY not in shown and "/nowhere/***.yaml" in shown


def test_status_and_summary_of_a_run_hold_none(tmp_path: Path) -> None:
    config = load_config("debug", [f"run.root={tmp_path}", "run.tensorboard=false"])
    with RunFolder.create(config) as run:
        status = RunStatus(run, "grpo", 10, 0)
        status.write(status="failed", reason=f"RewardError: wrong key {CANARY}", list=[{"x": CANARY}])
        run.write_summary({"dead_letters": [{"reason": CANARY}]})
    texts = [path.read_text() for path in run.path.rglob("*.json")]
    assert len(texts) == 2 and CANARY not in "".join(texts) and CANARY not in json.dumps(status.fields)
    assert status.fields["reason"] == "RewardError: wrong key ***"


def test_what_a_reward_function_raises_holds_none() -> None:
    def fails(query: DrivingQuery, completions: object) -> list[float]:
        raise OSError(f"401 for {CANARY}")

    query = DrivingQuery(query_id="q0", row=0, speed_mps=5.0, navigation="go", plans=("KEEP, STRAIGHT",))
    with pytest.raises(RewardError, match=r"q0: reward term 'mine' raised OSError: 401 for \*\*\*"):
        term_values(FurtherTerm(name="mine", weight=1.0, function=fails), query, [])


JUDGE = ["rewards.weights.judge=0.5", "rewards.judge_model=m"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            [*JUDGE, f"rewards.judge_url=https://me:{CANARY}@host/v1"],
            "rewards.judge_url: has a user or password",
        ),
        ([*JUDGE, f"rewards.judge_url=https://host/v1?key={CANARY}"], "rewards.judge_url: has a query"),
        ([f"rewards.judge_api_key_env={CANARY}"], "rewards.judge_api_key_env: expected the name"),
        ([f"data.train=s3://id:{CANARY}@bucket/train"], "data.train: has a user or password"),
    ],
)
def test_a_secret_in_a_configuration_is_refused_and_not_repeated(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("debug", overrides)
    assert words in str(caught.value) and CANARY not in str(caught.value)


def test_what_only_looks_like_one_is_taken() -> None:
    config = load_config("debug", ["data.train=s3://bucket/a@b", "rewards.judge_api_key_env=MY_KEY"])
    check_config(config)


def test_a_key_given_instead_of_its_name_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        ApiKey.from_environment(CANARY)
    assert "--api-key-env: expected the name" in str(caught.value) and CANARY not in str(caught.value)
