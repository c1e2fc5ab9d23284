"""Write `trl_goldens.json`: what TRL's GRPOTrainer makes of a few fixed tokens. `python make_trl_goldens.py`

Run in an environment that has TRL (the goldens were made with the version they name). The loss is TRL's own
method, called with given log-probabilities in place of a model. Weights for the train/inference mismatch are
made here as TRL's documentation words them, since it has no function that only makes them; TRL applies them.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer

MAX_NEW_TOKENS = 8
TOKENS = {
    "lengths": [3, 1, 0, 4],
    "policy": [-0.5, -1.0, -2.0, -0.1, -1.5, -0.7, -3.0, -0.2],
    "old": [-0.9, -1.0, -1.7, -0.2, -1.2, -1.6, -2.6, -0.2],
    "rollout": [-0.8, -1.1, -1.0, -0.9, -1.3, -1.6, -2.7, -0.25],
    "ref": [-0.6, -1.2, -1.9, -0.1, -1.0, -0.9, -2.0, -0.3],
    "advantages": [1.2, -0.7, 0.4, -0.9],
}


def case(name: str, loss_type: str, settings: dict[str, Any], **options: Any) -> dict[str, Any]:
    """A golden: our settings, and what TRL's `loss_type` gives with the options of its own names."""
    return {"name": name, "settings": settings | {"max_new_tokens": MAX_NEW_TOKENS}} | trl_loss(
        loss_type, **options
    )


def cases() -> list[dict[str, Any]]:
    """All goldens. `old` is what TRL calls old_per_token_logps; ours of that name are the start's."""
    wide = {"clip_low": 0.2, "clip_high": 0.28}
    bypass = {"old": "rollout"}
    return [
        case("grpo", "grpo", {"loss": "grpo", "aggregation": "sequence", **wide}, **bypass),
        case("dapo", "dapo", {"loss": "dapo", "aggregation": "token", **wide}, **bypass),
        case("dr_grpo", "dr_grpo", {"loss": "dr_grpo", "aggregation": "constant", **wide}, **bypass),
        case(
            "gspo",
            "grpo",
            {"loss": "gspo", "aggregation": "sequence", "clip_low": 0.05, "clip_high": 0.08},
            importance_sampling_level="sequence",
            epsilon=(0.05, 0.08),
            **bypass,
        ),
        case(
            "cispo",
            "cispo",
            {"loss": "cispo", "aggregation": "token", "clip_low": 1.0, "clip_high": 0.5},
            epsilon=(0.0, 1.5),
            **bypass,
        ),
        case("dual clip", "dapo", {"loss": "dapo", "clip_dual": 1.5, **wide}, delta=1.5, **bypass),
        case("k3", "dapo", {"loss": "dapo", "kl_coef": 0.2, **wide}, beta=0.2, **bypass),
        *(correction_case(level, kind) for level in ("token", "sequence") for kind in ("truncate", "mask")),
    ]


def correction_case(level: str, kind: str) -> dict[str, Any]:
    """A golden of TRL's correction for vLLM's log-probabilities, which keeps the learner's own as the old."""
    settings: dict[str, Any] = {"loss": "dapo", "old_policy": "learner", "importance_level": level}
    if kind == "truncate":
        settings["importance_cap"] = 1.2
        weights = mismatch(level).clamp(max=1.2)
    else:
        settings["importance_mask"] = [0.6, 1.4]
        ratio = mismatch(level)
        weights = ratio.masked_fill((ratio < 0.6) | (ratio > 1.4), 0.0)
    wide = {"clip_low": 0.2, "clip_high": 0.28}
    return case(f"{level}_{kind}", "dapo", settings | wide, old="old", weights=weights)


def padded(name: str) -> Tensor:
    """Values of tokens as (completions, longest), padded with 0 on the right."""
    values = iter(TOKENS[name])
    longest = max(TOKENS["lengths"])
    rows = [[next(values) for _ in range(length)] for length in TOKENS["lengths"]]
    return torch.tensor([row + [0.0] * (longest - len(row)) for row in rows], dtype=torch.float64)


def mask() -> Tensor:
    lengths = torch.tensor(TOKENS["lengths"])
    return (torch.arange(int(lengths.max()))[None] < lengths[:, None]).to(torch.float64)


def mismatch(level: str) -> Tensor:
    """exp of the log-ratio of a token, or of its sum over a completion."""
    difference = (padded("old") - padded("rollout")) * mask()
    return (difference.sum(-1, keepdim=True) if level == "sequence" else difference).exp()


def trl_loss(
    loss_type: str,
    *,
    old: str,
    beta: float = 0.0,
    delta: float | None = None,
    epsilon: Sequence[float] = (0.2, 0.28),
    importance_sampling_level: str = "token",
    weights: Tensor | None = None,
) -> dict[str, Any]:
    """Loss, gradient by token and clipped share of `GRPOTrainer._compute_loss`."""
    policy, keep = padded("policy").requires_grad_(), mask()
    metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (policy, torch.zeros_like(policy), None),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda value: value, reduce=lambda value, **_: value
        ),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=delta, steps_per_generation=1),
        aux_loss_enabled=False,
        beta=beta,
        current_gradient_accumulation_steps=1,
        epsilon_high=epsilon[1],
        epsilon_low=epsilon[0],
        importance_sampling_level=importance_sampling_level,
        loss_type=loss_type,
        max_completion_length=MAX_NEW_TOKENS,
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=weights is not None,
        vllm_importance_sampling_correction=True,
        _entropy_bonus_enabled=False,
        _metrics=metrics,
    )
    ones = torch.ones(len(TOKENS["lengths"]), 1, dtype=torch.int64)
    inputs = {
        "prompt_ids": ones,
        "prompt_mask": ones,
        "completion_ids": torch.ones_like(keep, dtype=torch.int64),
        "completion_mask": keep,
        "advantages": torch.tensor(TOKENS["advantages"], dtype=torch.float64),
        "old_per_token_logps": padded(old),
        "ref_per_token_logps": padded("ref"),
        "importance_sampling_ratio": weights,
        "num_items_in_batch": keep.sum(),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    assert policy.grad is not None and math.isfinite(loss.item())
    golden = {"loss": loss.item(), "gradient": policy.grad[keep.bool()].tolist()}
    clipped = metrics["train"].get("clip_ratio/region_mean")
    if clipped and importance_sampling_level == "token" and delta is None:
        golden["clip_ratio"] = clipped[0]
    return golden


if __name__ == "__main__":
    goldens = {"trl": trl.__version__, "tokens": TOKENS, "cases": cases()}
    path = Path(__file__).with_name("trl_goldens.json")
    path.write_text(json.dumps(goldens, indent=1) + "\n")
    print(f"{path}: {len(goldens['cases'])} goldens of TRL {trl.__version__}")
