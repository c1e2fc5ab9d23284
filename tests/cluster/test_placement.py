"""What workers reserve on nodes of different size, what is refused, and what starts smaller."""

import pytest

from alphadrive.config import Config, load_config
from alphadrive.errors import ConfigError, ResourceError
from cluster.packing import Ask, Node, most_engines, most_ranks
from cluster.placement import plan_placement


def make_config(engines=1, ranks=1, gpus=0.0):
    config = Config()
    config.rollout.num_workers, config.learner.num_ranks = engines, ranks
    config.rollout.gpus_per_worker = config.learner.gpus_per_rank = gpus
    return config


def plan(config, *nodes, stage="grpo"):
    return plan_placement(config, stage, nodes)


def small(cpus, gpus=0.0, **labels):
    return Node(cpus=cpus, gpus=gpus, labels=labels)


def test_what_fits_reserves_what_it_asks_for():
    placement = plan(make_config(), small(2))
    assert (placement.cpus_per_engine, placement.cpus_per_rank, placement.note) == (1.0, 1.0, None)
    assert placement.rank_resources() == {"CPU": 1.0}
    assert placement.table is None


def test_workers_share_the_cores_of_a_machine_without_gpus_and_the_user_is_told():
    placement = plan(make_config(engines=2, ranks=2), small(2))
    assert (placement.cpus_per_engine, placement.cpus_per_rank) == (0.5, 0.5)
    assert placement.note is not None and "4 workers share 2 CPUs" in placement.note


@pytest.mark.parametrize(("engines", "cpus"), [(7, 2), (30, 1), (3, 4)])
def test_shares_never_add_up_to_more_than_there_is(engines, cpus):
    placement = plan(make_config(engines=engines, ranks=2), small(cpus))
    assert 0 < engines * placement.cpus_per_engine + 2 * placement.cpus_per_rank <= cpus + 1e-9


def test_shares_of_several_machines_fit_on_each_of_them():
    placement = plan(make_config(engines=2, ranks=1), small(1), small(1))
    assert placement.cpus_per_engine == placement.cpus_per_rank <= 0.5
    placement = plan(make_config(engines=3, ranks=2), small(2), small(2))
    assert 2 * placement.cpus_per_engine + placement.cpus_per_rank <= 2


def test_sft_places_ranks_only():
    assert plan(make_config(engines=100), small(2), stage="sft").note is None


def test_a_learner_that_can_never_fit_is_refused_with_all_that_is_asked_and_all_there_is():
    with pytest.raises(ResourceError) as refused:
        plan(make_config(engines=4, ranks=6, gpus=1.0), small(64, 4))
    message = str(refused.value)
    assert "learner.num_ranks=6: only 4 ranks of 1 GPU and 1 CPU fit" in message
    assert "learner.num_ranks=6 x (gpus_per_rank=1, cpus_per_rank=1)" in message
    assert "rollout.num_workers=4 x (gpus_per_worker=1, cpus_per_worker=1)" in message
    assert "6 GPUs, 6 CPUs" in message and "4 GPUs, 64 CPUs on 1 of 1 nodes" in message
    assert "cluster.wait_for_nodes_s" in message


def test_a_worker_lies_on_one_node_whatever_the_total():
    config = make_config(ranks=1)
    config.learner.gpus_per_rank = 4.0
    with pytest.raises(ResourceError, match=r"4 GPUs and 1 CPU for one of learner.num_ranks=1 are on no sin"):
        plan(config, *[small(8, 2)] * 4)
    assert plan(config, *[small(8, 2)] * 4, small(8, 4)).note is None


def test_no_room_for_any_engine_is_refused():
    with pytest.raises(ResourceError, match=r"rollout.num_workers=2: beside the .* room for no engine"):
        plan(make_config(engines=2, ranks=4, gpus=1.0), small(64, 4))


def test_a_cluster_too_small_for_all_engines_starts_with_fewer_and_the_user_is_told():
    placement = plan(make_config(engines=4, ranks=2, gpus=1.0), small(64, 4))
    assert "rollout.num_workers=4, and the nodes have room for 2 beside the learner" in placement.note
    assert (placement.cpus_per_engine, placement.gpus_per_engine) == (1.0, 1.0)


def test_cpus_beside_gpus_are_not_shared():
    placement = plan(make_config(engines=4, ranks=2, gpus=1.0), small(4, 8))
    assert "room for 2 beside the learner" in placement.note and placement.cpus_per_engine == 1.0
    with pytest.raises(ResourceError, match="only 1 ranks"):
        plan(make_config(ranks=2, gpus=1.0), small(1, 8))


