"""A run's figures for Prometheus, by way of Ray's own metrics: every Ray node serves them, beside Ray's.

    metrics of a step ──▶ `write`          status, every second ──▶ `look`
                             └──── ray.util.metrics ────┘──▶ node's /metrics ──▶ Prometheus ──▶ Grafana

On where a cluster was joined (RAY_ADDRESS), off on a private local one, unless `profile.prometheus` says
otherwise. `METRICS` is all there is; the dashboard in deploy/grafana asks for nothing else. Ray writes `ray_`
before every name and `_total` after a counter's.
"""

import os
from collections import Counter as Count
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.util import metrics as ray_metrics

from alphadrive import metric_names as names
from alphadrive.config import Config
from cluster.workers import WorkerState

SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]
"""Boundaries of histograms."""


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric. `sources` are the step metrics that it may show; every metric has the tag `run`, and those
    of `tags`."""

    kind: str
    help: str
    sources: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


METRICS = {
    "alphadrive_steps": Definition("counter", "Optimizer steps made"),
    "alphadrive_samples": Definition("counter", "Completions trained or skipped"),
    "alphadrive_tokens": Definition("counter", "Tokens sampled"),
    "alphadrive_step": Definition("gauge", "The step reached"),
    "alphadrive_step_seconds": Definition("histogram", "Seconds of a step", (names.STEP_S,)),
    "alphadrive_update_seconds": Definition(
        "histogram", "Seconds of the learner's update", (names.UPDATE_S,)
    ),
    "alphadrive_weight_sync_seconds": Definition("histogram", "Seconds of a weight sync", (names.SYNC_S,)),
    "alphadrive_engine_paused_seconds": Definition(
        "histogram", "The longest that an engine drew nothing in a weight sync", (names.ENGINE_PAUSED_S,)
    ),
    "alphadrive_samples_per_second": Definition(
        "gauge", "Completions by second of the whole system", (names.END_TO_END_SAMPLES_PER_S,)
    ),
    "alphadrive_tokens_per_second": Definition(
        "gauge", "Tokens sampled by second", (names.ROLLOUT_TOKENS_PER_S,)
    ),
    "alphadrive_learner_idle_ratio": Definition(
        "gauge", "Part of the last step in which the learner waited for groups", (names.LEARNER_IDLE_SHARE,)
    ),
    "alphadrive_policy_lag_max": Definition(
        "gauge", "The oldest group of the last step, in weight versions", (names.POLICY_LAG_MAX,)
    ),
    "alphadrive_policy_lag_mean": Definition(
        "gauge", "Mean age of the last step's groups, in weight versions", (names.POLICY_LAG_MEAN,)
    ),
    "alphadrive_reward_mean": Definition("gauge", "Mean reward of the last groups", (names.SCORE_MEAN,)),
    "alphadrive_reward_term_mean": Definition("gauge", "Mean of each term of the reward", tags=("term",)),
    "alphadrive_zero_variance_ratio": Definition(
        "gauge", "Part of the last groups whose rewards were all equal", (names.ZERO_VARIANCE_SHARE,)
    ),
    "alphadrive_loss": Definition("gauge", "The loss of the last step", (names.LOSS, names.SFT_LOSS)),
    "alphadrive_grad_norm": Definition(
        "gauge", "Norm of the gradient before clipping", (names.GRAD_NORM, names.SFT_GRAD_NORM)
    ),
    "alphadrive_dead_letters": Definition("gauge", "Groups dead-lettered so far", (names.DEAD_LETTERS,)),
    "alphadrive_workers_lost": Definition(
        "gauge", "Rollout workers that died, hung or were fenced", (names.ROLLOUT_WORKERS_LOST,)
    ),
    "alphadrive_validation_accuracy": Definition(
        "gauge", "Planning accuracy of the newest evaluation", (names.VAL_PLANNING_ACCURACY,)
    ),
    "alphadrive_buffer": Definition(
        "gauge", "Slots of the buffer: all, held, ready to train", tags=("slots",)
    ),
    "alphadrive_workers": Definition("gauge", "Workers by kind and state", tags=("kind", "state")),
}


def is_wanted(config: Config) -> bool:
    """Whether a run's figures are to be had at Ray's metrics endpoint."""
    if config.profile.prometheus is not None:
        return config.profile.prometheus
    return bool(os.environ.get("RAY_ADDRESS"))


class LiveMetrics:
    """A tracker (`alphadrive.trackers`) of a run, and a reader of its status. Ray must be up."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._metrics: dict[str, Any] = {name: self._made(name) for name in METRICS}
        self._workers: set[tuple[str, str]] = set()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the figures of a step; an evaluation's come by themselves."""
        for name, definition in METRICS.items():
            for source in definition.sources:
                if source in metrics:
                    self._show(name, metrics[source])
        for term in terms_of(metrics):
            value = metrics[names.reward_term_mean(term)]
            self._metrics["alphadrive_reward_term_mean"].set(value, {"term": term})
        if step_s := metrics.get(names.STEP_S) or metrics.get(names.UPDATE_S):
            self._count("alphadrive_steps", 1.0)
            per_s = metrics.get(names.END_TO_END_SAMPLES_PER_S, metrics.get(names.SAMPLES_PER_S, 0.0))
            self._count("alphadrive_samples", per_s * step_s)
            self._count("alphadrive_tokens", metrics.get(names.ROLLOUT_TOKENS_PER_S, 0.0) * step_s)
            self._metrics["alphadrive_step"].set(float(step))

    def look(self, fields: Mapping[str, Any]) -> None:
        """Show the workers and the buffer of a status (docs/operating.md)."""
        for slots, number in (fields.get("buffer") or {}).items():
            self._metrics["alphadrive_buffer"].set(float(number), {"slots": slots})
        counts = Count((worker["kind"], worker["state"]) for worker in fields.get("workers", ()))
        self._workers |= {(kind, state.value) for kind, _ in counts for state in WorkerState}
        for kind, state in self._workers:
            self._metrics["alphadrive_workers"].set(
                float(counts[kind, state]), {"kind": kind, "state": state}
            )

    def rewind(self, step: int) -> None:
        """A counter goes on: what was done again was done."""

    def close(self) -> None:
        """Ray forgets the metrics with the driver's process."""

    def _show(self, name: str, value: float) -> None:
        if METRICS[name].kind == "histogram":
            self._metrics[name].observe(value)
        else:
            self._metrics[name].set(value)

    def _count(self, name: str, amount: float) -> None:
        if amount > 0:
            self._metrics[name].inc(amount)

    def _made(self, name: str) -> Any:
        definition = METRICS[name]
        tags = ("run", *definition.tags)
        if definition.kind == "counter":
            made = ray_metrics.Counter(name, definition.help, tags)
        elif definition.kind == "histogram":
            made = ray_metrics.Histogram(name, definition.help, SECONDS, tags)
        else:
            made = ray_metrics.Gauge(name, definition.help, tags)
        return made.set_default_tags({"run": self._run})


def terms_of(metrics: Mapping[str, float]) -> list[str]:
    """The reward's terms that a step has means of.

    >>> terms_of({"reward/plan/mean": 0.5, "reward/plan/std": 0.1, "actor/loss": 0.2})
    ['plan']
    """
    prefix, suffix = names.reward_term_mean("\0").split("\0")
    return [
        name.removeprefix(prefix).removesuffix(suffix)
        for name in metrics
        if name.startswith(prefix) and name.endswith(suffix)
    ]
