"""What `alphadrive.capacity` says that a rank holds, against what DeepSpeed does hold."""

from typing import Any

import pytest
from scenarios import Outcomes, scenario

from alphadrive.capacity import learner_states
from alphadrive.config import Config
from alphadrive.sizing.architecture import architecture_of

pytestmark = pytest.mark.e2e

SHAPES: list[tuple[int, int, str, dict[str, Any]]] = [
    (1, 0, "float32", {}),
    (1, 0, "bfloat16", {}),
    (1, 1, "float32", {}),
    (2, 1, "bfloat16", {"learner__freeze_vision": True}),
    (2, 2, "bfloat16", {}),
    (2, 3, "bfloat16", {}),
    (2, 2, "bfloat16", {"learner__lora_rank": 8}),
]
HELD = {
    scenario(
        f"held_{ranks}_zero_{zero_stage}_{dtype}_{'_'.join(options)}",
        ("step", (0, 2)),
        ("held_bytes", None),
        ranks=ranks,
        learner__zero_stage=zero_stage,
        model__dtype=dtype,
        **options,
    ): (ranks, zero_stage, dtype, options)
    for ranks, zero_stage, dtype, options in SHAPES
}


@pytest.mark.parametrize("name", HELD)
def test_weights_and_optimizer_take_what_is_planned(name: str, outcomes: Outcomes) -> None:
    ranks, zero_stage, dtype, options = HELD[name]
    config = Config()
    config.learner.zero_stage, config.model.dtype = zero_stage, dtype
    for key, value in options.items():
        setattr(config.learner, key.removeprefix("learner__"), value)
    architecture = architecture_of(config.model)
    expected = learner_states(
        config,
        "grpo",
        architecture.parameters,
        ranks,
        num_adapter=architecture.adapter_parameters(config.learner),
        num_frozen=architecture.vision_parameters if config.learner.freeze_vision else 0,
    )
    for _, held in outcomes[name]:
        # Exactly, but for the numbers that fill a parameter or a group up to a multiple of the ranks.
        assert held["weights"] == pytest.approx(expected.weights, abs=512)
        assert held["optimizer"] == pytest.approx(expected.optimizer, abs=512)
