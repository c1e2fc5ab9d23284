"""Expected speed, against arithmetic by hand and its own limits."""

import pytest

from alphadrive.config import load_config
from alphadrive.sizing.architecture import architecture_of
from alphadrive.sizing.gpus import GPUS
from alphadrive.sizing.throughput import Throughput, rollout_query_s, throughput_of, training_flops
from alphadrive.sizing.workload import workload_of

NAME, GROUPS = "qwen2vl_2b_8gpu", "grpo.groups_per_step=48"


def expected(*overrides: str, gpu: str = "H200", stage: str = "grpo") -> Throughput:
    config = load_config(NAME, [GROUPS, *overrides])
    architecture = architecture_of(config.model)
    workload = workload_of(config, architecture, None, text_tokens=188, answer_tokens=80)
    found = throughput_of(config, stage, architecture, workload, GPUS[gpu])
    assert found is not None
    return found


def tera_of(*overrides: str, stage: str = "grpo") -> float:
    config = load_config(NAME, [GROUPS, *overrides])
    architecture = architecture_of(config.model)
    workload = workload_of(config, architecture, None, text_tokens=188, answer_tokens=80)
    return training_flops(config, stage, architecture, workload) / 1e12


def test_training_a_query_of_eight_answers() -> None:
    assert tera_of() == pytest.approx(21.7, abs=0.1)
    assert tera_of("grpo.kl_coef=0.1") == pytest.approx(21.7 + 7.2, abs=0.1)
    assert tera_of("learner.activation_checkpointing=true") == pytest.approx(21.7 + 7.2, abs=0.1)
    # The frozen tower of 3.305 runs forward once.
    assert tera_of("learner.freeze_vision=true") == pytest.approx(21.7 - 2 * 3.305, abs=0.1)
    # No gradients of weights: two forwards' worth; the tower is not trained either.
    assert tera_of("learner.lora_rank=16") == pytest.approx(2 * (7.2 - 3.305) + 3.305, abs=0.1)
    assert tera_of("grpo.epochs=2") == pytest.approx(2 * 21.7, abs=0.2)
    twice = tera_of("grpo.epochs=2", "grpo.old_policy=learner")
    assert twice == pytest.approx(2 * 21.7 + 7.2, abs=0.2)


def test_a_learner_of_one_gpu_at_full_use_trains_so_many_samples() -> None:
    # 364 samples/s at 100 % of an H200's 989 TFLOP/s, 8 answers of 80 tokens a prompt.
    found = expected("learner.num_ranks=1")
    assert 48 * 8 / found.train_s / 0.35 == pytest.approx(364, rel=0.01)


def test_decoding_waits_for_memory_and_prefill_for_arithmetic() -> None:
    config = load_config(NAME)
    architecture = architecture_of(config.model)
    workload = workload_of(config, architecture, None, text_tokens=188, answer_tokens=80)
    alone, many = (rollout_query_s(config, architecture, workload, GPUS["H200"], n) for n in (8, 256))
    # Of eight sequences, 80 rounds each read 3.1 GB of weights at half of 4.8 TB/s.
    assert alone == pytest.approx(80 * 3.1e9 / 2.4e12 + 5.18e12 / (989e12 * 0.4), rel=0.05)
    assert many < alone / 4


def test_a_step_is_the_longer_side_or_both_in_turn() -> None:
    lagging, in_turn = expected(), expected("grpo.max_policy_lag=0")
    learner_s = lagging.train_s + lagging.optimizer_s + lagging.sync_s
    assert lagging.step_s == pytest.approx(max(learner_s, lagging.rollout_s)) and lagging.bound == "learner"
    assert in_turn.step_s == pytest.approx(learner_s + in_turn.rollout_s)
    few = expected("rollout.num_workers=1", "learner.num_ranks=48", "grpo.groups_per_step=480")
    assert few.bound == "rollout engines" and few.step_s == few.rollout_s
    assert expected("grpo.sync_every=4", "grpo.max_policy_lag=4").sync_s == pytest.approx(lagging.sync_s / 4)


def test_a_rank_and_an_engine_on_one_gpu_take_turns() -> None:
    keys = ["learner.gpus_per_rank=0.5", "rollout.gpus_per_worker=0.5", "learner.num_ranks=1"]
    shared = expected(*keys, "rollout.num_workers=1")
    assert shared.step_s > shared.rollout_s + shared.train_s


def test_an_optimizer_on_the_cpu_is_slower() -> None:
    plain, offloaded = expected(), expected("learner.offload_optimizer=true")
    # Six ranks read and write 28 bytes a parameter, and send 4 of them, at 25 GB/s each.
    added = offloaded.optimizer_s - plain.optimizer_s
    assert added == pytest.approx(2_208_985_600 / 6 * (32 / 25e9 - 28 / 4.8e12), rel=1e-6)


@pytest.mark.parametrize("stage", ["grpo", "sft"])
def test_more_ranks_train_faster_and_exchange_longer(stage: str) -> None:
    one, eight, sixteen = (expected(f"learner.num_ranks={n}", stage=stage) for n in (1, 8, 16))
    assert one.train_s == pytest.approx(8 * eight.train_s) and eight.train_s > sixteen.train_s
    assert sixteen.optimizer_s > 2 * eight.optimizer_s  # between nodes
    assert (one.rollout_s == 0) == (one.sync_s == 0) == (stage == "sft")


def test_a_faster_gpu_is_faster() -> None:
    rates = [expected(gpu=gpu).samples_per_s for gpu in ("A800", "A100-80", "H100", "H200")]
    assert rates == sorted(rates) and rates[0] > 0
