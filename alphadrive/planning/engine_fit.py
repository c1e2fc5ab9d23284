"""How fast an engine was, found by having a simulated one draw what it drew, when it was asked to.

So queueing in the engine, and the load it had, are taken into account: no figure of an idle engine is needed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from alphadrive.planning.engine import EngineSpeed, SimulatedEngine
from alphadrive.planning.measured import Seconds

PRIOR = 0.01
"""Weight of the guess that neither load nor prompt cost anything: what runs do not show stays as it is there,
where an engine with less to do is not faster."""
MAX_ROUNDS, ENOUGH = 40, 1e-4
SMALL = 0.02
"""Of a parameter's scale: for derivatives, and the least that a token may cost."""
FIRST_SHARES = (1.0, 0.7, 0.5, 0.3, 0.2, 0.1)
"""Guesses of what a token costs, by a group's seconds over its tokens: the rest is waiting for a seat. From a
guess that is too slow the replayed queue only grows, and no small step is seen to help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnGroups:
    """What one engine drew, in the order in which it was asked: when (s), tokens [groups, group size], how
    long it took; and when it was paused (from, to)."""

    started_s: Seconds
    tokens: NDArray[np.int64]
    generate_s: Seconds
    seats: int
    pauses: Sequence[tuple[float, float]] = ()


def replayed(speed: EngineSpeed, drawn: DrawnGroups) -> Seconds:
    """Seconds that each group would have taken on an engine of this speed."""
    engine = SimulatedEngine(speed, drawn.seats, float(drawn.started_s[0]))
    steps = (drawn.tokens + speed.prompt_tokens).tolist()
    changes: list[tuple[float, int, Callable[[float], None]]] = [
        (at_s, number, _beginning(engine, number, own))
        for number, (at_s, own) in enumerate(zip(drawn.started_s.tolist(), steps, strict=True))
    ]
    for begin_s, end_s in drawn.pauses:
        changes.append((begin_s, -1, engine.pause))
        changes.append((end_s, -1, partial(engine.resume, version=0)))
    ended_s = np.zeros(len(steps))
    for at_s, _, change in sorted(changes, key=lambda each: each[:2]):
        _draw_until(engine, at_s, ended_s)
        change(at_s)
    _draw_until(engine, float("inf"), ended_s)
    return ended_s - drawn.started_s


def _beginning(engine: SimulatedEngine, number: int, steps: list[float]) -> Callable[[float], None]:
    return lambda now_s: engine.begin(now_s, number, steps)


def _draw_until(engine: SimulatedEngine, until_s: float, ended_s: Seconds) -> None:
    while (end_s := engine.next_end_s()) is not None and end_s <= until_s:
        for number in engine.ended(end_s):
            ended_s[number] = end_s


def fitted_speed(drawn: Sequence[DrawnGroups]) -> EngineSpeed:
    """The speed whose replay comes nearest to the seconds measured, by least squares."""
    longest = np.concatenate([each.tokens.max(axis=1) for each in drawn])
    measured = np.concatenate([each.generate_s for each in drawn])
    seats = max(each.seats for each in drawn)
    token_s, prompt_tokens = float(measured.mean() / longest.mean()), float(longest.mean())
    prior = PRIOR * float(measured.mean()) * np.sqrt(len(measured))

    def speed_of(point: Seconds) -> EngineSpeed:
        """Of a point whose coordinates are of the size of 1."""
        return EngineSpeed(
            token_s=float(point[0]) * token_s,
            sequence_token_s=float(point[1]) * token_s / seats,
            prompt_tokens=float(point[2]) * prompt_tokens,
        )

    def errors(point: Seconds) -> Seconds:
        speed = speed_of(point)
        missed = [replayed(speed, each) - each.generate_s for each in drawn]
        return np.concatenate([*missed, prior * point[1:]])

    def slopes(point: Seconds) -> NDArray[np.float64]:
        now = errors(point)
        columns = [(errors(point + move) - now) / SMALL for move in SMALL * np.eye(len(point))]
        return np.stack(columns, axis=1)

    guesses = [np.array([share, SMALL, SMALL]) for share in FIRST_SHARES]
    nearest = min(guesses, key=lambda guess: float(errors(guess) @ errors(guess)))
    bounds = ([SMALL, 0.0, 0.0], np.inf)
    found = least_squares(errors, nearest, slopes, bounds, ftol=ENOUGH, max_nfev=MAX_ROUNDS)
    return speed_of(found.x)
