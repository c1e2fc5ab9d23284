"""Recordings made by hand, times in seconds."""

from alphadrive.profiling.recording import Recording, Track
from alphadrive.profiling.spans import Span

FACTS = {
    "stage": "grpo",
    "grpo.group_size": 4,
    "grpo.groups_per_step": 1,
    "grpo.max_policy_lag": 1,
    "grpo.sync_every": 1,
    "model.dtype": "float32",
    "cores": 8,
    "gpus": 0.0,
}


def span(lane, name, start_s, end_s, **args):
    return Span(lane, name, round(start_s * 1e9), round(end_s * 1e9), args)


def recording(tracks, seen_s=(0.0, 1000.0), **facts):
    """`tracks` maps (kind, source) to spans; all were there from the first to the last of `seen_s`."""
    return Recording(
        facts=FACTS | facts,
        tracks={
            source: Track(
                kind=kind,
                source=source,
                spans=sorted(spans, key=lambda each: (each.start_ns, -each.end_ns)),
                seen_ns=[round(moment * 1e9) for moment in seen_s],
            )
            for (kind, source), spans in tracks.items()
        },
        started_ns=0,
        unix_ns=1_700_000_000_000_000_000,
    )


def learner_bound(num_steps=4):
    """Steps of 10 s: wait 1, train 8, sync 1. An engine draws two groups at once for a part of it:

    0   .4  1   2      3   3.6 4            9  9.1 9.2 9.3  9.7  10
    wait    │ train ...                     │ sync
        [ a: .4 - 3 ]                          paused
                [ b: 2 - 3.4 ]   reward 3.6 - 4
    """
    loop, groups, rank, engine, worker = [], [], [], [], []
    for step in range(num_steps):
        at, a = 10 * step, 2 * step
        loop += [
            span("loop", "wait", at, at + 1, take=step + 1),
            span("loop", "train", at + 1, at + 9, step=step + 1),
            span("loop", "sync", at + 9, at + 10, version=f"0.{step + 1}"),
        ]
        for ticket, start, end in ((a, 0.4, 3.0), (a + 1, 2.0, 3.4)):
            groups += [
                span("groups", "generate", at + start - 0.1, at + end + 0.1, ticket=ticket),
                span("groups", "reward", at + 3.6, at + 4, ticket=ticket, tokens=50),
                span("groups", "ready", at + 4, at + 11, ticket=ticket, take=step + 2),
            ]
            engine.append(span("groups", "generate", at + start, at + end, ticket=ticket))
        rank += [
            span("", "train", at + 1.5, at + 8.5, step=step + 1),
            span("", "data_wait", at + 1.5, at + 2.0),
            span("reader", "pack", at + 1.2, at + 2.0),
            span("", "forward", at + 2.0, at + 4.0),
            span("", "backward", at + 4.0, at + 8.0),
            span("", "step", at + 8.0, at + 8.4),
            span("", "export", at + 9.0, at + 9.1),
            span("", "canary", at + 9.8, at + 9.9),
        ]
        engine += [span("", "sync", at + 9.1, at + 9.7), span("", "paused", at + 9.2, at + 9.3)]
        worker.append(span("", "reward", at + 3.6, at + 4.0, groups=2))
    rank.append(span("", "checkpoint", 10 * num_steps, 10 * num_steps + 0.5))
    loop.append(span("loop", "checkpoint", 10 * num_steps, 10 * num_steps + 1))
    return recording(
        {
            ("driver", "driver"): loop + groups,
            ("learner", "rank-0"): rank,
            ("rollout", "engine-0"): engine,
            ("reward", "w0"): worker,
        }
    )
