"""One answer against its query.

A query has several acceptable plans, the recorded one first. Every answer is read strictly
(`alphadrive.actions.parse_answer`): one that cannot be read is invalid and wrong everywhere.
"""

from dataclasses import dataclass

from alphadrive.actions import Plan, parse_answer, parse_plan
from alphadrive.errors import DataError
from alphadrive.types import DrivingQuery


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A plan (None: the answer is invalid) beside the acceptable plans of its query."""

    plan: Plan | None
    acceptable: tuple[Plan, ...]

    @property
    def recorded(self) -> Plan:
        """The plan that was driven."""
        return self.acceptable[0]

    @property
    def is_acceptable(self) -> bool:
        """Whether the whole plan is one of the acceptable ones."""
        return self.plan in self.acceptable

    @property
    def credited_truth(self) -> Plan:
        """The answer where it is acceptable, else the recorded plan."""
        return self.plan if self.plan is not None and self.is_acceptable else self.recorded


def judge(query: DrivingQuery, text: str) -> Judgement:
    """Read one answer strictly. Raises DataError if the query's own plans cannot be read."""
    return judge_plan(query, parse_answer(text))


def judge_plan(query: DrivingQuery, plan: Plan | None) -> Judgement:
    """The same for a plan that was read or chosen already; None stands for no valid plan."""
    plans = [parse_plan(text) for text in query.plans]
    acceptable = tuple(known for known in plans if known is not None)
    if not plans or len(acceptable) != len(plans):
        raise DataError(f"query {query.query_id}: plans {list(query.plans)}: expected 'SPEED, PATH' each")
    return Judgement(plan=plan, acceptable=acceptable)
