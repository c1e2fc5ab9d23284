"""torch's profiler around chosen steps."""

import gzip
import json

import pytest
import torch

from alphadrive.config import load_config
from alphadrive.errors import ConfigError
from learner.torch_traces import StepTraces


def test_the_chosen_steps_leave_traces_with_their_operators(tmp_path):
    traces = StepTraces([2, 3], tmp_path / "torch")
    for step in range(1, 5):
        with traces.of(step):
            torch.ones(4, 4) @ torch.ones(4, 4)
    assert sorted(path.name for path in (tmp_path / "torch").iterdir()) == [
        "step_000002.json.gz",
        "step_000003.json.gz",
    ]
    with gzip.open(tmp_path / "torch" / "step_000003.json.gz", "rt") as file:
        assert "aten::matmul" in {event.get("name") for event in json.load(file)["traceEvents"]}


def test_a_step_that_fails_leaves_none(tmp_path):
    with pytest.raises(KeyError), StepTraces([1], tmp_path / "torch").of(1):
        raise KeyError
    assert not (tmp_path / "torch").exists()


def test_a_trace_that_cannot_be_written_costs_nothing_else(tmp_path, caplog):
    (tmp_path / "torch").touch()
    with StepTraces([1], tmp_path / "torch").of(1):
        pass
    assert "the trace cannot be written" in caplog.text


def test_steps_before_the_first_are_refused():
    with pytest.raises(ConfigError, match=r"profile.torch_steps=\[0\]: steps count from 1"):
        load_config("debug", ["profile.torch_steps=[0, 3]"])
