"""How the rows of a run ended, counted; read by the progress display and by the summary."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from alphadrive.teacher.rows import RowVerdict
from alphadrive.teacher.settings import MIN_ACCEPTANCE, MIN_JUDGED_ROWS

Status = Literal["complete", "partial", "capped", "interrupted", "low_acceptance", "failed"]
"""`partial`: every row was tried, some got no answer. The last three write no dataset."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Grows as rows end. `reasoning` holds the accepted texts by row."""

    num_to_ask: int
    reasoning: dict[int, str] = field(default_factory=dict)
    rejected: list[RowVerdict] = field(default_factory=list)
    unanswered: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Row to query_id and what went wrong."""
    refused_answers: Counter[str] = field(default_factory=Counter)
    """Refused answers by check, those of rows accepted later included."""

    def add(self, verdict: RowVerdict) -> None:
        """Count a judged row."""
        self.refused_answers.update(refusal.check for refusal in verdict.refusals)
        if verdict.reasoning is None:
            self.rejected.append(verdict)
        else:
            self.reasoning[verdict.row] = verdict.reasoning

    @property
    def num_judged(self) -> int:
        return len(self.reasoning) + len(self.rejected)

    @property
    def num_done(self) -> int:
        """Judged rows and those that got no answer."""
        return self.num_judged + len(self.unanswered)

    @property
    def acceptance(self) -> float | None:
        """Accepted rows over judged ones, 0 to 1; None before the first."""
        return len(self.reasoning) / self.num_judged if self.num_judged else None

    def is_acceptance_low(self, at_end: bool = False) -> bool:
        """Whether the teacher is not worth going on with. A run that has seen few rows cannot tell,
        unless it has seen all."""
        if self.acceptance is None or not (at_end or self.num_judged >= MIN_JUDGED_ROWS):
            return False
        return self.acceptance < MIN_ACCEPTANCE
