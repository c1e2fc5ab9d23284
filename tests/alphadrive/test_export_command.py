"""`alphadrive export`: the model folder it writes, and what it refuses."""

import errno
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alphadrive import cli, export_command
from alphadrive.checkpoints import CheckpointStore
from alphadrive.model_folder import resolve_model
from alphadrive.processing import PromptProcessor


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run with the checkpoints of steps 5 and 10; the latter's weights are those of 5 plus 1."""
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    for step in (5, 10):
        folder = store.begin(step)
        shutil.copytree(resolve_model("tiny"), folder / "model")
        if step == 10:
            from safetensors.torch import save_file

            weights = load_file(folder / "model" / "model.safetensors")
            shifted = {name: tensor + 1 for name, tensor in weights.items()}
            save_file(shifted, folder / "model" / "model.safetensors", metadata={"format": "pt"})
        store.commit(step)
    return tmp_path / "run"


def export(run: Path, out: Path, *more: str) -> int:
    return cli.run(["export", str(run), "--out", str(out), *more])


def test_the_newest_policy_loads_elsewhere_as_bfloat16(run_folder: Path, tmp_path: Path, capsys) -> None:
    from transformers import AutoModelForImageTextToText

    out = tmp_path / "models" / "planner"
    assert export(run_folder, out) == 0
    assert "step 10" in capsys.readouterr().out
    assert resolve_model(str(out)) == out
    model = AutoModelForImageTextToText.from_pretrained(out)
    PromptProcessor(out, 28 * 28 * 8)
    saved = load_file(run_folder / "checkpoints" / "step_000010" / "model" / "model.safetensors")
    norm = model.model.language_model.norm.weight
    assert norm.dtype == torch.bfloat16
    assert torch.equal(norm, saved["model.norm.weight"].bfloat16())
    assert [path.name for path in out.parent.iterdir()] == ["planner"]


def test_a_dry_run_says_what_would_be_written(run_folder: Path, tmp_path: Path, capsys) -> None:
    assert export(run_folder, tmp_path / "out", "--dry-run") == 0
    assert "step 10: 1,061,536 parameters, bfloat16, 2 MiB (not written)" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert export(run_folder, tmp_path / "out", "--dry-run", "--step", "7") == 2


def test_another_step_and_dtype_can_be_asked_for(run_folder: Path, tmp_path: Path) -> None:
    assert export(run_folder, tmp_path / "out", "--step", "5", "--dtype", "float32") == 0
    exported = load_file(tmp_path / "out" / "model.safetensors")
    shipped = load_file(resolve_model("tiny") / "model.safetensors")
    assert all(torch.equal(exported[name], shipped[name]) for name in shipped)
    assert exported.keys() == shipped.keys()


def test_an_existing_model_is_replaced_only_when_asked(run_folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert export(run_folder, out, "--step", "5") == 0
    before = (out / "model.safetensors").read_bytes()
    (out / "notes.txt").write_text("mine")
    assert export(run_folder, out) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == before
    assert export(run_folder, out, "--overwrite") == 0
    assert (out / "model.safetensors").read_bytes() != before
    assert not (out / "notes.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_a_folder_that_is_no_model_is_never_replaced(run_folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    assert export(run_folder, tmp_path / "thesis", "--overwrite") == 2
    assert "no model folder" in capsys.readouterr().err
    assert (tmp_path / "thesis" / "chapter1.tex").is_file()


def test_an_empty_folder_is_used(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert export(run_folder, tmp_path / "out") == 0
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize(
    ("prepare", "more", "message"),
    [
        (lambda run: None, ["--step", "7"], "no checkpoint of step 7; there are those of 5, 10"),
        (lambda run: shutil.rmtree(run / "checkpoints"), [], "expected the folder of an sft or grpo run"),
        (
            lambda run: [shutil.rmtree(path) for path in (run / "checkpoints").iterdir()],
            [],
            "no checkpoint yet",
        ),
    ],
)
def test_a_run_without_that_checkpoint_is_refused(
    run_folder: Path, tmp_path: Path, capsys, prepare, more, message
) -> None:
    prepare(run_folder)
    assert export(run_folder, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_not_exported(run_folder: Path, tmp_path: Path, capsys) -> None:
    weights = run_folder / "checkpoints" / "step_000010" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert export(run_folder, tmp_path / "out", "--step", "10") == 1
    assert "SHA-256" in capsys.readouterr().err
    assert export(run_folder, tmp_path / "out") == 0
    assert "step 5" in capsys.readouterr().out


def test_a_full_disk_is_found_before_or_leaves_nothing(
    run_folder: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    assert export(run_folder, tmp_path / "out") == 2
    assert "34 MiB needed, 1 MiB free" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    def fail(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export_command, "fsync_path", fail)
    assert export(run_folder, tmp_path / "out") == 2
    assert "No space left" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
