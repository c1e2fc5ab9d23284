"""A profile and its verdict as text and as JSON."""

from typing import Any

from alphadrive.profiling.analysis import KindProfile, Profile
from alphadrive.profiling.states import CAUSES
from alphadrive.profiling.verdict import cores_note, verdict_of

WORDS = {
    "train": "train",
    "weights": "weight sync",
    "groups": "wait for groups",
    "reward": "wait for rewards",
    "evaluation": "evaluation",
    "checkpoint": "checkpoint",
    "other": "other",
}
"""What the train loop does, for people."""


def report_text(name: str, profile: Profile) -> str:
    """The whole report; `name` is the run's."""
    verdict = verdict_of(profile)
    lines = [
        f"{name}: steps {profile.first_step} to {profile.last_step}, {profile.wall_s:.1f} s, "
        f"{profile.step_s:.2f} s a step",
        f"  {profile.samples_per_s:.1f} samples/s, {profile.tokens_per_s:,.0f} tokens/s",
        "",
        "the train loop",
        *_loop_lines(profile),
        *_worker_lines(profile),
        "",
        f"critical path of the median step ({profile.median_step})",
        *_path_lines(profile),
        "",
        f"overlap      {_overlap(profile)}",
        f"weight sync  {profile.sync_share:.1%} of the time",
        f"MFU          {_mfu(profile)}",
        *_notes(profile),
        "",
        f"verdict: {verdict.words}",
    ]
    return "\n".join(lines)


def report_json(name: str, profile: Profile) -> dict[str, Any]:
    """The same for machines; the keys are those of `Profile`, and `verdict`."""
    verdict = verdict_of(profile)
    return {
        "run": name,
        **profile.as_json(),
        "verdict": {"bound": verdict.bound, "words": verdict.words},
    }


def _loop_lines(profile: Profile) -> list[str]:
    parts = sorted(profile.loop.items(), key=lambda part: part[1], reverse=True)
    return [f"  {WORDS[name]:<18}{share:7.1%}  {_bar(share)}" for name, share in parts]


def _bar(share: float) -> str:
    return "#" * round(40 * share)


def _worker_lines(profile: Profile) -> list[str]:
    if not profile.kinds:
        return []  # one process, as of `alphadrive debug`
    causes = [cause for cause in CAUSES if any(cause in kind.idle for kind in profile.kinds.values())]
    head = f"  {'kind':<9}{'n':>3}{'busy':>8}{'idle':>8}   of it: " + "".join(
        f"{cause:>12}" for cause in causes
    )
    title = ["", "the workers, shares of their time", head]
    return [*title, *(_kind_line(name, kind, causes) for name, kind in profile.kinds.items())]


def _kind_line(name: str, kind: KindProfile, causes: list[str]) -> str:
    shares = "".join(f"{kind.idle[cause]:>12.1%}" if cause in kind.idle else f"{'-':>12}" for cause in causes)
    groups = f"   {kind.groups_at_once:.1f} groups at once" if kind.groups_at_once else ""
    return f"  {name:<9}{kind.count:>3}{kind.busy:>8.1%}{kind.idle_share:>8.1%}   {'':<7}{shares}{groups}"


def _path_lines(profile: Profile) -> list[str]:
    whole_s = sum(segment.seconds for segment in profile.critical_path)
    return [
        f"  {segment.phase:<11}{segment.what:<33}{segment.seconds:8.3f} s {segment.seconds / whole_s:6.1%}"
        for segment in profile.critical_path
        if segment.seconds >= 0.001 * whole_s
    ]


def _overlap(profile: Profile) -> str:
    if profile.overlap is None:
        return "not known: it takes engines and a learner"
    return f"{profile.overlap:.2f} = max(rollout, learner) / wall, without evaluation and checkpoints"


def _mfu(profile: Profile) -> str:
    if profile.mfu is None or profile.mfu_of_wall is None:
        return "not known: no GPU whose peak is known"
    return f"{profile.mfu:.1%} while training, {profile.mfu_of_wall:.1%} of all the time"


def _notes(profile: Profile) -> list[str]:
    notes = []
    if profile.clock_error_s:
        notes.append(f"clocks of nodes agree to {1e3 * profile.clock_error_s:.2f} ms")
    if profile.dropped_spans:
        notes.append(f"{profile.dropped_spans} spans were dropped: shares of a few workers may be too low")
    if (cores := cores_note(profile)) is not None:
        notes.append(cores)
    return [f"note         {note}" for note in notes]
