"""What the simulation predicts, held against the shipped loop in virtual time, with parts of known speed."""

import itertools
import json

import numpy as np
import pytest
from recorded import Speeds, config_of, record

from alphadrive import metric_names as names
from alphadrive.errors import RunFolderError
from alphadrive.planning.calibration import calibrate, read_run
from alphadrive.planning.measured import DriverCosts, setup_of
from alphadrive.planning.simulation import simulate

FREE, USUAL = DriverCosts(), Speeds()


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    numbers = itertools.count()

    def make(speeds=USUAL, **keys):
        return record(monkeypatch, tmp_path / str(next(numbers)), speeds, **keys)

    return make


def usual(path):
    """What a run brought, its first steps and its end left out."""
    steps = read_run(path).steps[5:-2]

    def over_time(name):
        return sum(step[name] * step[names.STEP_S] for step in steps) / sum(
            each[names.STEP_S] for each in steps
        )

    sync_s = float(np.mean([step[names.SYNC_S] for step in steps]))
    return over_time(names.END_TO_END_SAMPLES_PER_S), over_time(names.LEARNER_IDLE_SHARE), sync_s


def mean_lag(steps):
    numbers = [(lag, step.get(names.groups_at_lag(lag), 0)) for step in steps for lag in range(9)]
    return sum(lag * number for lag, number in numbers) / sum(number for _, number in numbers)


def test_a_calibration_finds_the_speeds_that_a_run_had(recorded):
    measured = calibrate([recorded(rollout__num_workers=1), recorded(rollout__num_workers=3)])
    assert measured.engine.token_s == pytest.approx(0.02, rel=0.15)
    assert measured.engine.sequence_token_s == pytest.approx(0.002, rel=0.15)
    assert measured.engine.prompt_tokens == pytest.approx(10, abs=3)
    assert np.median(measured.spread) == pytest.approx(1.0, abs=0.05)
    assert measured.tokens.shape[1] == 4 and 20 <= measured.tokens.min() <= measured.tokens.max() <= 60
    assert measured.prompt_tokens == 100
    step_s = measured.step_s + measured.token_s * 1000
    assert step_s == pytest.approx(0.3 + 2e-4 * 1000, rel=0.1)
    assert np.median(measured.export_s) == pytest.approx(0.1)
    assert np.median(measured.sync_engine_s) == pytest.approx(0.2)
    assert measured.canary_s == pytest.approx(0.05)
    assert np.median(measured.score_s) == pytest.approx(0.01)
    assert measured.engine_start_s == 13.0


@pytest.mark.parametrize(
    ("speeds", "keys"),
    [
        (Speeds(), {"rollout__num_workers": 3}),
        (Speeds(), {"rollout__num_workers": 4}),
        (Speeds(), {"rollout__num_workers": 2, "grpo__group_size": 8}),
        (Speeds(step_s=2.0), {"rollout__num_workers": 4}),
        (Speeds(), {"rollout__num_workers": 4, "grpo__max_policy_lag": 0}),
        (Speeds(), {"rollout__num_workers": 4, "grpo__max_policy_lag": 3, "grpo__sync_every": 3}),
        (Speeds(flat_share=0.4), {"rollout__num_workers": 4}),
    ],
    ids=["3 engines", "4 engines", "G=8", "slow learner", "lag 0", "rare syncs", "flat groups"],
)
def test_runs_that_were_not_seen_are_predicted(recorded, speeds, keys):
    calibration = [recorded(speeds, rollout__num_workers=1), recorded(speeds, rollout__num_workers=2)]
    unseen = recorded(speeds, grpo__steps=60, **keys)
    run = read_run(unseen)
    measured = calibrate(calibration, FREE)
    outcome = simulate(setup_of(run.config, run.config.rollout.num_workers, steps=200), measured)
    samples_per_s, idle_share, sync_s = usual(unseen)
    assert outcome.samples_per_s == pytest.approx(samples_per_s, rel=0.1)
    assert outcome.learner_idle_share == pytest.approx(idle_share, abs=0.06)
    if run.config.grpo.sync_every == 1:
        assert outcome.sync_s == pytest.approx(sync_s, rel=0.1)
    assert outcome.mean_lag == pytest.approx(mean_lag(run.steps[5:-2]), abs=0.15)


def test_a_folder_that_tells_nothing_is_refused_with_the_reason(recorded, tmp_path):
    with pytest.raises(RunFolderError, match="no run's folder"):
        calibrate([tmp_path / "nothing"])
    short = recorded(grpo__steps=2)
    with pytest.raises(RunFolderError, match="2 GRPO steps; a calibration needs 8 and 3"):
        calibrate([short])
    without = recorded()
    lines = [json.loads(line) for line in (without / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line[names.SYNC_EXPORT_S]
    (without / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RunFolderError, match="carry no timings"):
        calibrate([without])


def test_the_configuration_is_the_setup(tmp_path):
    config = config_of(tmp_path, grpo__kl_coef=0.1, rollout__update_mode="wait", learner__num_ranks=2)
    setup = setup_of(config, 7)
    assert (setup.num_engines, setup.group_size, setup.groups_per_step, setup.seats) == (7, 4, 4, 16)
    assert setup.waits_for_groups and not setup.skips_flat_groups and setup.num_ranks == 2
