"""What a run shows to Prometheus, with Ray's metric classes replaced by ones that remember; and what the
dashboard asks for. The endpoint itself is read in `test_profiled_run`."""

import json
import re
from itertools import combinations
from pathlib import Path

import pytest

from alphadrive import metric_names as names
from alphadrive.config import load_config
from cluster import live_metrics
from cluster.live_metrics import METRICS, LiveMetrics, is_wanted

DASHBOARD = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "alphadrive.json"


def exported_names(name):
    """How Prometheus knows a metric of ours."""
    kind = METRICS[name].kind
    endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    return {f"ray_{name}{ending}" for ending in endings[kind]}


class Remembering:
    def __init__(self, kind, shown):
        self.kind, self.shown = kind, shown

    def __call__(self, name, description, *rest):
        *_, tag_keys = rest
        shown, kind = self.shown, self.kind

        class Metric:
            def set_default_tags(self, tags):
                assert set(tags) <= set(tag_keys)
                self.tags = tags
                return self

            def record(self, value, tags=None):
                assert isinstance(value, float)
                own = self.tags | (tags or {})
                assert set(own) == set(tag_keys)
                shown.setdefault(name, []).append((value, own))

        setattr(Metric, {"gauge": "set", "counter": "inc", "histogram": "observe"}[kind], Metric.record)
        return Metric()


@pytest.fixture
def shown(monkeypatch):
    seen = {}
    for kind in ("Gauge", "Counter", "Histogram"):
        monkeypatch.setattr(live_metrics.ray_metrics, kind, Remembering(kind.lower(), seen))
    return seen


def test_the_figures_of_a_step(shown):
    live = LiveMetrics("first")
    live.write(
        7,
        {
            names.STEP_S: 2.0,
            names.SYNC_S: 0.25,
            names.END_TO_END_SAMPLES_PER_S: 32.0,
            names.ROLLOUT_TOKENS_PER_S: 900.0,
            names.POLICY_LAG_MAX: 1.0,
            names.reward_term_mean("plan"): 0.5,
            names.reward_term_std("plan"): 0.1,
            names.LOSS: -0.25,
        },
    )
    run = {"run": "first"}
    assert shown == {
        "alphadrive_steps": [(1.0, run)],
        "alphadrive_samples": [(64.0, run)],
        "alphadrive_tokens": [(1800.0, run)],
        "alphadrive_step": [(7.0, run)],
        "alphadrive_step_seconds": [(2.0, run)],
        "alphadrive_weight_sync_seconds": [(0.25, run)],
        "alphadrive_samples_per_second": [(32.0, run)],
        "alphadrive_tokens_per_second": [(900.0, run)],
        "alphadrive_policy_lag_max": [(1.0, run)],
        "alphadrive_reward_term_mean": [(0.5, run | {"term": "plan"})],
        "alphadrive_loss": [(-0.25, run)],
    }


def test_an_evaluation_is_no_step(shown):
    LiveMetrics("first").write(7, {names.VAL_PLANNING_ACCURACY: 0.75})
    assert shown == {"alphadrive_validation_accuracy": [(0.75, {"run": "first"})]}


def test_a_step_of_sft(shown):
    LiveMetrics("first").write(1, {names.UPDATE_S: 2.0, names.SAMPLES_PER_S: 4.0, names.SFT_LOSS: 1.5})
    assert shown["alphadrive_samples"] == [(8.0, {"run": "first"})]
    assert shown["alphadrive_loss"] == [(1.5, {"run": "first"})]
    assert "alphadrive_tokens" not in shown


def test_a_state_that_no_worker_is_in_any_more_goes_to_nought(shown):
    live = LiveMetrics("first")
    live.look({"workers": [{"kind": "rollout", "state": "SERVING"}] * 2, "buffer": {"slots": 8, "held": 3}})
    live.look({"workers": [{"kind": "rollout", "state": "DEAD"}], "buffer": None})
    counts = [
        [value for value, tags in shown["alphadrive_workers"] if tags["state"] == state]
        for state in ("SERVING", "DEAD")
    ]
    assert counts == [[2.0, 0.0], [0.0, 1.0]]
    assert [(value, tags["slots"]) for value, tags in shown["alphadrive_buffer"]] == [
        (8.0, "slots"),
        (3.0, "held"),
    ]


def test_on_by_default_only_where_a_cluster_was_joined(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not is_wanted(load_config("debug"))
    assert is_wanted(load_config("debug", ["profile.prometheus=true"]))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert is_wanted(load_config("debug"))
    assert not is_wanted(load_config("debug", ["profile.prometheus=false"]))


@pytest.fixture(scope="module")
def dashboard():
    return json.loads(DASHBOARD.read_text())


def expressions(dashboard):
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())] + [
        dashboard["templating"]["list"][1]["definition"]
    ]


def test_the_dashboard_asks_for_metrics_that_there_are_and_for_all_of_them(dashboard):
    asked = {name for expression in expressions(dashboard) for name in re.findall(r"ray_\w+", expression)}
    assert asked <= {exported for name in METRICS for exported in exported_names(name)}
    assert [name for name in METRICS if not exported_names(name) & asked] == []


def test_the_dashboard_groups_and_labels_by_tags_that_there_are(dashboard):
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            tags = {"run", "le"}
            for name in METRICS:
                if exported_names(name) & set(re.findall(r"ray_\w+", target["expr"])):
                    tags |= set(METRICS[name].tags)
            used = re.findall(r"{{(\w+)}}", target["legendFormat"])
            assert "run" in used, "several runs may be chosen"
            for by in re.findall(r"by \(([^)]*)\)", target["expr"]):
                used += [tag.strip() for tag in by.split(",")]
            assert set(used) <= tags, target


def test_the_dashboard_is_one_that_grafana_imports(dashboard):
    assert dashboard["schemaVersion"] == 39 and dashboard["id"] is None and dashboard["title"]
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        assert panel["type"] in ("row", "timeseries")
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
            assert target["expr"].count("(") == target["expr"].count(")")
    for first, second in combinations((panel["gridPos"] for panel in dashboard["panels"]), 2):
        apart = (
            first["x"] + first["w"] <= second["x"]
            or second["x"] + second["w"] <= first["x"]
            or first["y"] + first["h"] <= second["y"]
            or second["y"] + second["h"] <= first["y"]
        )
        assert apart, (first, second)
