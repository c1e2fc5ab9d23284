"""One plan out of K sampled ones. The paper leaves open how the several plans of a model after RL are used.

Both rules see the samples alone, never the truth. Invalid samples have no vote.
"""

from collections import Counter
from collections.abc import Sequence

from alphadrive.actions import Plan
from alphadrive.metrics.safety import plan_cost


def majority_vote(plans: Sequence[Plan | None]) -> Plan | None:
    """The most frequent valid plan, of equals the one drawn first; None where no sample is valid.

    >>> majority_vote([Plan("STOP", "STRAIGHT"), None, Plan("KEEP", "STRAIGHT"), Plan("KEEP", "STRAIGHT")])
    Plan(speed='KEEP', path='STRAIGHT')
    """
    counts = _counts(plans)
    return max(counts, key=counts.__getitem__) if counts else None


def risk_averse(plans: Sequence[Plan | None]) -> Plan | None:
    """The sampled plan of least expected cost, taking each sample in turn for the truth.

    Minimises `mean over valid samples q of plan_cost(q, p)` over the sampled plans p; of equals the more
    frequent, then the one drawn first. None where no sample is valid.

    >>> risk_averse([Plan("KEEP", "STRAIGHT"), Plan("KEEP", "STRAIGHT"), Plan("STOP", "STRAIGHT")])
    Plan(speed='STOP', path='STRAIGHT')
    """
    counts = _counts(plans)
    if not counts:
        return None
    return min(counts, key=lambda plan: (round(_total_cost(plan, counts), 9), -counts[plan]))


def expected_cost(plan: Plan, plans: Sequence[Plan | None]) -> float:
    """The mean cost of `plan`, in [0, 1], when each valid plan of `plans` in turn is the right one."""
    counts = _counts(plans)
    return _total_cost(plan, counts) / counts.total()


def _total_cost(plan: Plan, counts: Counter[Plan]) -> float:
    return sum(count * plan_cost(truth, plan) for truth, count in counts.items())


def _counts(plans: Sequence[Plan | None]) -> Counter[Plan]:
    """How often each valid plan was drawn, in the order in which they were drawn first."""
    return Counter(plan for plan in plans if plan is not None)
