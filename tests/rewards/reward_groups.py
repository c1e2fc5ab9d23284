"""Groups of completions made from texts, and their terms as tuples."""

from alphadrive.types import Completion, DrivingQuery, RolloutGroup, VersionSpan, WeightVersion

SPAN = VersionSpan(version=WeightVersion(0, 0), start=0, end=1)


def answer(plan, thought="the road is clear"):
    return f"<think> {thought} </think> <answer> {plan} </answer>"


def completions_of(texts):
    return tuple(
        Completion(
            text=text, token_ids=(1,), rollout_logprobs=(-0.5,), finish_reason="stop", weight_versions=(SPAN,)
        )
        for text in texts
    )


def query_of(plans=("ACCELERATE, STRAIGHT",), query_id="q0", **more):
    values = {"row": 0, "speed_mps": 5.0, "navigation": "go straight"} | more
    return DrivingQuery(query_id=query_id, plans=tuple(plans), **values)


def group_of(texts, plans=("ACCELERATE, STRAIGHT",), ticket=0, query_id="q0"):
    return RolloutGroup(
        ticket=ticket,
        query=query_of(plans, query_id),
        prompt_token_ids=(1, 2),
        completions=completions_of(texts),
        engine_id="e0",
    )


def terms(scored):
    return [
        tuple(round(reward.terms[name], 6) for name in ("speed", "path", "format"))
        for reward in scored.rewards
    ]
