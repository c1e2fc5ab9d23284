"""LoRA through DeepSpeed: every ZeRO stage trains the adapter that plain peft and torch train."""

from pathlib import Path

import pytest
import torch
from plain_training import shipped_weights, train_plainly
from safetensors.torch import load_file
from scenarios import ALL_ROWS, LEARNING_RATE, ONE_ROW, Calls, Outcomes, saved_name, scenario

from alphadrive.config import LearnerConfig
from alphadrive.model_folder import resolve_model
from alphadrive.weights import file_sha256

pytestmark = pytest.mark.e2e

LORA = {"learner__lora_rank": 4, "learner__lora_alpha": 8}


@pytest.fixture(scope="module")
def reference(dataset: Path) -> dict[str, torch.Tensor]:
    """The merged weights after three steps of plain peft and torch, under the names of a checkpoint."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(resolve_model("tiny"), dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=LearnerConfig.lora_targets)
    torch.manual_seed(0)
    peft_model = get_peft_model(model, config)
    train_plainly(model, dataset)
    weights = dict(peft_model.merge_and_unload().state_dict())
    weights.pop("lm_head.weight")
    return {saved_name(name): tensor for name, tensor in weights.items()}


THREE_STEPS: Calls = (("step", (0, 4)), ("step", (1, 4)), ("step", (2, 4)), ("export_weights", "weights.st"))
CUTS = [
    scenario(
        f"lora_{ranks}_ranks_zero_{zero_stage}",
        *THREE_STEPS,
        ranks=ranks,
        learner__zero_stage=zero_stage,
        learner__max_tokens_per_microbatch=2 * ONE_ROW,
        **LORA,
    )
    for ranks, zero_stage in [(1, 0), (1, 1), (2, 2), (2, 3)]
]
RECOMPUTED = scenario("lora_recomputed", *THREE_STEPS, learner__activation_checkpointing=True, **LORA)


@pytest.mark.parametrize("name", [*CUTS, RECOMPUTED])
def test_three_steps_equal_plain_peft_on_any_ranks_and_stage(
    name: str, outcomes: Outcomes, folder: Path, reference: dict[str, torch.Tensor]
) -> None:
    exported, shipped = load_file(folder / name / "weights.st"), shipped_weights()
    assert set(exported) == set(reference)
    has_moved = {key for key in exported if not torch.equal(exported[key], shipped[key])}
    assert has_moved == {key for key in exported if key.endswith("_proj.weight") and "layers" in key}
    ours, expected, start = (
        torch.cat([weights[key].flatten() for key in sorted(has_moved)])
        for weights in (exported, reference, shipped)
    )
    # Adam divides by |gradient|: where that is near 0, rounding may turn a step.
    assert ((ours - expected).abs() < 1e-5).float().mean() > 0.999
    assert (ours - expected).norm() < 1e-2 * (expected - start).norm()
    assert (ours - expected).abs().max() < LEARNING_RATE


def resumable(ranks: int, zero_stage: int) -> str:
    shape = dict(ranks=ranks, learner__zero_stage=zero_stage) | LORA
    straight = scenario(
        f"lora_straight_{ranks}",
        ("step", (0, 2)),
        ("save_checkpoint", "checkpoint"),
        ("save_model", "checkpoint/model"),
        ("step", (1, 2)),
        ("export_weights", "weights.st"),
        **shape,
    )
    return scenario(
        f"lora_resumed_{ranks}",
        ("load_checkpoint", f"../{straight}/checkpoint"),
        ("step", (1, 2)),
        ("export_weights", "weights.st"),
        attempt=1,
        **shape,
    )


RESUMED = [resumable(1, 1), resumable(2, 3)]


@pytest.mark.parametrize("name", RESUMED)
def test_an_adapter_continues_bit_for_bit(name: str, outcomes: Outcomes, folder: Path) -> None:
    straight_name = name.replace("resumed", "straight")
    (straight, *_), (resumed, *_) = outcomes[straight_name], outcomes[name]
    assert resumed[1]["actor/pg_loss"] == straight[3]["actor/pg_loss"]
    assert resumed[2] == [straight[4][0], [1, 2]]
    assert file_sha256(folder / name / "weights.st") == file_sha256(folder / straight_name / "weights.st")


FEWER_RANKS = scenario(
    "lora_resumed_2_by_1",
    ("load_checkpoint", "../lora_straight_2/checkpoint"),
    ("step", (1, 2)),
    ("export_weights", "weights.st"),
    attempt=1,
    learner__zero_stage=3,
    **LORA,
)


def test_another_number_of_ranks_continues_an_adapter(outcomes: Outcomes, folder: Path) -> None:
    (straight, _), (resumed,) = outcomes["lora_straight_2"], outcomes[FEWER_RANKS]
    assert resumed[1]["actor/grad_norm"] == pytest.approx(straight[3]["actor/grad_norm"], rel=1e-4)
    before, after = (load_file(folder / each / "weights.st") for each in ("lora_straight_2", FEWER_RANKS))
    assert max((after[key] - before[key]).abs().max() for key in before) < 1e-5


@pytest.mark.parametrize("name", RESUMED)
def test_a_checkpoint_holds_the_merged_model_and_the_adapter_and_no_frozen_weights(
    name: str, outcomes: Outcomes, folder: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    checkpoint = folder / name.replace("resumed", "straight") / "checkpoint"
    base = AutoModelForImageTextToText.from_pretrained(resolve_model("tiny"), dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, checkpoint / "adapter").merge_and_unload()
    model = AutoModelForImageTextToText.from_pretrained(checkpoint / "model", dtype=torch.float32)
    theirs = model.state_dict()
    for key, tensor in merged.state_dict().items():
        assert torch.allclose(tensor, theirs[key], rtol=0, atol=1e-7), key
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(
        load_file(checkpoint / "model" / "model.safetensors")[name], shipped_weights()[name]
    )
    for states in (checkpoint / "learner").glob("*model_states.pt"):
        saved = torch.load(states, weights_only=False)["module"]
        # DeepSpeed leaves frozen weights out by their first name only, and this one is tied.
        frozen = {key for key in saved if ".lora_" not in key and saved[key].numel()}
        assert frozen <= {"model.lm_head.weight"}


OTHER_KINDS = [
    (
        scenario(
            "lora_other_base",
            ("load_checkpoint", "../lora_straight_1/checkpoint"),
            model="../lora_straight_1/checkpoint/model",
            **LORA,
        ),
        "frozen weights of checksum",
    ),
    (
        scenario(
            "lora_other_rank",
            ("load_checkpoint", "../lora_straight_1/checkpoint"),
            **LORA | {"learner__lora_rank": 2},
        ),
        "lora_rank=4",
    ),
    (scenario("lora_gone", ("load_checkpoint", "../lora_straight_1/checkpoint")), "lora_rank=0"),
]


@pytest.mark.parametrize(("name", "expected"), OTHER_KINDS)
def test_a_checkpoint_of_another_kind_or_base_is_refused(
    name: str, expected: str, outcomes: Outcomes
) -> None:
    ((refused,),) = outcomes[name]
    assert "CheckpointError" in refused["error"] and expected in refused["error"]


ANCHORED = [
    scenario(
        f"lora_anchored_{ranks}",
        ("step", (0, 2)),
        ("step", (1, 2)),
        ("score", 2),
        ranks=ranks,
        grpo__kl_coef=0.1,
        learner__zero_stage=zero_stage,
        **LORA,
    )
    for ranks, zero_stage in [(1, 1), (2, 3)]
]


def test_the_kl_is_to_the_base(outcomes: Outcomes) -> None:
    alone, together = (outcomes[name][0] for name in ANCHORED)
    assert alone[0]["actor/kl_loss"] == pytest.approx(0.0, abs=1e-9)
    assert alone[1]["actor/kl_loss"] > 1e-6
    assert together[1]["actor/kl_loss"] == pytest.approx(alone[1]["actor/kl_loss"], rel=1e-3)
    assert together[1]["actor/grad_norm"] == pytest.approx(alone[1]["actor/grad_norm"], rel=1e-3)


HALF = scenario(
    "lora_bfloat16",
    ("step", (0, 2)),
    ("step", (1, 2)),
    ("export_weights", "weights.st"),
    ("optimizer_dtypes", None),
    model__dtype="bfloat16",
    learner__zero_stage=2,
    **LORA,
)


def test_in_bfloat16_the_adapter_has_float32_masters(outcomes: Outcomes, folder: Path) -> None:
    first, second, _, optimizer_dtypes = outcomes[HALF][0]
    assert optimizer_dtypes == ["torch.float32"]
    assert first["actor/grad_norm"] > 0 and second["actor/grad_norm"] > 0
    exported, shipped = load_file(folder / HALF / "weights.st"), shipped_weights()
    assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16}
    moved = [key for key in exported if not torch.equal(exported[key], shipped[key].bfloat16())]
    assert moved and all(key.endswith("_proj.weight") for key in moved)


SFT = scenario("lora_sft", *[("sft", ALL_ROWS)] * 4, ("save_model", "model"), stage="sft", **LORA)


def test_sft_trains_an_adapter_too(outcomes: Outcomes, folder: Path) -> None:
    *steps, _ = outcomes[SFT][0]
    losses = [metrics["sft/loss"] for metrics in steps]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.01
    saved, shipped = load_file(folder / SFT / "model" / "model.safetensors"), shipped_weights()
    assert saved.keys() == shipped.keys()
    assert torch.equal(saved["model.embed_tokens.weight"], shipped["model.embed_tokens.weight"])
