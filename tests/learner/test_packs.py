"""One row for a whole group computes exactly what one row per completion would."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import learner.policy
from learner.attention import PackLayout, block_mask
from learner.batch import TokenBatch, TokenRow, build_token_batch
from learner.policy import Policy

IMAGE, VISION_TOKEN_IDS = 59, (59, 60, 61, 62)
MakeRow = Callable[..., TokenRow]


def batch_of(policy: Policy, *rows: TokenRow) -> TokenBatch:
    return build_token_batch(rows, policy.prompt_positions)


def policy_of(model, temperature: float = 1.0) -> Policy:
    """A policy of a copy: the model itself keeps transformers' own attention."""
    return Policy(copy.deepcopy(model), VISION_TOKEN_IDS, temperature)


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


def test_layout_of_a_pack(model, make_row: MakeRow) -> None:
    first, second = make_row(0, (2, 1, 3, 0), num_text=4), make_row(1, (3,))
    batch = batch_of(policy_of(model), first, second)
    num_prompt, num_second = len(first.prompt_ids), len(second.prompt_ids)
    assert batch.input_ids_N.shape == (num_prompt + 1 + 0 + 2 + num_second + 2,)
    after = int(batch.positions_3N[0, num_prompt - 1]) + 1
    assert batch.positions_3N[:, num_prompt : num_prompt + 3].tolist() == [[after, after, after + 1]] * 3
    assert batch.positions_3N[:, num_prompt + 3].tolist() == [0, 0, 0]
    last = num_prompt - 1
    end = num_prompt + 3 + num_second - 1
    assert batch.logit_index_T.tolist() == [
        last,
        last + 1,
        last,
        last,
        last + 2,
        last + 3,
        end,
        end + 1,
        end + 2,
    ]
    completions = [*first.completions, *second.completions]
    assert batch.target_ids_T.tolist() == [token for completion in completions for token in completion]
    assert (batch.sequence_T.tolist(), batch.num_sequences) == ([0, 0, 1, 2, 2, 2, 4, 4, 4], 5)
    ours, single = batch.layout.spans
    assert (ours.start, ours.num_causal, ours.lengths) == (0, num_prompt, (1, 2))
    assert (single.start, single.num_causal, single.lengths) == (num_prompt + 3, num_second + 2, ())


def test_what_a_position_sees() -> None:
    layout = PackLayout.of([(2, (1, 2)), (2, ())])
    is_seen = block_mask(layout, torch.device("cpu")).mask_mod
    at = torch.arange(layout.num_positions)
    assert is_seen(torch.tensor(0), torch.tensor(0), at[:, None], at[None, :]).int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


def test_the_block_mask_and_the_groups_one_by_one_agree(model, make_row: MakeRow) -> None:
    policy = policy_of(model)
    batch = batch_of(policy, make_row(1, (5, 1, 4)), make_row(2, (3,), num_text=12), make_row(3, (2, 0, 2)))
    with_blocks = replace(
        batch, layout=replace(batch.layout, blocks=block_mask(batch.layout, torch.device("cpu")))
    )
    with torch.no_grad():  # flex_attention has no backward pass on CPU
        torch.testing.assert_close(policy(batch)[0], policy(with_blocks)[0], rtol=0, atol=1e-5)


def test_anything_but_a_pack_is_refused(model, make_row: MakeRow) -> None:
    policy = policy_of(model)
    with pytest.raises(ValueError, match="PackLayout"):
        policy.model.base_model.language_model(
            inputs_embeds=torch.zeros(1, 4, 32), attention_mask={"full_attention": None}
        )
    with pytest.raises(ValueError, match="at least one row"):
        batch_of(policy)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_the_repeated_prefix(model, make_row: MakeRow, temperature: float) -> None:
    rows = [make_row(1, (5, 1, 4, 2)), make_row(2, (3, 6), num_text=12), make_row(3, (2, 0, 2), num_text=5)]
    policy = policy_of(model, temperature)
    logprobs_T, entropy_T = policy(batch_of(policy, *rows))
    torch.testing.assert_close(logprobs_T, repeated(model, rows, temperature), rtol=0, atol=1e-5)
    assert (entropy_T > 0).all()


def test_single_completions_equal_plain_sequences(model, make_row: MakeRow) -> None:
    rows = [make_row(1, (5,)), make_row(2, (9,), num_text=15), make_row(3, (2,))]
    policy = policy_of(model)
    torch.testing.assert_close(policy(batch_of(policy, *rows))[0], repeated(model, rows), rtol=0, atol=1e-5)


def test_gradient_equals_the_repeated_prefix(model, make_row: MakeRow) -> None:
    rows = [make_row(1, (5, 3, 4)), make_row(2, (3, 6), num_text=12)]
    policy = policy_of(model)
    weights_T = torch.randn(21, generator=torch.Generator().manual_seed(1))
    (policy(batch_of(policy, *rows))[0] * weights_T).sum().backward()
    shared = {name: parameter.grad for name, parameter in policy.model.named_parameters()}
    (repeated(model, rows) * weights_T).sum().backward()
    for name, parameter in model.named_parameters():
        difference = (shared[name] - parameter.grad).norm() / parameter.grad.norm().clamp(min=1e-3)
        assert difference < 1e-5, name


def test_a_prompt_token_moves_its_own_group_and_no_other(model, make_row: MakeRow) -> None:
    first, second = make_row(1, (4, 4)), make_row(2, (3, 3))
    policy = policy_of(model)
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
    policy = policy_of(model)
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
    policy = policy_of(model)
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
    policy = policy_of(model)
    logprobs_T, entropy_T = policy(batch_of(policy, forced))
    assert torch.isneginf(logprobs_T[:3]).all()
    assert torch.isfinite(logprobs_T[3:]).all() and torch.isfinite(entropy_T).all()


def test_chunked_logits_give_the_same_values_and_gradients(
    model, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [make_row(1, (5, 3, 4)), make_row(2, (3, 6), num_text=12)]
    policy = policy_of(model)
    whole = policy(batch_of(policy, *rows))[0]
    whole.sum().backward()
    weight = policy.model.get_output_embeddings().weight
    gradient = weight.grad.clone()
    policy.zero_grad()
    monkeypatch.setattr(learner.policy, "MAX_LOGITS", 64 * 4)
    chunked = policy(batch_of(policy, *rows))[0]
    chunked.sum().backward()
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(weight.grad, gradient, rtol=1e-5, atol=1e-6)


def test_frozen_vision_gets_no_gradient(model, make_row: MakeRow) -> None:
    policy = policy_of(model)
    policy.freeze_vision()
    policy(batch_of(policy, make_row(1, (4, 5))))[0].sum().backward()
    with_gradient = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert not any(".visual." in name for name in with_gradient)
    assert any(".language_model." in name for name in with_gradient)
