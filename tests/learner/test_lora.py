"""LoRA is the same mathematics as the weights it stands for: at its start, in its gradients, and merged."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from alphadrive.config import LearnerConfig
from alphadrive.errors import CheckpointError, ConfigError
from alphadrive.lora_targets import modules_in_headers, num_adapter_parameters
from alphadrive.model_folder import resolve_model
from learner.batch import TokenBatch, TokenRow, build_token_batch
from learner.export import collect_factors, collect_weights
from learner.lora import Adapter, check_same_adapter
from learner.policy import Policy

VISION_TOKEN_IDS = (59, 60, 61, 62)
EVERYTHING_LINEAR = r"model\..*(_proj|qkv|attn\.proj|fc\d|merger\.mlp\.[02])"
MakeRow = Callable[..., TokenRow]


class WholeModel:
    """Stands for the training engine where one process holds every parameter whole."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def for_each_parameter(self, visit, wanted=lambda name: True) -> None:
        for name, parameter in self.policy.named_parameters():
            if wanted(name):
                visit(name, parameter.detach())


@pytest.fixture
def base(model, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def lora(**options: object) -> LearnerConfig:
    return replace(LearnerConfig(lora_rank=4, lora_alpha=8), **options)


def loaded(folder: Path, dtype: str = "float32") -> Policy:
    return Policy.from_folder(folder, dtype, VISION_TOKEN_IDS)


def adapted(folder: Path, dtype: str = "float32", **options: object) -> Policy:
    """A policy with an adapter that changes what it says: B is random instead of zero."""
    policy = loaded(folder, dtype)
    policy.add_adapter(lora(**options), seed=0)
    torch.manual_seed(1)
    for name, parameter in policy.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.1)
    return policy


def batch_for(policy: Policy, make_row: MakeRow) -> TokenBatch:
    rows = [make_row(0, (3, 5)), make_row(1, (4,), num_text=5)]
    return build_token_batch(rows, policy.prompt_positions)


def logprobs(policy: Policy, make_row: MakeRow) -> Tensor:
    with torch.no_grad():
        return policy(batch_for(policy, make_row))[0]


def merged(policy: Policy, folder: Path) -> Path:
    """A folder with the policy's exported weights."""
    weights = collect_weights(WholeModel(policy), policy, keep=True)
    folder.mkdir()
    policy.model.config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_at_its_start_an_adapter_changes_nothing_and_is_all_that_trains(
    base: Path, make_row: MakeRow
) -> None:
    before = logprobs(loaded(base), make_row)
    policy = loaded(base)
    policy.add_adapter(lora(), seed=0)
    assert (logprobs(policy, make_row) - before).abs().max() <= 1e-6
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * 7 and all(".language_model." in name for name in trained)
    assert {name.split(".")[-2] for name in trained} == {"default"}
    num_trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    assert policy.adapter.num_parameters == num_trained


@pytest.mark.parametrize("targets", [LearnerConfig.lora_targets, EVERYTHING_LINEAR])
def test_the_exported_weights_alone_say_what_the_adapter_says(
    base: Path, tmp_path: Path, make_row: MakeRow, targets: str
) -> None:
    policy = adapted(base, lora_targets=targets)
    ours = logprobs(policy, make_row)
    assert (ours - logprobs(loaded(base), make_row)).abs().max() > 0.1
    folder = merged(policy, tmp_path / "merged")
    assert set(load_file(folder / "model.safetensors")) == set(load_file(base / "model.safetensors"))
    assert (logprobs(loaded(folder), make_row) - ours).abs().max() <= 1e-5
    assert torch.equal(logprobs(policy, make_row), ours)


def test_in_half_precision_the_exported_weights_differ_by_its_noise(
    base: Path, tmp_path: Path, make_row: MakeRow
) -> None:
    policy = adapted(base, "bfloat16")
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.bfloat16}
    ours = logprobs(policy, make_row)
    exported = loaded(merged(policy, tmp_path / "merged"), "bfloat16")
    exact = logprobs(policy.float(), make_row)
    noise = (ours - exact).abs().max()
    assert (logprobs(exported, make_row) - ours).abs().max() <= 2 * noise


def test_merging_is_exact_to_the_last_bit_of_float32(base: Path) -> None:
    policy = adapted(base, "bfloat16")
    weights = collect_weights(WholeModel(policy), policy, keep=True)
    layer = policy.model.base_model.language_model.layers[1].mlp.up_proj
    factor_a, factor_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = layer.base_layer.weight.double() + 8 / 4 * factor_b.double() @ factor_a.double()
    (name,) = [name for name in weights if name.endswith("layers.1.mlp.up_proj.weight")]
    rounding = expected.abs() * 2**-8 + 1e-6
    assert weights[name].dtype == torch.bfloat16
    assert ((weights[name].double() - expected).abs() <= rounding).all()


def test_without_its_adapter_a_policy_is_the_base_again(base: Path, make_row: MakeRow) -> None:
    policy = adapted(base)
    ours, _ = policy(batch_for(policy, make_row))
    with policy.adapter.disabled():
        reference = logprobs(policy, make_row)
    assert torch.equal(reference, logprobs(loaded(base), make_row))
    assert torch.equal(logprobs(policy, make_row), ours)
    ours.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in policy.parameters() if p.requires_grad)


