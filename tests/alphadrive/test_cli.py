"""The `alphadrive` program from outside: exit codes, messages, and how soon help answers."""

import argparse
import errno
import re
import resource
import shlex
import subprocess
import sys

import pytest

from alphadrive import cli
from alphadrive.checkpoints import CheckpointStore
from alphadrive.config import default_config
from alphadrive.errors import CheckpointError, ConfigError, ModelError, RolloutError, RunFolderError
from alphadrive.model_source import model_folder_of


def alphadrive(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "alphadrive.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
    )


def test_wrong_input_is_one_message_and_exit_code_2():
    done = alphadrive("eval", "tiny", "no/such/data")
    assert done.returncode == 2
    assert done.stderr.startswith("alphadrive: no/such/data: no such folder")
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_wrong_arguments_show_the_usage():
    done = alphadrive("fly")
    assert done.returncode == 2
    assert "usage: alphadrive" in done.stderr


@pytest.mark.parametrize("arguments", ["", "eval tiny", "grpo debug --resume --overwrite", "data"])
def test_missing_and_excluding_arguments_are_refused(arguments):
    with pytest.raises(SystemExit) as ended:
        cli.run(arguments.split())
    assert ended.value.code == 2


@pytest.mark.parametrize("command", ["sft", "grpo", "debug"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-config"], "no configuration 'no-such-config'"),
        (["CONFIG", "grpo.grup_size=4"], "unknown key 'grpo.grup_size'; did you mean 'grpo.group_size'?"),
        (["CONFIG", "grpo.group_size=1"], "grpo.group_size=1: expected 2 or more"),
    ],
)
def test_wrong_configuration_is_refused_before_any_work(
    tmp_path, monkeypatch, capsys, command, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("seed: 1\n")
    assert cli.run([command, *("run.yaml" if word == "CONFIG" else word for word in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--num-rows 0", "--num-rows 0: expected"),
        ("--samples -1", "--samples -1: expected 0 or more"),
        ("--samples 2 --sample-rows 0", "--sample-rows 0: expected 1 or more"),
    ],
)
def test_eval_refuses_counts_that_make_no_sense(capsys, arguments, message):
    assert cli.run(["eval", "tiny", "x", *arguments.split()]) == 2
    assert message in capsys.readouterr().err


def run_with(monkeypatch, outcome):
    def command(_):
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    parser = argparse.ArgumentParser()
    parser.set_defaults(run=command, verbose=False)
    monkeypatch.setattr(cli, "build_parser", lambda: parser)
    return cli.run([])


@pytest.mark.parametrize(
    ("outcome", "code"),
    [(0, 0), (ConfigError("bad key"), 2), (RolloutError("engine gone"), 1), (KeyboardInterrupt(), 130)],
)
def test_exit_codes(monkeypatch, capsys, outcome, code):
    assert run_with(monkeypatch, outcome) == code
    message = capsys.readouterr().err
    assert "Traceback" not in message
    if isinstance(outcome, Exception):
        assert message == f"alphadrive: {outcome}\n"


def test_a_full_disk_is_said_in_one_line(monkeypatch, capsys):
    assert run_with(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "runs/x")) == 1
    assert capsys.readouterr().err.startswith(
        "alphadrive: [Errno 28] No space left on device: 'runs/x'; make"
    )
    with pytest.raises(OSError):
        run_with(monkeypatch, OSError(errno.EIO, "Input/output error"))


def test_a_path_that_the_system_refuses_is_said_in_one_line(capsys):
    long = "x" * 5000
    assert cli.run(["status", long]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("alphadrive: [Errno 36] File name too long") and "-v" in shown


def test_a_home_is_put_for_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    keys = ("run.root", "data.train", "data.eval", "model.path")
    config = default_config([f"{key}=~/x" for key in keys])
    places = {config.run.root, config.data.train, config.data.eval, config.model.path}
    assert places == {f"{tmp_path}/x"}


def test_a_dataset_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli.run(["data", "synth", f"--out={tmp_path}/file/data", "--num=2"]) == 2
    assert f"{tmp_path}/file/data: cannot be written" in capsys.readouterr().err


def test_error_nobody_expected_keeps_its_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        run_with(monkeypatch, ZeroDivisionError())


def test_help_answers_at_once_and_loads_nothing_heavy():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = alphadrive("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert "alphadrive demo" in done.stdout
    # Seconds of processor, not of the clock: other processes on the machine do not count.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    code = (
        "import sys; from alphadrive.cli import build_parser; build_parser(); "
        "print([name for name in ('torch', 'ray', 'vllm', 'deepspeed', 'transformers', 'pyarrow', 'numpy') "
        "if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def leaves(parser, words=()):
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not actions:
        yield words, parser
    for name, child in (pair for action in actions for pair in action.choices.items()):
        yield from leaves(child, (*words, name))


def test_every_command_runs_something_and_its_example_parses():
    parser = cli.build_parser()
    for words, leaf in leaves(parser):
        assert callable(leaf.get_default("run")), words
        example = re.search(r"example: (?:alphadrive|.*alphadrive\.cli) (.*)", leaf.epilog or "")
        if example:
            assert parser.parse_args(shlex.split(example[1])).run is leaf.get_default("run"), words
    examples = re.findall(
        r"^  alphadrive (demo|data synth|sft|grpo|eval|predict|debug)\b", parser.description, re.MULTILINE
    )
    assert examples == ["demo", "data synth", "sft", "grpo", "eval", "predict", "debug"]


def test_run_without_a_checkpoint_is_no_model(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RunFolderError, match="no checkpoint yet"):
        model_folder_of(str(tmp_path))


def test_checkpoint_is_verified_before_its_model_is_used(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    (store.begin(3) / "model").mkdir()
    (tmp_path / "checkpoints/.tmp-step_000003/model/config.json").write_text("{}")
    checkpoint = store.commit(3)
    for name in (str(tmp_path), str(checkpoint.path)):
        with pytest.raises(ModelError, match="no vision-language model"):
            model_folder_of(name)
    (checkpoint.model_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="damaged"):
        model_folder_of(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        model_folder_of(str(checkpoint.path))


def test_overrides_may_follow_options_and_anything_else_is_refused(capsys):
    args = cli.parse_arguments(["grpo", "demo", "grpo.steps=2", "--overwrite", "run.name=x"])
    assert (args.config, args.overrides, args.overwrite) == ("demo", ["grpo.steps=2", "run.name=x"], True)
    for arguments in (["grpo", "demo", "--overwrit=1"], ["eval", "tiny", "data", "grpo.steps=2"]):
        with pytest.raises(SystemExit) as ended:
            cli.parse_arguments(arguments)
        assert ended.value.code == 2
    assert "unrecognized arguments: grpo.steps=2" in capsys.readouterr().err
