"""What a run that is resumed finds: whose summary lies in its folder."""

import json
from types import SimpleNamespace

import pytest

from alphadrive.config import Config
from alphadrive.run_folder import RunFolder
from cluster.resuming import end_of_finished


@pytest.mark.parametrize("left_by", ["failed", "finished"])
def test_a_summary_left_by_an_attempt_before_is_not_taken_for_that_of_the_end(tmp_path, left_by):
    # The driver was killed between the last status and the summary.
    config = Config()
    config.run.root, config.run.name, config.run.tensorboard = str(tmp_path), "run", False
    run = RunFolder(tmp_path / "run", config)
    run.path.mkdir()
    run.write_summary({"status": left_by, "attempt": 0, "grpo": {"steps": 1}})
    run.write_status({"status": "finished", "attempt": 1, "step": 4})
    start = SimpleNamespace(
        version=SimpleNamespace(step=4), saved={"attempt": 1, "summary": {"grpo": {"steps": 4}}}
    )
    summary = end_of_finished(run, "grpo", 4, start)
    assert summary["grpo"] == {"steps": 4} and summary["attempt"] == 1
    assert json.loads(run.summary_path.read_text()) == summary
    assert end_of_finished(run, "grpo", 4, start) == summary
