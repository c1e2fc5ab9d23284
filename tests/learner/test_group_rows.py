"""One row for a whole group computes exactly what one row per completion would."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import learner.policy
from learner.batch import TokenBatch, TokenRow, build_token_batch, group_mask
from learner.policy import Policy

IMAGE, VISION_TOKEN_IDS, PAD = 59, (59, 60, 61, 62), 63
MakeRow = Callable[..., TokenRow]


def batch_of(policy: Policy, *rows: TokenRow) -> TokenBatch:
    return build_token_batch(rows, policy.prompt_positions, PAD, torch.float32)


def alone(model, row: TokenRow, completion: list[int], temperature: float) -> Tensor:
    """Log-probabilities by transformers' own path: prompt and one completion, positions left to the model."""
    ids = torch.tensor([[*row.prompt_ids, *completion]])
    logits = model(
        input_ids=ids,
        mm_token_type_ids=(ids == IMAGE).int(),
        pixel_values=torch.from_numpy(row.pixel_values),
        image_grid_thw=torch.tensor([row.grid]),
    ).logits[0, len(row.prompt_ids) - 1 : -1]
    logits[:, list(VISION_TOKEN_IDS)] = -torch.inf
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    return logprobs.gather(1, torch.tensor(completion)[:, None])[:, 0]


def repeated(model, rows: list[TokenRow], temperature: float = 1.0) -> Tensor:
    return torch.cat([alone(model, row, list(c), temperature) for row in rows for c in row.completions if c])


def test_layout_of_a_row(model, make_row: MakeRow) -> None:
    row = make_row(0, (2, 1, 3), num_text=4)
    batch = batch_of(Policy(model, VISION_TOKEN_IDS), row)
    num_prompt = len(row.prompt_ids)
    assert batch.input_ids_BL.shape == (1, num_prompt + 1 + 0 + 2)
    first = int(batch.positions_3BL[0, 0, num_prompt - 1]) + 1
    assert batch.positions_3BL[:, 0, num_prompt:].tolist() == [[first, first, first + 1]] * 3
    last = num_prompt - 1
    assert batch.logit_index_T.tolist() == [last, last + 1, last, last, last + 2, last + 3]
    assert batch.target_ids_T.tolist() == [token for completion in row.completions for token in completion]


def test_mask_of_a_small_group() -> None:
    is_seen = group_mask(torch.tensor([[0, 0, 1, 2, 2, -1]]), torch.float32)[0, 0] == 0
    assert is_seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_the_repeated_prefix(model, make_row: MakeRow, temperature: float) -> None:
    rows = [make_row(1, (5, 1, 4, 2)), make_row(2, (3, 6), num_text=12), make_row(3, (2, 0, 2), num_text=5)]
    policy = Policy(model, VISION_TOKEN_IDS, temperature)
    logprobs_T, entropy_T = policy(batch_of(policy, *rows))
    torch.testing.assert_close(logprobs_T, repeated(model, rows, temperature), rtol=0, atol=1e-5)
    assert (entropy_T > 0).all()


def test_single_completions_need_no_mask(model, make_row: MakeRow) -> None:
    rows = [make_row(1, (5,)), make_row(2, (9,), num_text=15), make_row(3, (2,))]
    policy = Policy(model, VISION_TOKEN_IDS)
    batch = batch_of(policy, *rows)
    assert batch.attention_mask_B1LL is None
    torch.testing.assert_close(policy(batch)[0], repeated(model, rows), rtol=0, atol=1e-5)


def test_gradient_equals_the_repeated_prefix(model, make_row: MakeRow) -> None:
    rows = [make_row(1, (5, 3, 4)), make_row(2, (3, 6), num_text=12)]
    policy = Policy(model, VISION_TOKEN_IDS)
    weights_T = torch.randn(21, generator=torch.Generator().manual_seed(1))
    (policy(batch_of(policy, *rows))[0] * weights_T).sum().backward()
    shared = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    (repeated(model, rows) * weights_T).sum().backward()
    for name, parameter in model.named_parameters():
        difference = (shared[name] - parameter.grad).norm() / parameter.grad.norm().clamp(min=1e-3)
        assert difference < 1e-5, name


