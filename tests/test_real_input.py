"""Images nobody here made go through the whole system: import, SFT, GRPO, evaluation, by the commands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

METAAD = Path(__file__).resolve().parents[2] / "shared" / "data" / "metaad"

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not METAAD.is_dir(), reason=f"needs published MetaAD rows in {METAAD}"),
]


def alphadrive(*arguments: str) -> str:
    """Run a command as a user does and give what it printed; fails with that on any exit code but 0."""
    done = subprocess.run(
        [sys.executable, "-m", "alphadrive.cli", *arguments], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_metaad_rows_are_imported_trained_on_and_evaluated(tmp_path: Path) -> None:
    data = tmp_path / "data"
    alphadrive("data", "import", "metaad", str(METAAD), "--out", str(data))
    common = ("metaad_debug", f"run.root={tmp_path}", f"data.train={data}", f"data.eval={data}")
    alphadrive("sft", *common, "run.name=sft", "sft.steps=12")
    alphadrive("grpo", *common, "run.name=grpo", f"model.path={tmp_path / 'sft'}")
    metrics = [json.loads(line) for line in (tmp_path / "grpo" / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in metrics) == 3
    assert any("val/planning_accuracy" in line for line in metrics)
    out = tmp_path / "eval"
    alphadrive("eval", str(tmp_path / "grpo"), str(data), "--out", str(out), "--max-model-len", "1024")
    assert json.loads((out / "eval.json").read_text())["num_rows"] == 1
