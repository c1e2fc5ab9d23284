"""The simulation, held against sums done by hand, and what must hold for any speeds."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from parts import measured, setup

from alphadrive.planning.clock import Clock
from alphadrive.planning.engine import EngineSpeed, SimulatedEngine
from alphadrive.planning.measured import DriverCosts
from alphadrive.planning.simulation import Simulation, simulate

SPREAD = {
    "tokens": np.random.default_rng(0).integers(20, 180, (200, 8)),
    "spread": np.linspace(0.7, 1.3, 30),
    "step_spread": np.linspace(0.8, 1.2, 30),
}


def test_without_lag_a_step_is_the_sum_of_drawing_scoring_updating_and_sending():
    known = measured(
        score_s=np.full(1, 0.1),
        export_s=np.full(1, 0.2),
        sync_engine_s=np.full(1, 0.3),
        paused_s=np.full(1, 0.1),
        canary_s=0.05,
    )
    outcome = simulate(setup(num_rewards=4), known)
    assert outcome.step_s == pytest.approx(1.0 + 0.1 + 0.5 + 0.2 + 0.3 + 0.05)
    assert outcome.samples_per_s == pytest.approx(32 / 2.15)
    assert outcome.sync_s == pytest.approx(0.55)
    assert outcome.learner_idle_share == pytest.approx(1.1 / 2.15)
    assert outcome.engine_idle_share == pytest.approx(1.15 / 2.15)
    assert outcome.policy_lag == {0: 1.0}


def test_with_lag_the_slower_side_sets_the_pace():
    rollouts = simulate(setup(max_policy_lag=1, seats=16), measured())
    assert rollouts.step_s == pytest.approx(2.0), "two groups at once, four a step"
    assert rollouts.engine_idle_share == pytest.approx(0.0, abs=1e-6)
    learner = simulate(setup(max_policy_lag=1), measured(step_s=3.0))
    assert learner.step_s == pytest.approx(3.0)
    assert learner.learner_idle_share == pytest.approx(0.0, abs=1e-6)
    assert learner.policy_lag == {1: 1.0}


def test_one_reward_worker_for_slow_rewards_is_the_limit():
    outcome = simulate(setup(max_policy_lag=1), measured(score_s=np.full(1, 2.0)))
    assert outcome.step_s == pytest.approx(4 * 2.0)
    outcome = simulate(setup(max_policy_lag=1, num_rewards=2), measured(score_s=np.full(1, 2.0)))
    assert outcome.step_s == pytest.approx(2 * 2.0)


def test_the_driver_calls_every_rank():
    """For a step, an export, a comparison; and tells four of them in between of a group to come."""
    alone = simulate(setup(num_ranks=20), measured(num_ranks=20))
    called = simulate(setup(num_ranks=20), measured(num_ranks=20, driver=DriverCosts(call_s=1e-3)))
    assert called.step_s - alone.step_s == pytest.approx(3 * 20e-3, abs=10e-3)


def test_the_drivers_cost_of_groups_and_calls_is_a_limit_too():
    costs = DriverCosts(group_s=0.6)
    outcome = simulate(setup(num_engines=8, max_policy_lag=3), measured(driver=costs))
    assert outcome.step_s == pytest.approx(4 * 0.6, rel=0.01)
    assert outcome.driver_busy_share == pytest.approx(1.0, abs=0.02)
    watched = simulate(setup(), measured(driver=DriverCosts(group_s=0.1, watch_engine_s=0.5)))
    assert watched.step_s == pytest.approx(
        simulate(setup(), measured(driver=DriverCosts(group_s=0.2))).step_s
    )


def test_a_learner_with_more_ranks_is_faster_at_tokens_only():
    known = measured(step_s=0.1, token_s=1e-3)
    assert simulate(setup(), known).step_s == pytest.approx(1.0 + 0.1 + 3.2)
    assert simulate(setup(num_ranks=4), known).step_s == pytest.approx(1.0 + 0.1 + 0.8)


def test_groups_left_out_count_as_samples_and_cost_no_step():
    outcome = simulate(setup(max_policy_lag=1, seats=16, steps=400), measured(flat_share=0.5))
    assert outcome.samples_per_s == pytest.approx(16.0, rel=0.02), (
        "two groups a second, whatever they are worth"
    )
    assert outcome.step_s == pytest.approx(4.0, rel=0.05)
    kept = simulate(setup(max_policy_lag=1, seats=16, skips_flat_groups=False), measured(flat_share=0.5))
    assert kept.step_s == pytest.approx(2.0)


def test_an_engine_that_waits_for_its_groups_is_updated_when_they_have_ended():
    known = measured(sync_engine_s=np.full(1, 0.1), step_s=0.2)
    kept = simulate(setup(max_policy_lag=3), known)
    waited = simulate(setup(max_policy_lag=3, waits_for_groups=True), known)
    assert kept.sync_s == pytest.approx(0.1)
    assert waited.sync_s > 0.3


@examples(max_examples=60, deadline=None)
@given(
    num_engines=st.integers(1, 5),
    groups_per_step=st.integers(1, 6),
    max_policy_lag=st.integers(0, 3),
    sync_every=st.integers(1, 3),
    flat_share=st.sampled_from([0.0, 0.4]),
    waits_for_groups=st.booleans(),
    fail_rate=st.sampled_from([0.0, 60.0]),
    seed=st.integers(0, 2**31),
)
def test_no_group_is_lost_or_too_old_whatever_the_speeds(
    num_engines, groups_per_step, max_policy_lag, sync_every, flat_share, waits_for_groups, fail_rate, seed
):
    random = np.random.default_rng(seed)
    known = measured(
        **SPREAD,
        flat_share=flat_share,
        step_s=float(random.choice([0.05, 1.0, 5.0])),
        score_s=random.random(5) * 0.2,
        export_s=random.random(5) * 0.2,
        sync_engine_s=random.random(5) * 0.4,
        paused_s=random.random(5) * 0.4,
        canary_s=0.02,
        hop_s=0.003,
        engine_start_s=10.0,
        driver=DriverCosts(group_s=1e-4, call_s=2e-4, sync_engine_s=1e-3),
    )
    simulated = Simulation(
        setup(
            num_engines=num_engines,
            groups_per_step=groups_per_step,
            max_policy_lag=max_policy_lag,
            sync_every=sync_every,
            waits_for_groups=waits_for_groups,
            fail_rate=fail_rate,
        ),
        known,
        seed,
    )
    outcome = simulated.run()
    loop = simulated.loop
    assert max(outcome.policy_lag) <= max_policy_lag + sync_every - 1
    assert loop.num_held <= (max_policy_lag + 1) * groups_per_step
    assert loop.num_issued == loop.num_trained + loop.num_skipped + loop.num_held
    assert loop.num_trained == loop.num_steps * groups_per_step
    for share in (outcome.engine_idle_share, outcome.learner_idle_share, outcome.driver_busy_share):
        assert -1e-9 <= share <= 1 + 1e-9


def test_more_engines_never_bring_less():
    known = measured(**SPREAD, sync_engine_s=np.full(1, 0.05), step_s=0.1)
    brought = [
        simulate(setup(num_engines=n, max_policy_lag=1, groups_per_step=8, steps=150), known).samples_per_s
        for n in (1, 2, 4, 8, 16)
    ]
    assert all(more > 0.98 * fewer for fewer, more in pairwise(brought))
    assert brought[1] > 1.5 * brought[0]


def test_engines_that_die_are_replaced_and_cost_what_their_start_takes():
    def of(fail_rate, engine_start_s=60.0):
        known = measured(**SPREAD, engine_start_s=engine_start_s, step_s=0.05)
        return simulate(
            setup(num_engines=4, max_policy_lag=2, fail_rate=fail_rate, steps=1500, seats=8), known
        )

    sound, failing = of(0.0), of(30.0)
    assert sound.deaths_per_hour == 0
    # An engine lives 120 s and is away for 60: a third of them all.
    assert failing.deaths_per_hour == pytest.approx(4 * 3600 / 180, rel=0.2)
    assert 0.5 < failing.samples_per_s / sound.samples_per_s < 0.72
    assert of(30.0, engine_start_s=1.0).samples_per_s > failing.samples_per_s


def test_sequences_that_wait_for_a_seat_are_drawn_in_order():
    engine = SimulatedEngine(EngineSpeed(token_s=1.0, sequence_token_s=0.5, prompt_tokens=0.0), seats=2)
    engine.begin(0.0, 7, [2.0, 3.0])
    engine.begin(0.0, 8, [1.0])
    assert engine.next_end_s() == pytest.approx(4.0), "two tokens at two seconds, two sequences"
    assert engine.ended(4.0) == []
    assert engine.next_end_s() == pytest.approx(6.0)
    assert sorted(engine.ended(6.0)) == [7, 8]
    assert engine.next_end_s() is None and not engine.has_work
    assert engine.busy_s == pytest.approx(6.0)


def test_a_paused_engine_draws_nothing():
    engine = SimulatedEngine(EngineSpeed(token_s=1.0, sequence_token_s=0.0, prompt_tokens=0.0), seats=2)
    engine.begin(0.0, 1, [4.0])
    engine.pause(1.0)
    assert engine.next_end_s() is None
    engine.resume(6.0, version=3)
    assert engine.next_end_s() == pytest.approx(9.0)
    assert engine.drawn_with[1] == 0 and engine.version == 3
    assert engine.ended(9.0) == [1] and engine.busy_s == pytest.approx(4.0)


def test_nothing_left_to_happen_is_an_error_and_no_hang():
    with pytest.raises(RuntimeError, match="stands still"):
        Clock().run_until(lambda: False)
