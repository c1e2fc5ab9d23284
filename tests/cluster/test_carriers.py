"""Which carrier takes weights to the engines, and which choices cannot work."""

import pytest

from alphadrive.config import Config, default_config
from alphadrive.errors import ConfigError

pytest.importorskip("ray")
from cluster.carriers import transfer_kind

AUTO = [
    # GPUs of an engine and a rank, engines, ranks, machines: how
    ((0, 0, 1, 1, 1), "file"),
    ((0, 0, 4, 2, 3), "gloo"),
    ((1, 1, 2, 6, 1), "nccl"),
    ((2, 1, 2, 6, 4), "nccl"),
    ((0.5, 0.5, 1, 1, 1), "ipc"),
    ((0.5, 0.5, 2, 1, 1), "file"),
    ((0.5, 1, 1, 1, 2), "gloo"),
    ((1, 0, 1, 1, 1), "file"),
    ((0, 1, 2, 1, 2), "gloo"),
]


@pytest.mark.parametrize(("numbers", "kind"), AUTO)
def test_the_carrier_follows_from_gpus_and_machines(numbers, kind):
    engine_gpus, rank_gpus, engines, ranks, machines = numbers
    config = Config()
    config.rollout.gpus_per_worker, config.learner.gpus_per_rank = engine_gpus, rank_gpus
    config.rollout.num_workers, config.learner.num_ranks = engines, ranks
    assert transfer_kind(config, machines, may_grow=False) == kind
    assert transfer_kind(config, machines, may_grow=True) == ("nccl" if kind == "nccl" else "gloo")
    config.rollout.weight_transfer = "gloo"
    assert transfer_kind(config, machines, may_grow=False) == "gloo"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.weight_transfer=rdma"], "expected one of auto, file, gloo, nccl, ipc"),
        (["rollout.weight_bucket_bytes=0"], "rollout.weight_bucket_bytes=0: expected 1 or more"),
        (["rollout.weight_transfer=nccl"], "goes from GPU to GPU"),
        (["rollout.weight_transfer=nccl", "rollout.gpus_per_worker=1"], "learner.gpus_per_rank=0"),
        (
            ["rollout.weight_transfer=nccl", "rollout.gpus_per_worker=0.5", "learner.gpus_per_rank=1"],
            "whole GPUs",
        ),
        (
            [
                "rollout.weight_transfer=ipc",
                "rollout.gpus_per_worker=0.5",
                "learner.gpus_per_rank=0.5",
                "rollout.num_workers=2",
            ],
            "share a GPU",
        ),
    ],
)
def test_a_transfer_that_cannot_work_is_a_configuration_error(overrides, message):
    with pytest.raises(ConfigError, match=message):
        default_config(overrides)


def test_transfers_between_gpus_that_can_work_are_no_error():
    gpus = ["rollout.gpus_per_worker=1", "learner.gpus_per_rank=1", "rollout.num_workers=3"]
    default_config(["rollout.weight_transfer=nccl", *gpus])
    default_config(
        ["rollout.weight_transfer=ipc", "rollout.gpus_per_worker=0.4", "learner.gpus_per_rank=0.6"]
    )
