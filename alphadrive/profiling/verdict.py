"""What limits a run, and what to do about it, in words.

The busier of engines, reward workers and learner limits the run when it is busy most of the time; otherwise
what they wait for does: the weight sync, each other's turns, checkpoints, evaluations.
"""

import math
from dataclasses import dataclass

from alphadrive.profiling.analysis import KindProfile, Profile

MOSTLY = 0.75
"""A kind that is busy for less than this does not limit the run."""
NEARLY = 0.05
"""Two kinds whose busy shares differ by less are balanced."""
ROOM = 0.95
"""How busy the workers are to be that a smaller number of them would leave."""

_NAMES = {"rollout": "rollout engines", "learner": "the learner", "reward": "reward workers"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`bound` is one of `learner`, `rollout`, `reward`, `balanced`, `sync`, `turns`, `checkpoint`,
    `evaluation`, `learner-only`, `unclear`; `words` say it with the reason and the remedy."""

    bound: str
    words: str


def verdict_of(profile: Profile) -> Verdict:
    """Judge a profile."""
    kinds, loop = profile.kinds, profile.loop
    if "rollout" not in kinds or "learner" not in kinds:
        return _of_one_part(profile)
    if (overhead := _overhead(profile)) is not None:
        return overhead
    # The driver's calls count as the learner's work: only the learner can do anything about them.
    busy = {kind: kinds[kind].busy for kind in kinds} | {"learner": loop.get("train", 0.0)}
    ranked = sorted(busy, key=lambda kind: busy[kind], reverse=True)
    first, second = ranked[0], ranked[1]
    if busy[first] >= MOSTLY:
        if busy[first] - busy[second] < NEARLY and busy[second] >= 1 - 3 * NEARLY:
            words = f"{_NAMES[first]} busy {busy[first]:.0%}, {_NAMES[second]} {busy[second]:.0%}"
            return Verdict(bound="balanced", words=f"balanced: {words}; more of both, or leave it")
        return {"learner": _learner_bound, "rollout": _rollout_bound, "reward": _reward_bound}[first](profile)
    waits = {
        "sync": loop.get("weights", 0.0),
        "reward": loop.get("reward", 0.0),
        "turns": loop.get("groups", 0.0),
    }
    largest = max(waits, key=lambda name: waits[name])
    if largest == "sync" and waits["sync"] >= NEARLY:
        return _sync_bound(profile)
    if largest == "reward" and waits["reward"] >= NEARLY:
        return _reward_bound(profile)
    if _is_synchronous(profile) and waits["turns"] >= NEARLY:
        words = (
            f"engines and learner take turns: engines idle {kinds['rollout'].idle_share:.0%}, the learner "
            f"{kinds['learner'].idle_share:.0%}; grpo.max_policy_lag=1 lets them work at once"
        )
        return Verdict(bound="turns", words=words)
    if waits["turns"] >= NEARLY:
        return _rollout_bound(profile)
    busiest = ", ".join(f"{_NAMES[kind]} busy {busy[kind]:.0%}" for kind in ranked)
    return Verdict(bound="unclear", words=f"unclear: {busiest}; look at the timeline")


def _is_synchronous(profile: Profile) -> bool:
    return profile.facts.get("grpo.max_policy_lag") == 0 and profile.facts.get("grpo.sync_every") == 1


def _of_one_part(profile: Profile) -> Verdict:
    parts = sorted(profile.loop.items(), key=lambda part: part[1], reverse=True)
    shares = ", ".join(f"{name} {share:.0%}" for name, share in parts)
    name = "learner-only" if "learner" in profile.kinds else "unclear"
    return Verdict(bound=name, words=f"one part works at a time here; the time goes to: {shares}")


def _overhead(profile: Profile) -> Verdict | None:
    """Where checkpoints or evaluations take more than anything else."""
    name = max(profile.loop, key=lambda part: profile.loop[part])
    share = profile.loop[name]
    if name == "checkpoint":
        words = f"checkpoint-bound: checkpoints take {share:.0%} of the time; raise checkpoint.every_steps"
    elif name == "evaluation":
        words = (
            f"evaluation-bound: evaluations take {share:.0%} of the time; raise eval.every_steps or lower "
            "eval.num_rows"
        )
    else:
        return None
    return Verdict(bound=name, words=words)


def _learner_bound(profile: Profile) -> Verdict:
    engines = profile.kinds["rollout"]
    needed = max(1, math.ceil(engines.count * engines.busy / ROOM))
    remedy = "add learner ranks"
    if needed < engines.count:
        remedy = f"drop to {needed} rollout worker{'s' if needed > 1 else ''} or add learner ranks"
    return Verdict(
        bound="learner",
        words=f"learner-bound: rollout engines idle {engines.idle_share:.0%}{_why(engines)}; {remedy}",
    )


def _rollout_bound(profile: Profile) -> Verdict:
    learner, engines = profile.kinds["learner"], profile.kinds["rollout"]
    waits = learner.idle.get("groups", 0.0)
    needed = max(engines.count + 1, math.ceil(engines.count / max(0.1, 1 - waits)))
    remedy = f"raise rollout.num_workers from {engines.count} to {needed}"
    if _is_synchronous(profile):
        remedy = f"set grpo.max_policy_lag=1, or {remedy}"
    return Verdict(
        bound="rollout",
        words=f"rollout-bound: the learner idle {learner.idle_share:.0%}{_why(learner)}; {remedy}",
    )


def _reward_bound(profile: Profile) -> Verdict:
    workers, learner = profile.kinds.get("reward"), profile.kinds["learner"]
    waits = learner.idle.get("reward", 0.0)
    if workers is None:
        return Verdict(bound="reward", words=f"reward-bound: the learner waits {waits:.0%} for rewards")
    needed = max(workers.count + 1, math.ceil(workers.count / max(0.1, 1 - waits)))
    return Verdict(
        bound="reward",
        words=(
            f"reward-bound: reward workers busy {workers.busy:.0%}, the learner waits {waits:.0%} for "
            f"rewards; raise rewards.num_workers from {workers.count} to {needed}, or make the reward quicker"
        ),
    )


def _sync_bound(profile: Profile) -> Verdict:
    return Verdict(
        bound="sync",
        words=(
            f"sync-bound: weight sync takes {profile.sync_share:.0%} of the time; raise grpo.sync_every or "
            "grpo.groups_per_step, so that it comes less often"
        ),
    )


def _why(kind: KindProfile) -> str:
    """The causes that count, in brackets."""
    causes = sorted(kind.idle.items(), key=lambda cause: cause[1], reverse=True)
    told = [f"{name} {share:.0%}" for name, share in causes if share >= 0.01][:3]
    return f" ({', '.join(told)})" if told else ""


def cores_note(profile: Profile) -> str | None:
    """What must be known of a machine without GPUs; None with them."""
    cores = int(profile.facts.get("cores", 0))
    if profile.facts.get("gpus") or not cores or "rollout" not in profile.kinds:
        return None
    num_workers = profile.kinds["rollout"].count + profile.kinds["learner"].count
    if num_workers < cores:
        return None
    return (
        f"{num_workers} engines and learner ranks share {cores} cores: busy includes waiting for a core, and "
        "more workers make each slower"
    )
