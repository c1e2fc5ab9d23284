"""Variant `strict`, the default: the paper's idea without the ways around it.

    speed  = F1(speed) * W[speed word] * div        0 to 1
    path   = F1(path)  * W[path word]  * div        0 to 1
    format = 1 if the text is well formed and states one plan, else 0
    div    = 1 - 0.2 * (share of the other members that gave the same plan), if the plan is acceptable
             0.8, if it is not                                                            0.8 to 1

What each pays and why:

- **F1** over the acceptable set: 1 for each word of the acceptable plan that fits the whole answer best,
  so half a plan earns half and words of two plans are never combined. The answer is the last complete
  `<answer>`, read whole or not at all (`alphadrive.actions`): two plans, all nine words, a full stop or a
  look-alike letter are no plan, and what stands in `<think>` or in an earlier `<answer>` is not read.
- **W**, 0.8 to 1 (`rewards.action_weights`): what is rare and matters for safety weighs more.
- **div** pays for variety among acceptable plans only. It compares with the other G - 1 members, so it
  spans its whole range at every G >= 2: 1 where no other member gave the plan, 0.8 where all did. It
  counts plans, whatever their order. In a group of two, two acceptable answers have equal counts, so no
  rule that is blind to order can set them apart; there it separates them from wrong ones.
- **format**: 1, more than the 0.72 between the best and the worst paid acceptable plan (1 + 1 against
  (0.8 + 0.8) * 0.8 = 1.28), so leaving the form never pays.

Bounds. A right plan has both words of one acceptable plan: speed + path >= (0.8 + 0.8) * 0.8 = 1.28. A wrong
one has at most one word of any acceptable plan: speed + path <= 1 * 0.8 = 0.8. Hence, whatever the group:

1. in the same form, any right plan earns at least 0.48 more than any wrong one, however rare the wrong one
   and however common the right one;
2. a malformed text earns exactly 1 less than a well-formed one with the same plan;
3. a malformed text earns at most 2, a well-formed right plan at least 2.28: no malformed text beats it;
4. a text without a plan earns 0, any well-formed plan at least 1.

By 1 to 4, only another well-formed acceptable plan can earn more than a well-formed acceptable plan. The
total is 0 to 3. Linear in the length of the texts; defined for every text.
"""

from collections import Counter
from collections.abc import Sequence

from alphadrive.actions import Plan, is_well_formed, parse_answer
from rewards.action_weights import plan_terms

DIVERSITY_SHARE = 0.2
"""How much of speed and path depends on variety, as in the paper's Algorithm 1."""


def strict_terms(texts: Sequence[str], acceptable: Sequence[Plan]) -> list[dict[str, float]]:
    """The terms of every text of one group: `speed` and `path` in [0, 1], `format` 0 or 1."""
    answers = [parse_answer(text) for text in texts]
    num_others = max(1, len(texts) - 1)
    pays = {
        answer: plan_terms(answer, acceptable, _diversity(answer in acceptable, (count - 1) / num_others))
        for answer, count in Counter(answers).items()
    }
    rewards = []
    for text, answer in zip(texts, answers, strict=True):
        speed, path = pays[answer]
        is_whole = answer is not None and is_well_formed(text)
        rewards.append({"speed": speed, "path": path, "format": 1.0 if is_whole else 0.0})
    return rewards


def _diversity(is_acceptable: bool, share_of_others: float) -> float:
    return 1.0 - DIVERSITY_SHARE * (share_of_others if is_acceptable else 1.0)
