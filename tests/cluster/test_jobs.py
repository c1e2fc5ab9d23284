"""What a submitted job must not do: write to, or read from, its own copy of a folder."""

import json

import pytest

from alphadrive.config import default_config
from alphadrive.errors import ConfigError
from cluster.jobs import check_paths, stop_note

OUTSIDE = ["run.root=/shared/runs", "data.train=/shared/train", "model.path=tiny"]


@pytest.fixture
def job(monkeypatch, tmp_path):
    """A submitted job's process, in its copy of the folder."""
    job = {
        "runtime_env": {"working_dir": "gcs://_ray_pkg_0123.zip", "env_vars": {}},
        "metadata": {"job_submission_id": "raysubmit_1", "job_name": "raysubmit_1"},
    }
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    monkeypatch.delenv("RAY_JOB_STOP_WAIT_TIME_S", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems_of(*overrides):
    with pytest.raises(ConfigError) as caught:
        check_paths(default_config([*OUTSIDE, *overrides]))
    return str(caught.value).splitlines()


def test_outside_of_a_job_every_path_is_fine(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    check_paths(default_config([]))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {}}))
    check_paths(default_config([]))
    assert stop_note(60) is None


def test_a_job_with_paths_that_every_node_reaches_is_fine(job):
    check_paths(default_config(OUTSIDE))
    check_paths(default_config([*OUTSIDE, "model.path=Qwen/Qwen2-VL-2B-Instruct", "model.revision=0123"]))


def test_data_may_be_at_an_address(job):
    check_paths(default_config([*OUTSIDE, "data.train=s3://bucket/train", "data.eval=gs://bucket/eval"]))


def test_every_relative_path_is_named_in_one_error(job):
    lines = problems_of("run.root=runs", "data.train=data/a", "data.eval=../b", "model.path=runs/warm-up")
    assert [line.partition("=")[0] for line in lines] == ["run.root", "data.train", "data.eval", "model.path"]
    assert lines[0] == (
        "run.root='runs': is relative, and a submitted job runs in a copy of its folder that is thrown away "
        "with it; expected an absolute path that every node reaches, for example run.root=/shared/runs"
    )
    assert lines[2].endswith("(or s3://, gs://), for example data.eval=/shared/b")
    assert "(or a hub id, with model.revision), for example model.path=/shared/runs/warm-up" in lines[3]


def test_an_absolute_path_into_the_copy_is_refused_too(job, monkeypatch):
    (line,) = problems_of(f"run.root={job}/runs")
    assert "copy of the submitted folder" in line and line.endswith("run.root=/shared/runs")
    without_folder = {"metadata": {"job_submission_id": "raysubmit_1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(without_folder))
    check_paths(default_config([*OUTSIDE, f"run.root={job}/runs"]))


def test_a_job_with_too_little_time_to_end_is_told_how_to_get_more(job, monkeypatch):
    assert "gives this job 3 s" in stop_note(60)
    assert '{"RAY_JOB_STOP_WAIT_TIME_S": "90"}' in stop_note(60)
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "89")
    assert "gives this job 89 s" in stop_note(60)
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "90")
    assert stop_note(60) is None


def test_a_description_of_the_job_that_is_not_json_is_named(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{not json")
    with pytest.raises(ConfigError, match=r"RAY_JOB_CONFIG_JSON_ENV_VAR: .* expected JSON.*unset it"):
        check_paths(default_config(OUTSIDE))
