"""One row: ask, check, ask again where an answer is refused, until it passes or the asks are used up."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from alphadrive.actions import Plan, parse_plan
from alphadrive.data.records import DrivingRecord
from alphadrive.prompts import teacher_prompt, visibility_prompt
from alphadrive.teacher.quality import Refusal, refusal_of, seen_objects
from alphadrive.teacher.request import Answer, TeacherRequest, front_image
from alphadrive.teacher.settings import MAX_ASKS, DistillSettings

Ask = Callable[[TeacherRequest], Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowVerdict:
    """How a row ended: `reasoning` passed, or `refusals` (one for each answer) used up its asks.

    `text` is the last answer. An accepted row can have refusals before it.
    """

    row: int
    query_id: str
    plan: Plan
    reasoning: str | None
    text: str
    refusals: tuple[Refusal, ...]


class RowJudge:
    """Judges rows with answers from `ask`."""

    def __init__(self, settings: DistillSettings, ask: Ask) -> None:
        self._settings = settings
        self._ask = ask

    async def judge(self, row: int, record: DrivingRecord) -> RowVerdict:
        """Ask up to MAX_ASKS times why the recorded plan of a valid record is right; what `ask` raises
        passes through."""
        plan = parse_plan(record.plans[0])
        assert plan is not None, "the dataset was validated"
        refusals: list[Refusal] = []
        text = ""
        while len(refusals) < MAX_ASKS:
            refused = [refusal.problem for refusal in refusals]
            prompt = teacher_prompt(record.speed_mps, record.navigation, plan, refused)
            answer = await self._ask(self._request(record, prompt))
            text = answer.text.strip()
            refusal = refusal_of(answer, plan, record.navigation)
            if refusal is None and self._settings.check_visible:
                refusal = await self._unseen(record, text)
            if refusal is None:
                break
            refusals.append(refusal)
        return RowVerdict(
            row=row,
            query_id=record.query_id,
            plan=plan,
            reasoning=text if len(refusals) < MAX_ASKS else None,
            text=text,
            refusals=tuple(refusals),
        )

    async def _unseen(self, record: DrivingRecord, reasoning: str) -> Refusal | None:
        """The second pass. A reply that cannot be read is asked for again, and refuses the reasoning in
        the end: what was not checked does not pass."""
        refused: list[str] = []
        while len(refused) < MAX_ASKS:
            reply = await self._ask(self._request(record, visibility_prompt(reasoning, refused)))
            seen = None if reply.finish_reason == "length" else seen_objects(reply.text)
            if seen is None:
                refused.append("expected lines such as 'red traffic light: yes'")
                continue
            missing = [name for name, is_visible in seen.items() if not is_visible]
            if missing:
                return Refusal(check="visible", problem=f"it names what is not visible: {', '.join(missing)}")
            return None
        return Refusal(check="visible", problem="whether its objects are visible could not be found out")

    def _request(self, record: DrivingRecord, prompt: str) -> TeacherRequest:
        return TeacherRequest(
            query_id=record.query_id,
            model=self._settings.model,
            prompt=prompt,
            image=front_image(record).data,
            max_answer_tokens=self._settings.max_answer_tokens,
        )
