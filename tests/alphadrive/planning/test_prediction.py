"""From predictions to advice."""

import json

import numpy as np
import pytest
from parts import measured
from recorded import Speeds, config_of, record

from alphadrive.errors import InputError
from alphadrive.planning.measured import DriverCosts
from alphadrive.planning.prediction import limit_of, predict, setup_for
from alphadrive.planning.workload import resampled


def config(tmp_path, **keys):
    return config_of(tmp_path, grpo__group_size=8, grpo__groups_per_step=8, rollout__max_num_seqs=8, **keys)


def test_the_fewest_engines_that_keep_the_learner_busy_are_recommended(tmp_path):
    # Eight groups a step, one of them a second by engine, the learner takes two seconds: four engines.
    prediction = predict(config(tmp_path), measured(step_s=2.0), [1, 2, 4, 8, 16, 64])
    assert prediction.num_engines == 4
    assert "the learner" in prediction.reason and "100% of the most" in prediction.reason
    by_engines = {each.num_engines: each.samples_per_s for each in prediction.outcomes}
    assert by_engines[1] == pytest.approx(8.0)
    assert [by_engines[4], by_engines[64]] == pytest.approx([32.0, 32.0], rel=0.01)
    assert "recommended: 4 engines" in str(prediction)
    fields = json.loads(json.dumps(prediction.as_fields()))
    assert fields["recommended"] == 4 and fields["workers"][-1]["policy_lag"] == {"1": 1.0}


def test_the_limit_is_named(tmp_path):
    def limit(known, num_engines, **keys):
        own = config(tmp_path, **keys)
        outcome = predict(own, known, [num_engines]).outcomes[0]
        return limit_of(outcome, setup_for(own, num_engines))

    assert limit(measured(), 1).startswith("the engines")
    assert limit(measured(step_s=4.0), 8).startswith("the learner")
    assert limit(measured(driver=DriverCosts(group_s=0.3)), 64).startswith("the driver")
    assert limit(measured(sync_engine_s=np.full(1, 5.0)), 8).startswith("the weight sync, 5.00 s")
    assert "take turns" in limit(measured(), 8, grpo__max_policy_lag=0)
    spread = np.array([0.2] * 9 + [9.0])
    assert limit(measured(spread=spread, step_s=0.1), 64).startswith("the time of a group, with 16 groups")


def test_weak_scaling_without_costs_of_scale_is_perfect_and_with_them_is_not(tmp_path):
    own = config(tmp_path)
    perfect = predict(own, measured(step_s=0.1), [1, 4, 16], is_weak=True)
    assert [perfect.efficiency(each) for each in perfect.outcomes] == pytest.approx([1.0, 1.0, 1.0])
    assert perfect.num_engines == 16
    costly = measured(step_s=0.1, driver=DriverCosts(group_s=0.1))
    shares = [
        each.samples_per_s / each.num_engines for each in predict(own, costly, [1, 64], is_weak=True).outcomes
    ]
    assert shares[1] < 0.2 * shares[0]
    scaled = setup_for(own, 64, is_weak=True)
    assert (scaled.groups_per_step, scaled.num_ranks, scaled.num_rewards) == (512, 64, 64)


def test_another_group_size_has_the_lengths_of_whole_groups(tmp_path):
    tokens = np.repeat([[10], [20]], 4, axis=1)
    random = np.random.default_rng(0)
    fewer = resampled(tokens, 2, 50, random)
    assert fewer.shape == (50, 2) and np.all(fewer[:, 0] == fewer[:, 1])
    more = resampled(tokens, 6, 200, random)
    assert more.shape == (200, 6) and set(np.unique(more)) == {10, 20}
    assert len({tuple(sorted(row)) for row in more.tolist()}) > 2


def test_the_prediction_of_a_recorded_run_is_printed(tmp_path, monkeypatch, capsys, caplog):
    import argparse

    from alphadrive.planning.command import add_calibration_options, is_prediction, run_prediction

    run = record(monkeypatch, tmp_path / "seen", Speeds(), grpo__steps=8)
    parser = argparse.ArgumentParser()
    parser.set_defaults(stage="grpo", rows=None, answer_tokens=None)
    add_calibration_options(parser)
    args = parser.parse_args(["--calibrate", str(run), "--workers", "4,1"])
    assert run_prediction(config_of(tmp_path), args, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["num_engines"] for each in found["workers"]] == [1, 4]
    assert run_prediction(config_of(tmp_path), args, as_json=False) == 0
    assert "recommended: " in capsys.readouterr().out
    assert caplog.messages == []
    other = config_of(tmp_path)
    other.learner.zero_stage, other.grpo.groups_per_step = 3, 16
    assert run_prediction(other, args, as_json=False) == 0
    assert caplog.messages == [f"{run} has learner.zero_stage=1, not 3: its speeds are taken as they are"]
    args.fail_rate = 1e9
    with pytest.raises(InputError, match="expected 0 to 60 deaths of an engine in an hour"):
        run_prediction(config_of(tmp_path), args, as_json=False)
    (run / "summary.json").unlink()
    args.fail_rate = 1.0
    with pytest.raises(InputError, match="engine_start_s: calibrate on a run that has ended"):
        run_prediction(config_of(tmp_path), args, as_json=False)
    args.rows = 100
    with pytest.raises(InputError, match="without --stage, --rows and"):
        is_prediction(args)
    args.rows, args.calibrate = None, None
    with pytest.raises(InputError, match="need --calibrate RUN"):
        is_prediction(args)
    with pytest.raises(SystemExit):
        parser.parse_args(["--workers", "0,1"])
    with pytest.raises(SystemExit):
        parser.parse_args(["--workers", "10001"])
