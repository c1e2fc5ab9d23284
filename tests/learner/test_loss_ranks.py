"""Losses, epochs and minibatches in whole steps through DeepSpeed: against plain torch, and however cut."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from learner_job import make_groups
from safetensors.torch import load_file
from scenarios import LEARNING_RATE, MAX_PIXELS, ONE_ROW, Outcomes, saved_name, scenario
from torch import Tensor

from alphadrive.processing import PromptProcessor, resolve_model
from alphadrive.types import Completion, RolloutGroup, ScoredGroup
from learner.minibatches import shuffled_minibatches

pytestmark = pytest.mark.e2e

CAP, NUM_GROUPS, EPOCHS, MINIBATCHES = 1.3, 4, 2, 2
SEVERAL = [
    scenario(
        f"several_{ranks}_ranks_zero_{zero_stage}_{size}_tokens",
        ("step", (0, NUM_GROUPS)),
        ("step", (1, NUM_GROUPS)),
        ("export_weights", "weights.st"),
        ranks=ranks,
        learner__zero_stage=zero_stage,
        learner__max_tokens_per_microbatch=size,
        grpo__epochs=EPOCHS,
        grpo__minibatches=MINIBATCHES,
        grpo__old_policy="learner",
        grpo__importance_level="token",
        grpo__importance_cap=CAP,
        grpo__loss_aggregation="sequence",
    )
    for ranks, zero_stage, size in [(1, 1, 8192), (1, 2, ONE_ROW), (2, 2, ONE_ROW), (2, 3, 8192)]
]


class PlainTorch:
    """The same update with nothing of the learner in it: one forward a completion, AdamW."""

    def __init__(self, dataset: Path) -> None:
        from transformers import AutoModelForImageTextToText

        from alphadrive.data.parquet import DrivingDataset

        self.model = AutoModelForImageTextToText.from_pretrained(resolve_model("tiny"), dtype=torch.float32)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        self.processor = PromptProcessor(resolve_model("tiny"), MAX_PIXELS)
        self.rows = DrivingDataset(dataset)

    def step(self, step: int) -> None:
        """Epochs of minibatches over the groups of a step."""
        groups = make_groups(self.processor, self.rows, step, NUM_GROUPS)
        with torch.no_grad():
            olds = [
                [self.logprobs(each.group, answer) for answer in each.group.completions] for each in groups
            ]
        for epoch in range(EPOCHS):
            for numbers in shuffled_minibatches(NUM_GROUPS, MINIBATCHES, (0, step + 1, epoch)):
                self.optimizer.zero_grad()
                torch.stack([self.loss(groups[number], olds[number]) for number in numbers]).mean().backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()

    def loss(self, scored: ScoredGroup, olds: Sequence[Tensor]) -> Tensor:
        """The mean over completions of the mean over tokens of clipped ratios times truncated weights."""
        losses = []
        for completion, advantage, old in zip(scored.group.completions, scored.advantages, olds, strict=True):
            weight = (old - torch.tensor(completion.rollout_logprobs)).exp().clamp(max=CAP)
            ratio = (self.logprobs(scored.group, completion) - old).exp()
            clipped = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            losses.append(-(clipped * weight).mean())
        return torch.stack(losses).mean()

    def logprobs(self, group: RolloutGroup, completion: Completion) -> Tensor:
        """Of each token of a completion."""
        pixels, grid = self.processor.pixels(self.processor.fit(self.rows.image(group.query.row)))
        ids = torch.tensor([[*group.prompt_token_ids, *completion.token_ids]])
        logits = self.model(
            input_ids=ids,
            mm_token_type_ids=(ids == self.processor.image_token_id).int(),
            pixel_values=torch.from_numpy(pixels),
            image_grid_thw=torch.tensor([grid]),
        ).logits[0, len(group.prompt_token_ids) - 1 : -1]
        logits[:, list(self.processor.vision_token_ids)] = -torch.inf
        return torch.log_softmax(logits, -1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]


@pytest.fixture(scope="module")
def reference(dataset: Path) -> dict[str, Tensor]:
    """The weights after two steps of plain torch, under the names of a checkpoint."""
    plain = PlainTorch(dataset)
    for step in range(2):
        plain.step(step)
    return {saved_name(name): tensor for name, tensor in plain.model.state_dict().items()}


@pytest.mark.parametrize("name", SEVERAL)
def test_epochs_and_minibatches_equal_plain_torch_and_make_one_version_a_step(
    name: str, outcomes: Outcomes, folder: Path, reference: dict[str, Tensor]
) -> None:
    exported = load_file(folder / name / "weights.st")
    shipped = load_file(resolve_model("tiny") / "model.safetensors")
    differences = torch.cat([(exported[key] - reference[key]).flatten() for key in sorted(exported)])
    changes = torch.cat([(reference[key] - shipped[key]).flatten() for key in sorted(exported)])
    assert differences.norm() / changes.norm() <= 1e-3
    (first, second, written), *_ = outcomes[name]
    assert written[1] == [0, 2]
    assert first["rollout_corr/rollout_is_max"] == pytest.approx(CAP)
    assert "timing_s/old_log_prob" in first
    for metrics, whole in zip((first, second), outcomes[SEVERAL[0]][0], strict=False):
        for key in ("actor/loss", "actor/grad_norm", "actor/ppo_kl", "training/rollout_probs_diff_std"):
            assert metrics[key] == pytest.approx(whole[key], rel=2e-3)


BY_COMPLETION = dict(grpo__loss="gspo", grpo__kl_coef=0.1, grpo__kl_estimator="k2")
GSPO_ALONE = scenario("gspo_alone", ("step", (0, 3)), ("step", (1, 3)), **BY_COMPLETION)
GSPO_TOGETHER = scenario(
    "gspo_together",
    ("step", (0, 3)),
    ("step", (1, 3)),
    ranks=2,
    learner__zero_stage=3,
    learner__max_tokens_per_microbatch=ONE_ROW,
    **BY_COMPLETION,
)


def test_a_loss_by_completion_is_the_same_however_it_is_cut(outcomes: Outcomes) -> None:
    for alone, together in zip(outcomes[GSPO_ALONE][0], outcomes[GSPO_TOGETHER][0], strict=True):
        for key in ("actor/loss", "actor/pg_loss", "actor/grad_norm", "actor/pg_clipfrac"):
            assert together[key] == pytest.approx(alone[key], rel=1e-3)


ODD = scenario(
    "odd_groups",
    ("flat_step", (0, 2)),
    ("export_weights", "flat.st"),
    ("hollow_step", (1, 2, 3)),
    ("hollow_step", (1, 4, 1)),
    grpo__loss="dr_grpo",
)


def test_equal_rewards_and_empty_completions_do_what_is_documented(outcomes: Outcomes, folder: Path) -> None:
    ((flat, exported, hollow, partly_hollow),) = outcomes[ODD]
    assert flat["actor/loss"] == flat["actor/grad_norm"] == 0
    assert exported[1] == [0, 1]
    shipped = load_file(resolve_model("tiny") / "model.safetensors")
    assert all(
        torch.equal(tensor, shipped[name]) for name, tensor in load_file(folder / ODD / "flat.st").items()
    )
    assert "LearnerError: step 2: no completion tokens on any rank" in hollow["error"]
    assert partly_hollow["response/aborted_ratio"] == pytest.approx(1 / 3)
    assert partly_hollow["response_length/min"] == 0 and partly_hollow["actor/grad_norm"] > 0