def test_gradients_are_the_full_weights_gradient_projected(
    base: Path, tmp_path: Path, make_row: MakeRow
) -> None:
    policy = adapted(base, lora_rank=32, lora_targets=EVERYTHING_LINEAR)
    full = loaded(merged(policy, tmp_path / "merged"))
    for each in (policy, full):
        generator = torch.Generator().manual_seed(3)
        logprobs_T, _ = each(batch_for(each, make_row))
        (logprobs_T * torch.randn(len(logprobs_T), generator=generator)).sum().backward()
    full_modules, layers = dict(full.named_modules()), dict(policy.named_modules())
    chosen = [f"model.{name}" for name in policy.adapter.targets]
    assert len(chosen) == 2 * 7 + 2 * 4 + 2
    for name in chosen:
        weight_gradient = full_modules[name].weight.grad
        factor_a, factor_b = (side["default"].weight for side in (layers[name].lora_A, layers[name].lora_B))
        scale = 8 / 32
        assert_close(factor_b.grad, scale * weight_gradient @ factor_a.detach().T)
        assert_close(factor_a.grad, scale * factor_b.detach().T @ weight_gradient)


def assert_close(ours: Tensor, expected: Tensor) -> None:
    assert expected.norm() > 1e-3
    assert (ours - expected).norm() <= 1e-5 * expected.norm()


def test_an_adapter_starts_the_same_wherever_it_is_made(model) -> None:
    def start(global_seed: int, seed: int) -> dict[str, Tensor]:
        policy = Policy(type(model)(model.config), VISION_TOKEN_IDS)
        torch.manual_seed(global_seed)
        next_number = torch.rand(1)
        torch.manual_seed(global_seed)
        policy.add_adapter(lora(), seed)
        assert torch.equal(torch.rand(1), next_number)
        return collect_factors(WholeModel(policy), keep=True)

    first, second, other = start(10, seed=0), start(11, seed=0), start(10, seed=1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if ".lora_A." in name)


def test_peft_loads_the_adapter_on_the_base(base: Path, tmp_path: Path, make_row: MakeRow) -> None:
    policy = adapted(base)
    policy.adapter.save(collect_factors(WholeModel(policy), keep=True), tmp_path / "adapter")
    plain = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    theirs = Policy(PeftModel.from_pretrained(plain, tmp_path / "adapter").get_base_model(), VISION_TOKEN_IDS)
    assert torch.equal(logprobs(theirs, make_row), logprobs(policy, make_row))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (
            "q_proj",
            r"'q_proj' matches none of the model's 24 .* such as model\.language_model\.layers\.0\.mlp",
        ),
        (r".*norm", r"matches 5 modules .* model\.language_model.*norm \(not linear\).* linear modules only"),
        (
            ".*embed_tokens",
            r"matches 1 modules that LoRA cannot adapt, such as .*embed_tokens \(not linear\)",
        ),
        ("lm_head", r"lm_head \(its weight is the token embedding's\)"),
        (r".*patch_embed\.proj", r"patch_embed\.proj \(not linear\)"),
    ],
)
def test_targets_that_cannot_be_adapted_are_refused_by_name(model, targets: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Adapter(model, lora(lora_targets=targets), seed=0)


def test_a_frozen_vision_tower_is_no_target(model) -> None:
    with pytest.raises(ConfigError, match=r"qkv \(frozen by learner.freeze_vision\)"):
        Adapter(model, lora(lora_targets=".*qkv", freeze_vision=True), seed=0)
    assert len(Adapter(model, lora(lora_targets=".*qkv"), seed=0).targets) == 2


def test_the_headers_of_the_weights_tell_which_modules_there_are() -> None:
    folder = resolve_model("tiny")
    modules = dict(Policy.from_folder(folder, "float32", ()).model.named_modules())
    linear = {
        name: tuple(module.weight.shape) for name, module in modules.items() if isinstance(module, nn.Linear)
    }
    linear.pop("lm_head")
    found, others = modules_in_headers(folder)
    assert found == linear
    assert others <= set(modules) and not others & set(linear)
    assert num_adapter_parameters(folder, lora(lora_targets=".*k_proj")) == 3 * 4 * (128 + 64)


def test_training_of_another_kind_is_not_continued(model, base: Path, tmp_path: Path) -> None:
    policy = adapted(base)
    policy.adapter.save(collect_factors(WholeModel(policy), keep=True), tmp_path / "adapter")
    check_same_adapter(tmp_path, lora())
    for other, expected in (
        (lora(lora_rank=2), r"lora_rank=4 .*configuration has learner.lora_rank=2"),
        (lora(lora_alpha=4), r"lora_alpha=8 .*lora_alpha=4"),
        (lora(lora_targets=".*q_proj"), r"_proj' *, the .*lora_targets='\.\*q_proj'"),
        (lora(lora_rank=0), r"has learner\.lora_rank=0 \(full weights\)"),
    ):
        with pytest.raises(CheckpointError, match=expected):
            check_same_adapter(tmp_path, other)
    with pytest.raises(CheckpointError, match=r"made with learner\.lora_rank=0 \(full weights\)"):
        check_same_adapter(base, lora())
