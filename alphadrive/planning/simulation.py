"""A run simulated from its first group to its last step: what it brings, and who waits for whom."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from alphadrive.planning.clock import Clock, SimulatedDriver
from alphadrive.planning.learner import SimulatedLearner
from alphadrive.planning.loop import SimulatedLoop
from alphadrive.planning.measured import Measured, Setup
from alphadrive.planning.pool import SimulatedPool
from alphadrive.planning.rewards import SimulatedRewards
from alphadrive.planning.workload import groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was seen over the steps after the warm-up. Samples are completions trained or left out. Shares are
    of the time; `policy_lag` has the share of trained groups for each number of versions."""

    num_engines: int
    samples_per_s: float
    step_s: float
    engine_idle_share: float
    learner_idle_share: float
    driver_busy_share: float
    sync_s: float
    policy_lag: dict[int, float]
    deaths_per_hour: float

    @property
    def mean_lag(self) -> float:
        """Versions that a trained group is behind, on average."""
        return sum(lag * share for lag, share in self.policy_lag.items())


@dataclass(frozen=True, slots=True)
class _Reading:
    """The counters at one moment."""

    now_s: float
    num_groups: int
    engines_busy_s: float
    waited_s: float
    driver_busy_s: float
    num_syncs: int
    lags: Counter[int]
    num_deaths: int


class Simulation:
    """The parts of one simulated run, put together."""

    def __init__(self, setup: Setup, measured: Measured, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.setup = setup
        self.clock = clock = Clock()
        self.driver = SimulatedDriver(clock, measured.driver.watch_engine_s * setup.num_engines)
        work = groups(measured, setup.group_size, random)
        self.loop = SimulatedLoop(clock, self.driver, measured, setup, work)
        rewards = SimulatedRewards(clock, self.driver, measured, setup.num_rewards, random, self.loop.scored)
        self.pool = SimulatedPool(clock, self.driver, measured, setup, random, rewards.score)
        self.learner = SimulatedLearner(clock, self.driver, measured, setup, random, self.pool)
        self.loop.pool, self.loop.learner = self.pool, self.learner

    def run(self) -> Outcome:
        """Simulate to the end."""
        self.loop.start()
        self.clock.run_until(lambda: self.loop.num_steps >= self.setup.warmup_steps)
        first = self._reading()
        self.clock.run_until(lambda: self.loop.is_over)
        return self._outcome(first, self._reading())

    def _reading(self) -> _Reading:
        return _Reading(
            self.clock.now_s,
            self.loop.num_trained + self.loop.num_skipped,
            self.pool.busy_s,
            self.loop.waited_s,
            self.driver.busy_s,
            len(self.learner.sync_seconds),
            Counter(self.loop.lags),
            self.pool.num_deaths,
        )

    def _outcome(self, first: _Reading, last: _Reading) -> Outcome:
        seconds = last.now_s - first.now_s
        lags = last.lags - first.lags
        engines_busy_s = last.engines_busy_s - first.engines_busy_s
        syncs = self.learner.sync_seconds[first.num_syncs : last.num_syncs]
        return Outcome(
            num_engines=self.setup.num_engines,
            samples_per_s=(last.num_groups - first.num_groups) * self.setup.group_size / seconds,
            step_s=seconds / self.setup.steps,
            engine_idle_share=1 - engines_busy_s / seconds / self.setup.num_engines,
            learner_idle_share=(last.waited_s - first.waited_s) / seconds,
            driver_busy_share=min(1.0, (last.driver_busy_s - first.driver_busy_s) / seconds),
            sync_s=float(np.mean(syncs)) if syncs else 0.0,
            policy_lag={lag: count / lags.total() for lag, count in sorted(lags.items())},
            deaths_per_hour=(last.num_deaths - first.num_deaths) / seconds * 3600,
        )


def simulate(setup: Setup, measured: Measured, seed: int = 0) -> Outcome:
    """Simulate a run of a setup."""
    return Simulation(setup, measured, seed).run()
