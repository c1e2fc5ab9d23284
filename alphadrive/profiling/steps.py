"""The steps of a session and which of them are measured.

    wait ─ train ─ sync ─ (evaluate) ─ (checkpoint) │ wait ─ train ─ …        the driver's lane `loop`
    └──────────────────── a step ─────────────────┘

The first step is left out (things happen in it for the first time), and so are the last ones, in which no new
group was begun: engines have nothing to do there. Where that leaves nothing, all steps count.
"""

from dataclasses import dataclass

from alphadrive.profiling.intervals import Interval
from alphadrive.profiling.recording import GROUPS, LOOP, Recording
from alphadrive.profiling.spans import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the train loop. `last_group` is the ticket that it waited for longest; None where it is
    not known (a stage without groups)."""

    number: int
    window: Interval
    spans: tuple[Span, ...]
    last_group: int | None

    @property
    def duration_ns(self) -> int:
        """How long it took, evaluation and checkpoint included."""
        return self.window[1] - self.window[0]


def all_steps(recording: Recording) -> list[Step]:
    """Every whole step, in order."""
    loop = [span for span in recording.driver.spans if span.lane == LOOP]
    starts = [index for index, span in enumerate(loop) if span.name == "wait"]
    last_groups = _last_groups(recording)
    steps: list[Step] = []
    for start, end in zip(starts, [*starts, len(loop)][1:], strict=True):
        spans = tuple(loop[start:end])
        trained = [span for span in spans if span.name == "train"]
        if not trained:
            continue  # the wait of a run that has ended, or that was killed in it
        ends_ns = loop[end].start_ns if end < len(loop) else max(span.end_ns for span in spans)
        steps.append(
            Step(
                number=int(trained[0].args.get("step", len(steps) + 1)),
                window=(spans[0].start_ns, ends_ns),
                spans=spans,
                last_group=last_groups.get(int(spans[0].args.get("take", -1))),
            )
        )
    return steps


def _last_groups(recording: Recording) -> dict[int, int]:
    """For every `take` the ticket of the group that came last."""
    came: dict[int, tuple[int, int]] = {}
    for span in recording.driver.named("ready", lane=GROUPS):
        take = int(span.args["take"])
        came[take] = max(came.get(take, (0, -1)), (span.start_ns, int(span.args["ticket"])))
    return {take: ticket for take, (_, ticket) in came.items()}


def measured_steps(recording: Recording) -> list[Step]:
    """The steps that count, see the module."""
    steps = all_steps(recording)
    drawn = recording.driver.named("generate", lane=GROUPS)
    last_start_ns = max((span.start_ns for span in drawn), default=None)
    counted = steps[1:]
    if last_start_ns is not None:
        counted = [step for step in counted if step.window[0] <= last_start_ns]
    return counted or steps
