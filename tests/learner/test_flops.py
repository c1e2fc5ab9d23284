"""The arithmetic of a training step, against figures worked out by hand for Qwen2-VL-2B."""

import pytest
from transformers import Qwen2VLConfig

from learner.flops import training_flops


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
