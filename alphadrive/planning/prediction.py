"""From simulated runs with different numbers of engines to advice: a table, a number, the reason."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alphadrive.config import Config
from alphadrive.planning.measured import Measured, Setup, setup_of
from alphadrive.planning.simulation import Outcome, simulate

GOOD_SHARE = 0.95
"""The fewest engines that bring so much of the most that was found are recommended."""
FULL, WAITS = 0.9, 0.1
GROUPS, GROUPS_WITH_DEATHS = 3_000, 40_000
"""Simulated at least, so far as `MIN_STEPS` and `MAX_STEPS` allow; deaths are rare."""
MIN_STEPS, MAX_STEPS = 16, 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What to expect of each number of engines, which one is recommended, and why."""

    outcomes: tuple[Outcome, ...]
    num_engines: int
    reason: str
    is_weak: bool

    def as_fields(self) -> dict[str, Any]:
        """As JSON."""
        workers = [
            dataclasses.asdict(each) | {"policy_lag_mean": each.mean_lag, "efficiency": self.efficiency(each)}
            for each in self.outcomes
        ]
        return {"workers": workers, "recommended": self.num_engines, "reason": self.reason}

    def efficiency(self, outcome: Outcome) -> float:
        """Samples a second of an engine, by those of the smallest number of engines."""
        smallest = self.outcomes[0]
        alone = smallest.samples_per_s / smallest.num_engines
        return outcome.samples_per_s / outcome.num_engines / alone

    def __str__(self) -> str:
        head = (
            "engines  samples/s  by engine  engines idle  learner idle  driver busy  sync s  lag mean (max)"
        )
        lines = [
            f"{each.num_engines:7d}  {each.samples_per_s:9.1f}  {self.efficiency(each):9.0%}"
            f"  {each.engine_idle_share:12.0%}  {each.learner_idle_share:12.0%}"
            f"  {each.driver_busy_share:11.0%}  {each.sync_s:6.2f}"
            f"  {each.mean_lag:.2f} ({max(each.policy_lag)})"
            for each in self.outcomes
        ]
        return "\n".join([head, *lines, "", f"recommended: {self.num_engines} engines: {self.reason}"])


def predict(
    config: Config,
    measured: Measured,
    worker_counts: Sequence[int],
    *,
    fail_rate: float = 0.0,
    is_weak: bool = False,
    seed: int = 0,
) -> Prediction:
    """Simulate the configuration with each number of engines.

    `is_weak`: groups of a step, learner ranks and reward workers grow with the engines.
    """
    counts = sorted(set(worker_counts))
    setups = [setup_for(config, number, fail_rate=fail_rate, is_weak=is_weak) for number in counts]
    outcomes = tuple(simulate(setup, measured, seed) for setup in setups)
    most = max(outcome.samples_per_s for outcome in outcomes)
    if is_weak:
        chosen = len(outcomes) - 1
    else:
        chosen = next(n for n, each in enumerate(outcomes) if each.samples_per_s >= GOOD_SHARE * most)
    limit = limit_of(outcomes[chosen], setups[chosen])
    if chosen == len(outcomes) - 1:
        reason = f"the most that was asked about; its limit is {limit}"
    else:
        share = outcomes[chosen].samples_per_s / most
        reason = f"{share:.0%} of the most that any number brings; the limit is {limit}"
    return Prediction(
        outcomes=outcomes, num_engines=outcomes[chosen].num_engines, reason=reason, is_weak=is_weak
    )


def setup_for(config: Config, num_engines: int, *, fail_rate: float = 0.0, is_weak: bool = False) -> Setup:
    """The setup of a configuration with another number of engines; see `predict`."""
    factor = num_engines / config.rollout.num_workers if is_weak else 1.0
    per_step = max(1, round(config.grpo.groups_per_step * factor))
    wanted = (GROUPS_WITH_DEATHS if fail_rate else GROUPS) // per_step
    steps = min(MAX_STEPS, max(MIN_STEPS, wanted))
    return setup_of(
        config,
        num_engines,
        groups_per_step=per_step,
        num_ranks=max(1, round(config.learner.num_ranks * factor)),
        num_rewards=max(1, round(config.rewards.num_workers * factor)),
        fail_rate=fail_rate,
        steps=steps,
        warmup_steps=max(4, min(20, steps // 4)),
    )


def limit_of(outcome: Outcome, setup: Setup) -> str:
    """What keeps a run from bringing more, in words."""
    if outcome.driver_busy_share >= FULL:
        return f"the driver, whose event loop is busy {outcome.driver_busy_share:.0%} of the time"
    if outcome.sync_s / setup.sync_every > 0.3 * outcome.step_s:
        return f"the weight sync, {outcome.sync_s:.2f} s: a larger grpo.sync_every or larger steps would help"
    if outcome.learner_idle_share <= WAITS:
        return f"the learner, which waits for groups only {outcome.learner_idle_share:.0%} of the time"
    if outcome.engine_idle_share <= WAITS:
        return f"the engines, which are idle only {outcome.engine_idle_share:.0%} of the time"
    if setup.max_policy_lag == 0:
        return "that engines and learner take turns: grpo.max_policy_lag is 0"
    slots = (setup.max_policy_lag + 1) * setup.groups_per_step
    return (
        f"the time of a group, with {slots} groups under way at most: the longest of them holds a step up; "
        "more grpo.groups_per_step or grpo.max_policy_lag would help"
    )