def test_a_prompt_token_moves_its_own_group_and_no_other(model, make_row: MakeRow) -> None:
    first, second = make_row(1, (4, 4)), make_row(2, (3, 3))
    policy = Policy(model, VISION_TOKEN_IDS)
    before = policy(batch_of(policy, first, second))[0]
    changed_ids = [*first.prompt_ids]
    changed_ids[0] = (changed_ids[0] + 1) % 50
    changed = TokenRow(
        prompt_ids=changed_ids,
        completions=first.completions,
        pixel_values=first.pixel_values,
        grid=first.grid,
    )
    after = policy(batch_of(policy, changed, second))[0]
    assert ((before - after)[:8].abs() > 1e-6).all()
    assert torch.equal(before[8:], after[8:])


def test_a_completion_does_not_see_its_siblings(model, make_row: MakeRow) -> None:
    row = make_row(1, (4, 5))
    policy = Policy(model, VISION_TOKEN_IDS)
    before = policy(batch_of(policy, row))[0]
    changed = TokenRow(
        prompt_ids=row.prompt_ids,
        completions=[[7, 8, 9, 10], row.completions[1]],
        pixel_values=row.pixel_values,
        grid=row.grid,
    )
    after = policy(batch_of(policy, changed))[0]
    torch.testing.assert_close(before[4:], after[4:], rtol=0, atol=1e-6)


def test_the_image_matters(model, make_row: MakeRow) -> None:
    row = make_row(1, (4, 5))
    policy = Policy(model, VISION_TOKEN_IDS)
    blank = TokenRow(
        prompt_ids=row.prompt_ids,
        completions=row.completions,
        pixel_values=row.pixel_values * 0,
        grid=row.grid,
    )
    difference = policy(batch_of(policy, row))[0] - policy(batch_of(policy, blank))[0]
    assert (difference.abs() > 1e-4).all()


def test_vision_tokens_have_no_probability(model, make_row: MakeRow) -> None:
    row = make_row(1, (2, 3))
    forced = TokenRow(
        prompt_ids=row.prompt_ids,
        completions=[list(VISION_TOKEN_IDS[1:]), [5, 6]],
        pixel_values=row.pixel_values,
        grid=row.grid,
    )
    policy = Policy(model, VISION_TOKEN_IDS)
    logprobs_T, entropy_T = policy(batch_of(policy, forced))
    assert torch.isneginf(logprobs_T[:3]).all()
    assert torch.isfinite(logprobs_T[3:]).all() and torch.isfinite(entropy_T).all()


def test_chunked_logits_give_the_same_values_and_gradients(
    model, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [make_row(1, (5, 3, 4)), make_row(2, (3, 6), num_text=12)]
    policy = Policy(model, VISION_TOKEN_IDS)
    whole = policy(batch_of(policy, *rows))[0]
    whole.sum().backward()
    gradient = model.get_output_embeddings().weight.grad.clone()
    model.zero_grad()
    monkeypatch.setattr(learner.policy, "MAX_LOGITS", 64 * 4)
    chunked = policy(batch_of(policy, *rows))[0]
    chunked.sum().backward()
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(model.get_output_embeddings().weight.grad, gradient, rtol=1e-5, atol=1e-6)


def test_frozen_vision_gets_no_gradient(model, make_row: MakeRow) -> None:
    policy = Policy(model, VISION_TOKEN_IDS)
    policy.freeze_vision()
    policy(batch_of(policy, make_row(1, (4, 5))))[0].sum().backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert not any(".visual." in name for name in with_gradient)
    assert any(".language_model." in name for name in with_gradient)
