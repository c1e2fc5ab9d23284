"""The learner's updates with nothing of the learner in them: transformers, plain torch, AdamW."""

from collections.abc import Sequence
from pathlib import Path

import torch
from learner_job import make_groups
from safetensors.torch import load_file
from scenarios import LEARNING_RATE, MAX_PIXELS
from torch import Tensor, nn

from alphadrive.data.parquet import DrivingDataset
from alphadrive.processing import PromptProcessor, resolve_model
from alphadrive.types import ScoredGroup


def plain_loss(
    model: nn.Module, groups: Sequence[ScoredGroup], processor: PromptProcessor, rows: DrivingDataset
) -> Tensor:
    """The loss of a step: one forward a completion."""
    losses, num_tokens = [], 0
    for scored in groups:
        pixels, grid = processor.pixels(processor.fit(rows.image(scored.group.query.row)))
        for completion, advantage in zip(scored.group.completions, scored.advantages, strict=True):
            ids = torch.tensor([[*scored.group.prompt_token_ids, *completion.token_ids]])
            logits = model(
                input_ids=ids,
                mm_token_type_ids=(ids == processor.image_token_id).int(),
                pixel_values=torch.from_numpy(pixels),
                image_grid_thw=torch.tensor([grid]),
            ).logits[0, len(scored.group.prompt_token_ids) - 1 : -1]
            logits[:, list(processor.vision_token_ids)] = -torch.inf
            targets = torch.tensor(completion.token_ids)[:, None]
            logprobs = torch.log_softmax(logits, -1).gather(1, targets)[:, 0]
            ratio = (logprobs - torch.tensor(completion.rollout_logprobs)).exp()
            losses.append(-torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).sum())
            num_tokens += len(completion.token_ids)
    return torch.stack(losses).sum() / num_tokens


def train_plainly(model: nn.Module, dataset: Path) -> None:
    """Three steps on the groups of `learner_job`; parameters that need no gradient stay."""
    processor, rows = PromptProcessor(resolve_model("tiny"), MAX_PIXELS), DrivingDataset(dataset)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    for step in range(3):
        optimizer.zero_grad()
        plain_loss(model, make_groups(processor, rows, step, 4), processor, rows).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()


def shipped_weights() -> dict[str, Tensor]:
    """The weights that every scenario starts from, under the names of a model folder."""
    return load_file(resolve_model("tiny") / "model.safetensors")
