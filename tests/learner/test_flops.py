"""The arithmetic of a training step, against figures worked out by hand for Qwen2-VL-2B."""

import pytest
from transformers import LlamaConfig, Qwen2VLConfig

from alphadrive.types import Completion, DrivingQuery, RolloutGroup, VersionSpan, WeightVersion
from learner.flops import step_flops, training_flops


@pytest.mark.parametrize(("group_size", "tera", "gain"), [(2, 17.1, 1.91), (8, 21.7, 6.01), (16, 27.9, 9.35)])
def test_a_query_of_the_2b_model(group_size: int, tera: float, gain: float) -> None:
    # 2,048 patches = 512 vision tokens, 188 of text, 80 inputs a completion.
    config = Qwen2VLConfig(
        text_config=dict(
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            vocab_size=151936,
        ),
        vision_config=dict(depth=32, embed_dim=1280, num_heads=16, hidden_size=1536, mlp_ratio=4),
    )
    shared = training_flops(config, 188, 81, (1, 32, 64), group_size)
    repeated = group_size * training_flops(config, 188, 81, (1, 32, 64), 1)
    assert shared / 1e12 == pytest.approx(tera, abs=0.05)
    assert repeated / shared == pytest.approx(gain, abs=0.01)


def group(num_vision: int, completions: tuple[int, ...]) -> RolloutGroup:
    """188 tokens of text, so many of an image (id 7), completions of these lengths."""
    version = VersionSpan(version=WeightVersion(0, 0), start=0, end=1)
    return RolloutGroup(
        ticket=0,
        query=DrivingQuery(query_id="q", row=0, speed_mps=1.0, navigation="go", plans=("KEEP, STRAIGHT",)),
        prompt_token_ids=(5,) * 188 + (7,) * num_vision,
        completions=tuple(
            Completion(
                text="",
                token_ids=(1,) * length,
                rollout_logprobs=(0.0,) * length,
                finish_reason="stop",
                weight_versions=(version,),
            )
            for length in completions
        ),
        engine_id="engine-0",
    )


def test_a_step_is_the_sum_of_its_groups() -> None:
    config = Qwen2VLConfig(vision_config=dict(depth=2, embed_dim=64, num_heads=2, hidden_size=64))
    image = (1, 32, 64)
    expected = training_flops(config, 188, 81, image, 2) + training_flops(config, 188, 50, image, 4)
    groups = [group(512, (71, 91)), group(512, (50, 50, 50, 50))]
    assert step_flops(config, groups, 7) == pytest.approx(expected, rel=1e-12)


def test_the_arithmetic_of_another_model_is_not_guessed() -> None:
    assert step_flops(LlamaConfig(), [group(4, (3,))], 7) is None