def test_nodes_that_may_join_are_waited_for_if_asked():
    config = make_config(engines=4, ranks=6, gpus=1.0)
    config.cluster.wait_for_nodes_s = 900.0
    placement = plan(config, small(64, 4))
    assert placement.placing_s == 900.0
    assert "only 4 ranks" in placement.note and "within 900 s" in placement.note
    config = make_config()
    config.cluster.wait_for_nodes_s, config.cluster.learner_pool = 900.0, "pool=learner"
    placement = plan(config, small(1))
    assert (placement.cpus_per_engine, placement.cpus_per_rank) == (1.0, 1.0)
    assert "no node has these labels" in placement.note


def test_without_gpus_as_many_engines_as_autoscale_may_start_share_the_cores():
    config = make_config()
    config.rollout.autoscale.min, config.rollout.autoscale.max = 1, 3
    placement = plan(config, small(2))
    assert (placement.cpus_per_engine, placement.cpus_per_rank) == (0.5, 0.5)
    assert "rollout.autoscale.max=3 x 1" in placement.note
    assert plan(config, small(2), stage="sft").note is None


def test_with_gpus_only_the_engines_of_the_start_need_a_place():
    config = make_config(gpus=1.0)
    config.rollout.autoscale.min, config.rollout.autoscale.max = 1, 3
    placement = plan(config, small(8, 2))
    assert (placement.cpus_per_engine, placement.note) == (1.0, None)


def test_an_engine_and_a_rank_share_one_gpu_where_both_ask_for_a_part():
    config = make_config()
    config.learner.gpus_per_rank, config.rollout.gpus_per_worker = 0.6, 0.4
    assert plan(config, small(8, 1)).note is None
    config.rollout.gpus_per_worker = 0.5
    with pytest.raises(ResourceError, match="room for no engine"):
        plan(config, small(8, 1))


def test_every_rank_and_every_engine_of_eight_shares_a_gpu_with_its_neighbour():
    ranks, engines = Ask(count=8, cpus=1, gpus=0.6), Ask(count=9, cpus=1, gpus=0.4)
    assert most_engines([small(32, 8)], ranks, engines) == 8


def test_pools_keep_workers_apart():
    config = make_config(engines=2, ranks=2, gpus=1.0)
    config.cluster.learner_pool, config.cluster.rollout_pool = "pool=learner", "pool=rollout"
    nodes = [small(8, 2, pool="learner"), small(8, 4, pool="rollout")]
    placement = plan(config, *nodes)
    assert (placement.learner_pool, placement.rollout_pool) == ({"pool": "learner"}, {"pool": "rollout"})
    assert placement.note is None
    config.learner.num_ranks = 3
    with pytest.raises(ResourceError, match=r"only 2 ranks.*(.|\n)*pool=learner"):
        plan(config, *nodes)


def test_a_pool_without_a_node_is_refused_with_the_command_that_makes_one():
    config = make_config()
    config.cluster.rollout_pool = "pool=rollout"
    with pytest.raises(ResourceError, match=r"rollout_pool=pool=rollout: no node.*--labels pool=rollout"):
        plan(config, small(8))
    assert plan(config, small(8), stage="sft").note is None
    config.cluster.rollout_pool, config.cluster.reward_pool = "", "pool=rewards"
    with pytest.raises(ResourceError, match=r"reward_pool=pool=rewards: no node"):
        plan(config, small(8))


def test_ranks_are_put_where_most_engines_fit_beside_them():
    nodes = [small(8, 8), small(8, 4)]
    ranks, engines = Ask(count=4, cpus=0, gpus=1), Ask(count=1, cpus=0, gpus=8)
    assert most_engines(nodes, ranks, engines) == 1
    assert most_engines(nodes[::-1], ranks, engines) == 1
    assert most_ranks(nodes, Ask(count=20, cpus=1, gpus=0.5)) == 16


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("cluster.learner_pool=learner", r"expected labels of nodes, each once, such as pool=learner"),
        ("cluster.rollout_pool=pool=a,pool=b", "each once"),
        ("cluster.reward_pool=pool=in(a)", "expected labels"),
        ("learner.gpus_per_rank=2", "1 or a part of one"),
        ("cluster.wait_for_nodes_s=-1", "expected 0 or more"),
        ("rollout.gpu_memory_utilization=0", "expected a share above 0, at most 1"),
        ("rollout.gpu_memory_utilization=1.1", "expected a share above 0, at most 1"),
    ],
)
def test_pools_and_parts_of_gpus_that_ray_would_refuse_are_refused_first(override, problem):
    with pytest.raises(ConfigError, match=problem):
        load_config("debug", [override])


def test_two_ranks_on_one_gpu_are_refused():
    with pytest.raises(ConfigError, match="two ranks would share a GPU"):
        load_config("debug", ["learner.num_ranks=2", "learner.gpus_per_rank=0.5"])
    assert load_config("debug", ["learner.num_ranks=2", "learner.gpus_per_rank=0.6"])
