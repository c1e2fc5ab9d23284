"""Memory of GPUs, against sums worked out by hand."""

import pytest

from alphadrive.config import Config, ModelConfig, default_config
from alphadrive.sizing.architecture import architecture_of
from alphadrive.sizing.gpus import GPUS
from alphadrive.sizing.memory import Device, devices_of, fullest_pack
from alphadrive.sizing.workload import workload_of

N = 2_208_985_600
MODEL = ["model.path=Qwen/Qwen2-VL-2B-Instruct", "model.dtype=bfloat16"]
ON_GPUS = [*MODEL, "learner.gpus_per_rank=1", "rollout.gpus_per_worker=1"]


def planned(config: Config, stage: str = "grpo", gpu: str = "H100") -> tuple[Device, ...]:
    architecture = architecture_of(config.model)
    return devices_of(config, stage, architecture, workload_of(config, architecture, None), GPUS[gpu])


def bytes_of(device: Device) -> dict[str, int]:
    return {part.label.partition(" of ")[0]: part.total_bytes for part in device.parts}


@pytest.mark.parametrize(
    ("zero_stage", "gradients", "optimizer"),
    [(0, 2 * N, 12 * N), (1, 2 * N, 3 * N), (2, N // 2, 3 * N), (3, N // 2, 3 * N)],
)
def test_states_are_split_over_four_ranks(zero_stage: int, gradients: int, optimizer: int) -> None:
    keys = [f"learner.zero_stage={zero_stage}", "learner.num_ranks=4", "grpo.kl_coef=0.1"]
    held = bytes_of(planned(default_config([*ON_GPUS, *keys]))[0])
    assert held["gradients"] == gradients and held["optimizer"] == optimizer
    assert held["weights"] == held["reference model"] == (N // 2 if zero_stage == 3 else 2 * N)
    # A bucket of 5e8 bfloat16; stage 3 gathers up to 1.05e9 weights, too.
    assert held["DeepSpeed's buffers"] == {0: 0, 1: 10**9, 2: 10**9, 3: 10**9 + 2_100_000_000}[zero_stage]


def test_with_lora_and_sft_less_is_held() -> None:
    lora = default_config([*ON_GPUS, "learner.lora_rank=16", "grpo.kl_coef=0.1"])
    # 28 layers x 16 x (2 x (1536 + 1536) + 2 x (1536 + 256) + 3 x (1536 + 8960)).
    adapter = 28 * 16 * (2 * 3072 + 2 * 1792 + 3 * 10_496)
    held = bytes_of(planned(lora)[0])
    assert held["weights"] == 2 * (N + adapter) and held["reference model"] == 0
    assert held["optimizer"] == 12 * adapter
    sft = planned(default_config([*ON_GPUS, "grpo.kl_coef=0.1"]), "sft")
    assert [device.label for device in sft] == ["learner GPU", "host memory, all nodes together"]
    assert bytes_of(sft[0])["reference model"] == 0


def test_a_frozen_tower_has_no_moments_and_keeps_no_activations() -> None:
    trained, frozen = (
        bytes_of(planned(default_config([*ON_GPUS, f"learner.freeze_vision={frozen}"]))[0])
        for frozen in ("false", "true")
    )
    assert trained["optimizer"] - frozen["optimizer"] == 12 * 665_271_296
    assert trained["activations"] > 2 * frozen["activations"]


def test_an_offloaded_optimizer_is_the_hosts() -> None:
    keys = [*ON_GPUS, "learner.offload_optimizer=true", "learner.num_ranks=2"]
    learner, _, host = planned(default_config(keys))
    assert bytes_of(learner)["optimizer (on the CPU)"] == 0
    plain = planned(default_config([*ON_GPUS, "learner.num_ranks=2"]))[-1]
    assert host.needed_bytes - plain.needed_bytes == 16 * N


def test_the_fullest_microbatch_has_as_many_images_as_short_answers_leave_room_for() -> None:
    config = default_config([*ON_GPUS, "grpo.groups_per_step=32", "learner.max_tokens_per_microbatch=8192"])
    workload = workload_of(config, architecture_of(config.model), None)
    # 702 prompt tokens and 8 answers of one token: 11 groups in 8,192 tokens.
    assert fullest_pack(config, "grpo", workload).patches == 11 * 2048
    assert fullest_pack(config, "grpo", workload).tokens == 8192
    # A rank that has two groups of at most 702 + 8 x 256 tokens can fill no more.
    config.grpo.groups_per_step = 2
    assert fullest_pack(config, "grpo", workload).patches == 2 * 2048
    assert fullest_pack(config, "grpo", workload).tokens == 2 * (702 + 8 * 256)


def test_checkpointing_keeps_the_input_of_each_layer() -> None:
    keys = [*ON_GPUS, "learner.max_tokens_per_microbatch=8192", "grpo.groups_per_step=32"]
    held = bytes_of(planned(default_config([*keys, "learner.activation_checkpointing=true"]))[0])
    layers = 8192 * 28 * 1536 * 2 + 11 * 2048 * 32 * 1280 * 2
    assert layers < held["activations"] < 1.2 * layers


def test_the_embeddings_gradient_is_counted_twice_where_the_head_is_the_embedding() -> None:
    keys = [*ON_GPUS, "learner.freeze_vision=true"]

    def at_work(*more: str) -> int:
        return bytes_of(planned(default_config([*keys, *more]))[0])[
            "at work: a layer, logits, embedding's gradient"
        ]

    # With LoRA it has none. 151,936 tokens of 1,536 bfloat16.
    assert at_work() - at_work("learner.lora_rank=4") == 2 * 151_936 * 1536 * 2
    large = "model.path=Qwen/Qwen2-VL-7B-Instruct"
    assert at_work(large) - at_work(large, "learner.lora_rank=4") == 152_064 * 3584 * 2


def test_the_host_holds_every_ranks_model_while_it_is_loaded() -> None:
    label = "model: loading, weight sync, checkpoints"
    held = [
        bytes_of(planned(default_config([*ON_GPUS, f"learner.num_ranks={ranks}"]))[-1])[label]
        for ranks in (1, 2, 8)
    ]
    assert held == [4 * N, 4 * N, 16 * N]
    assert label not in bytes_of(planned(default_config(MODEL))[-1])


def test_an_engine_has_its_share_of_a_gpu_and_says_what_it_has_room_for() -> None:
    config = default_config([*ON_GPUS, "rollout.max_num_seqs=64"])
    _, engine, _ = planned(config)
    # 64 sequences in flight are 8 groups: 8 prompts of 702 and 64 answers of up to 256, 28,672 bytes a token.
    assert bytes_of(engine)["KV cache"] == (8 * 702 + 64 * 256) * 28_672
    assert engine.available_bytes == int(0.85 * GPUS["H100"].memory_bytes)
    assert engine.fits and "22,000 asked for" in str(engine.spare)
    config.rollout.gpu_memory_utilization = 0.1
    assert not planned(config)[1].fits


@pytest.mark.parametrize(
    ("rank", "engine", "engines", "beside"),
    [(0.5, 0.5, 1, 1), (0.5, 0.25, 4, 2), (0.5, 0.6, 1, 0), (1, 1, 1, 0), (0.5, 1, 1, 0), (0.7, 0.3, 1, 1)],
)
def test_ranks_and_engines_of_fractions_share_a_gpu(
    rank: float, engine: float, engines: int, beside: int
) -> None:
    keys = [f"learner.gpus_per_rank={rank}", f"rollout.gpus_per_worker={engine}"]
    config = default_config([*MODEL, *keys, f"rollout.num_workers={engines}"])
    shared = bytes_of(planned(config)[0]).get("engine: rollout.gpu_memory_utilization", 0)
    assert shared == beside * int(0.85 * GPUS["H100"].memory_bytes)


def test_without_gpus_this_machine_holds_everything() -> None:
    (host,) = planned(Config(model=ModelConfig(path="tiny")))
    assert host.label == "this machine's memory" and host.available_bytes is not None
    assert sum("activations" in part.label for part in host.parts) == 1
