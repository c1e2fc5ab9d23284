"""The report page: complete, self-contained, and harmless whatever the model wrote."""

import re

import pytest

from alphadrive.config import Config
from alphadrive.errors import RunFolderError
from alphadrive.report import write_report
from alphadrive.report_charts import Series, line_chart, number
from alphadrive.rollout_writer import RolloutWriter
from alphadrive.run_folder import RunFolder
from alphadrive.types import (
    Completion,
    DrivingQuery,
    RewardBreakdown,
    RolloutGroup,
    ScoredGroup,
    VersionSpan,
    WeightVersion,
)


def scored_group(ticket, texts, rewards):
    span = VersionSpan(version=WeightVersion(0, 3), start=0, end=1)
    completions = tuple(
        Completion(
            text=text, token_ids=(5,), rollout_logprobs=(-0.5,), finish_reason="stop", weight_versions=(span,)
        )
        for text in texts
    )
    query = DrivingQuery(
        query_id=f"q{ticket}", row=0, speed_mps=4.5, navigation="turn <left>", plans=("KEEP, STRAIGHT",)
    )
    group = RolloutGroup(
        ticket=ticket, query=query, prompt_token_ids=(1,), completions=completions, engine_id="e0"
    )
    breakdowns = tuple(RewardBreakdown(terms={"speed": reward}, total=reward) for reward in rewards)
    return ScoredGroup(group=group, rewards=breakdowns, advantages=tuple(rewards))


@pytest.fixture
def run(tmp_path):
    config = Config()
    config.run.root, config.run.name = str(tmp_path), "trial"
    config.run.tensorboard = False
    config.data.train = str(tmp_path / "gone")
    with RunFolder.create(config) as run:
        for step in range(1, 61):
            metrics = {"critic/score/mean": step / 60, "reward/speed/mean": 0.5, "timing_s/step": 2.0}
            run.write_metrics(step, metrics)
        run.write_metrics(60, {"val/planning_accuracy": 0.75})
        run.write_summary({"grpo": {"planning_accuracy": 0.754321, "gain_ci95": [0.05, 0.125]}, "seed": 3})
        with RolloutWriter(run.rollouts_path, "w0") as writer:
            writer.write(scored_group(7, ["<script>alert(1)</script>", "fine"], [0.0, 1.25]))
        yield run


def test_page_holds_figures_curves_timings_and_rollouts(run):
    page = write_report(run.path).read_text()
    assert "<th>grpo.planning_accuracy</th><td>0.7543</td>" in page
    assert "<td>0.05 to 0.125</td>" in page
    assert page.count("<figure>") == 3
    assert "<th>step</th><td>2</td><td>2</td><td>120</td>" in page
    assert "q7" in page and "1.25" in page and "acceptable: KEEP, STRAIGHT" in page
    assert "No image:" in page and "gone" in page


def test_page_is_self_contained_and_escapes_what_the_model_wrote(run):
    page = write_report(run.path).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page and "turn &lt;left&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "url(" not in page and "@import" not in page


def test_folder_of_runs_gets_a_section_for_each(run):
    page = write_report(run.path.parent).read_text()
    assert "<h1>trial</h1>" in page
    assert "No summary.json" in page


def test_empty_and_missing_folders(tmp_path):
    assert "no step has been recorded" in write_report(tmp_path).read_text()
    with pytest.raises(RunFolderError, match="no such run folder"):
        write_report(tmp_path / "missing")


def test_line_goes_from_corner_to_corner():
    chart = line_chart("t", [Series(name="a", steps=(0.0, 10.0), values=(0.0, 1.0))])
    x0, y0, x1, y1 = map(float, re.search(r'points="([\d.]+),([\d.]+) ([\d.]+),([\d.]+)"', chart).groups())
    assert (x0, x1) == (52.0, 370.0)
    # 5 % of the range of values is left free above and below.
    assert (y0, y1) == pytest.approx((148 - 138 * 0.05 / 1.1, 148 - 138 * 1.05 / 1.1), abs=0.06)
    assert "<b>1</b>" in chart


@pytest.mark.parametrize("values", [(0.0,), (3.0, 3.0), (-1e-9, 1e-9), (1e12, 2e12)])
def test_flat_short_and_extreme_series_are_drawn(values):
    chart = line_chart("t", [Series(name="a", steps=tuple(map(float, range(len(values)))), values=values)])
    assert "nan" not in chart and "inf" not in chart


@pytest.mark.parametrize(("value", "text"), [(0.123456, "0.1235"), (1234567.8, "1,234,568"), (2.0, "2")])
def test_numbers_for_people(value, text):
    assert number(value) == text
