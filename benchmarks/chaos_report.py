"""The figures of a soak, as JSON and as text."""

import statistics
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from chaos_recovery import Recovery

if TYPE_CHECKING:
    from chaos import Soak

SAMPLES_A_STEP = 16


def report_of(found: "Soak", plan: dict[str, Any]) -> dict[str, Any]:
    """All figures; times in seconds. `throughput_kept` is samples a second with faults over without."""
    kinds = sorted({recovery.kind for recovery in found.recoveries})
    before = _rate(found.baseline_steps, found.baseline_s)
    during = _rate(found.chaos_steps, found.chaos_s)
    return {
        "plan": plan,
        "minutes": found.chaos_s / 60,
        "faults": len(found.recoveries),
        "recovered": sum(recovery.seconds is not None for recovery in found.recoveries),
        "faults_by_kind": dict(Counter(recovery.kind for recovery in found.recoveries)),
        "recovery_s": {"all": times_of(found.recoveries)}
        | {
            kind: times_of([recovery for recovery in found.recoveries if recovery.kind == kind])
            for kind in kinds
        },
        "samples_per_s_without_faults": before,
        "samples_per_s_with_faults": during,
        "throughput_kept": during / before if before else 0.0,
        "account": asdict(found.account) if found.account is not None else None,
        "problems": found.problems,
        "each": [asdict(recovery) for recovery in found.recoveries],
    }


def times_of(recoveries: list[Recovery]) -> dict[str, float]:
    """Count, median, 95th percentile and longest time of recovery."""
    seconds = sorted(recovery.seconds for recovery in recoveries if recovery.seconds is not None)
    if not seconds:
        return {"count": 0}
    p95 = seconds[-1] if len(seconds) < 2 else statistics.quantiles(seconds, n=20, method="inclusive")[-1]
    return {"count": len(seconds), "p50": statistics.median(seconds), "p95": p95, "max": seconds[-1]}


def text_of(report: dict[str, Any]) -> str:
    """The same for people."""
    account = report["account"] or {}
    lines = [
        f"chaos: {report['minutes']:.1f} min, {report['faults']} faults, {report['recovered']} recovered; "
        f"groups lost {account.get('lost')}, repeated {account.get('repeated')}; "
        f"{len(report['problems'])} problems",
        f"{account.get('steps')} steps kept, {account.get('trained')} groups trained, "
        f"{account.get('not_on_disk')} of them not in rollouts/",
        f"{report['samples_per_s_without_faults']:.1f} samples/s without faults, "
        f"{report['samples_per_s_with_faults']:.1f} with: {report['throughput_kept']:.0%} kept",
        f"{'recovery':<20}{'faults':>7}{'p50':>9}{'p95':>9}{'max':>9}",
    ]
    for kind, times in report["recovery_s"].items():
        if times["count"]:
            figures = "".join(f"{times[name]:>7.1f} s" for name in ("p50", "p95", "max"))
            lines.append(f"{kind:<20}{times['count']:>7}{figures}")
    return "\n".join([*lines, *report["problems"]])


def _rate(steps: int, seconds: float) -> float:
    return SAMPLES_A_STEP * steps / seconds if seconds else 0.0
