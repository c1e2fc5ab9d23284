"""Combinations of loss keys that make no sense are refused, those that do are taken."""

import pytest

from alphadrive.config import GrpoConfig, default_config
from alphadrive.errors import ConfigError
from alphadrive.loss_checks import loss_problems


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["loss=ppo"], "grpo.loss=ppo: expected one of grpo, dr_grpo, dapo, gspo, cispo"),
        (["loss_aggregation=mean"], "expected one of null, token, sequence, constant"),
        (["kl_estimator=k4"], "grpo.kl_estimator=k4: expected one of k1, k2, k3"),
        (["old_policy=engine"], "grpo.old_policy=engine: expected one of rollout, learner"),
        (["clip_low=1.1"], "grpo.clip_low=1.1: expected 0 to 1"),
        (["clip_high=-0.1"], "grpo.clip_high=-0.1: expected 0 or more"),
        (["clip_high=.nan"], "grpo.clip_high=nan: expected 0 or more"),
        (["clip_dual=1"], "grpo.clip_dual=1.0: expected above 1"),
        (["clip_dual=3", "loss=cispo"], "grpo.clip_dual=3.0 has no meaning with grpo.loss=cispo"),
        (["loss=dapo", "kl_coef=0.01"], "dynamic sampling leaves out groups of equal rewards"),
        (["importance_mask=[0.5,5]"], "grpo.importance_mask has no effect: set grpo.importance_level"),
        (["importance_level=token"], "grpo.importance_level=token corrects nothing by itself"),
        (
            ["importance_level=token", "importance_cap=2"],
            "and would count twice; set grpo.old_policy=learner",
        ),
        (["importance_level=word", "importance_mask=[0.5,5]"], "expected one of null, token, sequence"),
        (
            ["importance_level=token", "importance_mask=[2,5]"],
            "importance_mask=[2.0, 5.0]: expected [low, high]",
        ),
        (["importance_level=token", "importance_mask=[0.5]"], "importance_mask=[0.5]: expected [low, high]"),
        (
            ["importance_level=token", "importance_cap=0", "old_policy=learner"],
            "grpo.importance_cap=0.0: expected above 0",
        ),
        (["epochs=0"], "grpo.epochs=0: expected 1 or more"),
        (["minibatches=0"], "grpo.minibatches=0: expected 1 or more"),
        (["minibatches=3"], "grpo.groups_per_step=8 is not divisible by grpo.minibatches=3 x"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        default_config([f"grpo.{override}" for override in overrides])
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["grpo.loss=gspo", "grpo.loss_aggregation=token", "grpo.kl_coef=0.01", "grpo.kl_estimator=k2"],
        ["grpo.importance_level=token", "grpo.importance_mask=[0.5, 5]"],
        ["grpo.old_policy=learner", "grpo.importance_level=sequence", "grpo.importance_cap=2"],
        ["grpo.epochs=2", "grpo.minibatches=4", "learner.num_ranks=2"],
        ["grpo.clip_low=1", "grpo.clip_high=4", "grpo.loss=cispo"],
    ],
)
def test_what_makes_sense_is_taken(overrides: list[str]) -> None:
    assert loss_problems(default_config(overrides).grpo) == []


def test_only_dr_grpo_leaves_the_standard_deviation_out() -> None:
    estimators = {
        loss: GrpoConfig(loss=loss).advantage_estimator for loss in ("grpo", "dr_grpo", "dapo", "gspo")
    }
    assert estimators == {"grpo": "grpo", "dr_grpo": "dr_grpo", "dapo": "grpo", "gspo": "grpo"}
