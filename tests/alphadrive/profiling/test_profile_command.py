"""`alphadrive profile` on folders that hold what a run would have written."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
from timelines import FACTS, learner_bound

from alphadrive.cli import run
from alphadrive.profiling.span_file import SpanFile
from alphadrive.profiling.spans import SpanBatch


@pytest.fixture
def profiled(tmp_path):
    """A run's folder."""
    folder = tmp_path / "first"
    folder.mkdir()
    file = SpanFile(folder, FACTS)
    for track in learner_bound().tracks.values():
        batch = SpanBatch(
            kind=track.kind,
            source=track.source,
            clock="c",
            taken_ns=0,
            num_dropped=0,
            spans=track.spans,
            facts=track.facts,
        )
        file.write([(batch, 0, 0)])
    return folder


def test_a_runs_folder_is_read_back(profiled, capsys):
    assert run(["profile", str(profiled)]) == 0
    text = capsys.readouterr().out
    assert "verdict: " in text and str(profiled / "timeline.json") in text
    assert json.loads((profiled / "timeline.json").read_text())["traceEvents"]


def test_as_json(profiled, capsys):
    assert run(["profile", str(profiled), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["run"] == str(profiled) and told["overlap"] == pytest.approx(0.7)


def test_a_plot_is_an_svg_with_a_bar_for_each_kind(profiled, tmp_path, capsys):
    path = tmp_path / "p.svg"
    assert run(["profile", str(profiled), "--plot", str(path)]) == 0
    svg = ElementTree.fromstring(path.read_text())
    texts = [node.text for node in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"train loop", "rollout x 1", "learner x 1", "reward x 1", "rank-0", "engine-0", "w0"} <= set(
        texts
    )
    titles = {node.text for node in svg.iter("{http://www.w3.org/2000/svg}title")}
    assert "train 77.4%" in titles and "generate 3000.0 ms" in titles
    for box in svg.iter("{http://www.w3.org/2000/svg}rect"):
        assert 0 <= float(box.get("x", 0)) + float(box.get("width")) <= 900.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "p.png"], "ends in .svg"),
        (["--plot", "no/such/p.svg"], "no such folder: no/such"),
        (["--steps", "3"], "is a run's folder"),
        (["grpo.steps=3"], "is a run's folder"),
        (["--overwrite"], "is a run's folder"),
    ],
)
def test_what_does_not_go_with_a_run_is_refused(profiled, arguments, message, capsys):
    assert run(["profile", str(profiled), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_was_not_profiled_is_told_how(tmp_path, capsys):
    assert run(["profile", str(tmp_path)]) == 2
    assert "profile.enabled=true" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_no_configuration(capsys):
    assert run(["profile", "runs/nowhere"]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert run(["profile", "nowhere"]) == 2
    assert "no configuration 'nowhere'" in capsys.readouterr().err


def test_a_configuration_is_run_and_read_back(profiled, tmp_path, monkeypatch, capsys):
    from types import SimpleNamespace

    from cluster import launch

    seen = []

    def fake_run(config, overwrite):
        seen.append((config.run.name, config.grpo.steps, config.profile.enabled, overwrite))
        return SimpleNamespace(folder=profiled)

    monkeypatch.setattr(launch, "run_grpo", fake_run)
    monkeypatch.chdir(tmp_path)
    assert run(["profile", "debug", "--steps", "20", "--overwrite", "rollout.num_workers=2"]) == 0
    assert run(["profile", "debug", "run.name=mine"]) == 0
    assert run(["profile", "debug", "grpo.steps=7"]) == 0
    assert seen == [
        ("debug-profile", 20, True, True),
        ("mine", 12, True, False),
        ("debug-profile", 7, True, False),
    ]
    assert "verdict: " in capsys.readouterr().out


def test_a_dry_run_of_a_configuration_starts_nothing(profiled, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["profile", "debug", "--dry-run", "data.train=nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert run(["profile", str(profiled), "--dry-run"]) == 2
    assert "is a run's folder" in capsys.readouterr().err
