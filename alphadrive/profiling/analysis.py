"""A recording in numbers: rates, what each kind of worker did and waited for, overlap, arithmetic.

All of it is over the measured steps (`steps`). Shares of workers are of the time that they were there, means
over the workers of a kind.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from alphadrive.errors import InputError
from alphadrive.profiling.critical_path import Segment, critical_path, median_step
from alphadrive.profiling.intervals import Interval, Intervals, common, length_ns, without
from alphadrive.profiling.recording import GROUPS, Recording, Track
from alphadrive.profiling.states import BUSY, LoopStates, worker_states
from alphadrive.profiling.steps import Step, measured_steps
from alphadrive.sizing.gpus import peak_flops


@dataclass(frozen=True, slots=True, kw_only=True)
class KindProfile:
    """The workers of a kind. `idle` is by cause (see `states`); with `busy` it adds up to 1.

    `groups_at_once` is how many groups an engine had under way on average while it had any; None for others.
    """

    count: int
    busy: float
    idle: dict[str, float]
    workers: dict[str, float]
    groups_at_once: float | None = None

    @property
    def idle_share(self) -> float:
        """All causes together."""
        return sum(self.idle.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What `alphadrive profile RUN` tells. Shares are from 0 to 1; None is what is not known."""

    facts: dict[str, float | str]
    first_step: int
    last_step: int
    num_steps: int
    wall_s: float
    step_s: float
    """The median."""
    samples_per_s: float
    tokens_per_s: float
    loop: dict[str, float]
    """What the train loop spent its time on."""
    kinds: dict[str, KindProfile]
    overlap: float | None
    """max(rollout, learner) / wall: the part of the time, evaluation and checkpoints aside, in which the
    busier of the two worked."""
    sync_share: float
    mfu: float | None
    """Arithmetic that the updates cannot do without, by what the GPUs could do while they trained."""
    mfu_of_wall: float | None
    """The same, by what they could do in all the time."""
    median_step: int
    critical_path: list[Segment]
    clock_error_s: float
    dropped_spans: int

    def as_json(self) -> dict[str, Any]:
        """The same for `--json`."""
        return asdict(self)


def profile_of(recording: Recording) -> Profile:
    """Analyse a recording. Raises InputError when it holds no whole step."""
    steps = measured_steps(recording)
    if not steps:
        raise InputError(
            "no whole step was recorded: expected at least one; let the run go on for some steps with "
            "profile.enabled=true"
        )
    whole: Interval = (steps[0].window[0], steps[-1].window[1])
    wall_s = (whole[1] - whole[0]) / 1e9
    loop = LoopStates(recording, steps, [whole])
    active = without(without([whole], loop.evaluation), loop.checkpoint)
    states = {
        kind: {track.source: worker_states(track, loop) for track in recording.of_kind(kind)} for kind in BUSY
    }
    kinds = {
        kind: _kind_profile(recording, kind, [whole], of_kind) for kind, of_kind in states.items() if of_kind
    }
    samples, tokens = _drawn(recording, whole)
    middle = median_step(steps)
    return Profile(
        facts=dict(recording.facts),
        first_step=steps[0].number,
        last_step=steps[-1].number,
        num_steps=len(steps),
        wall_s=wall_s,
        step_s=statistics.median(step.duration_ns for step in steps) / 1e9,
        samples_per_s=samples / wall_s,
        tokens_per_s=tokens / wall_s,
        loop={name: length_ns(part) / 1e9 / wall_s for name, part in loop.parts().items()},
        kinds=kinds,
        overlap=_overlap(states, active),
        sync_share=length_ns(loop.weights) / 1e9 / wall_s,
        mfu=_mfu(recording, whole, of_wall=False),
        mfu_of_wall=_mfu(recording, whole, of_wall=True),
        median_step=middle.number,
        critical_path=critical_path(recording, middle),
        clock_error_s=max(track.error_ns for track in recording.tracks.values()) / 1e9,
        dropped_spans=sum(track.num_dropped for track in recording.tracks.values()),
    )


def _kind_profile(
    recording: Recording, kind: str, window: Intervals, states: dict[str, dict[str, Intervals]]
) -> KindProfile:
    present = {source: sum(map(length_ns, parts.values())) for source, parts in states.items()}
    total = sum(present.values()) or 1
    busy = {source: length_ns(parts.get(BUSY[kind], [])) for source, parts in states.items()}
    causes = dict.fromkeys(name for parts in states.values() for name in parts if name != BUSY[kind])
    return KindProfile(
        count=sum(1 for length in present.values() if length),
        busy=sum(busy.values()) / total,
        idle={
            cause: sum(length_ns(parts.get(cause, [])) for parts in states.values()) / total
            for cause in causes
        },
        workers={source: busy[source] / (present[source] or 1) for source in states},
        groups_at_once=_groups_at_once(recording.of_kind(kind), window) if kind == "rollout" else None,
    )


def _groups_at_once(engines: Sequence[Track], window: Intervals) -> float | None:
    drawn = [span for engine in engines for span in engine.named("generate", lane=GROUPS)]
    in_all = sum(length_ns(common(window, [(span.start_ns, span.end_ns)])) for span in drawn)
    of_any = sum(length_ns(common(window, engine.moments("generate", lane=GROUPS))) for engine in engines)
    return in_all / of_any if of_any else None


def _drawn(recording: Recording, window: Interval) -> tuple[float, float]:
    """Samples and tokens: of the groups scored meanwhile; in a stage without groups, of what was trained."""
    driver = recording.driver
    scored = [span for span in driver.named("reward", lane=GROUPS) if window[0] <= span.end_ns < window[1]]
    if scored:
        samples = len(scored) * recording.fact("grpo.group_size", 1.0)
        return samples, sum(float(span.args.get("tokens", 0)) for span in scored)
    trained = [span for span in driver.named("train") if window[0] <= span.start_ns < window[1]]
    return len(trained) * recording.fact("sft.batch_size"), sum(
        float(span.args.get("tokens", 0)) for span in trained
    )


def _overlap(states: dict[str, dict[str, dict[str, Intervals]]], active: Intervals) -> float | None:
    shares = [
        statistics.fmean(length_ns(common(active, parts.get(BUSY[kind], []))) for parts in of_kind.values())
        for kind in ("rollout", "learner")
        if (of_kind := states[kind])
    ]
    return max(shares) / length_ns(active) if len(shares) == 2 and active else None


def _mfu(recording: Recording, window: Interval, *, of_wall: bool) -> float | None:
    """Model FLOPs utilisation of the ranks; None without GPUs, or when their speed is not known."""
    flops = possible = 0.0
    for track in recording.of_kind("learner"):
        peak = peak_flops(str(track.facts.get("device", "")), str(recording.facts.get("model.dtype", "")))
        trained = [span for span in track.named("train") if window[0] <= span.start_ns < window[1]]
        if peak is None or not trained or any("flops" not in span.args for span in trained):
            return None
        flops += sum(float(span.args["flops"]) for span in trained)
        own_ns = sum(span.end_ns - span.start_ns for span in trained)
        possible += peak * (window[1] - window[0] if of_wall else own_ns) / 1e9
    return flops / possible if possible else None


def step_series(steps: Sequence[Step]) -> list[tuple[int, float]]:
    """Number and seconds of each step."""
    return [(step.number, step.duration_ns / 1e9) for step in steps]
