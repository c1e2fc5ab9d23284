"""What workers reserve on machines of different size, and what is refused."""

import pytest

from alphadrive.config import Config
from alphadrive.errors import ResourceError
from cluster.placement import plan_placement


def make_config(engines=1, ranks=1, gpus=0.0):
    config = Config()
    config.rollout.num_workers, config.learner.num_ranks = engines, ranks
    config.rollout.gpus_per_worker = config.learner.gpus_per_rank = gpus
    return config


def test_what_fits_reserves_what_it_asks_for():
    placement = plan_placement(make_config(), "grpo", 2, 0)
    assert (placement.cpus_per_engine, placement.cpus_per_rank, placement.note) == (1.0, 1.0, None)
    assert placement.rank_resources() == {"CPU": 1.0}


def test_workers_share_the_cores_of_a_machine_without_gpus_and_the_user_is_told():
    placement = plan_placement(make_config(engines=2, ranks=2), "grpo", 2, 0)
    assert (placement.cpus_per_engine, placement.cpus_per_rank) == (0.5, 0.5)
    assert placement.note is not None and "4 workers share 2 CPUs" in placement.note


@pytest.mark.parametrize(("engines", "cpus"), [(7, 2), (30, 1), (3, 4)])
def test_shares_never_add_up_to_more_than_there_is(engines, cpus):
    placement = plan_placement(make_config(engines=engines, ranks=2), "grpo", cpus, 0)
    assert engines * placement.cpus_per_engine + 2 * placement.cpus_per_rank <= cpus + 1e-9


def test_gpus_are_never_shared_beyond_what_was_configured():
    with pytest.raises(ResourceError, match=r"6 GPUs asked for .*=4 x 1 .*=2 x 1.*4 avail"):
        plan_placement(make_config(engines=4, ranks=2, gpus=1.0), "grpo", 64, 4)


def test_sft_places_ranks_only():
    assert plan_placement(make_config(engines=100), "sft", 2, 0).note is None


def test_too_few_cpus_beside_gpus_are_refused():
    with pytest.raises(ResourceError, match="6 CPUs asked for"):
        plan_placement(make_config(engines=4, ranks=2, gpus=1.0), "grpo", 4, 8)


def test_without_gpus_as_many_engines_as_autoscale_may_start_share_the_cores():
    config = make_config()
    config.rollout.autoscale.min, config.rollout.autoscale.max = 1, 3
    placement = plan_placement(config, "grpo", 2, 0)
    assert (placement.cpus_per_engine, placement.cpus_per_rank) == (0.5, 0.5)
    assert "rollout.autoscale.max=3 x 1" in placement.note
    assert plan_placement(config, "sft", 2, 0).note is None


def test_with_gpus_only_the_engines_of_the_start_need_a_place():
    config = make_config(gpus=1.0)
    config.rollout.autoscale.min, config.rollout.autoscale.max = 1, 3
    assert plan_placement(config, "grpo", 8, 2).cpus_per_engine == 1.0
