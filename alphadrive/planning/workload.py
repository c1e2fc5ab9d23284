"""The groups that are simulated: lengths as they were measured, for any group size."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alphadrive.planning.measured import Measured

BLOCK = 1024


@dataclass(slots=True, kw_only=True, eq=False)
class SimulatedGroup:
    """A group on its way. `steps` are the engine's for each completion, `tokens` what the learner reads."""

    ticket: int
    steps: list[float]
    tokens: float
    is_flat: bool
    version: int = 0
    is_suspect: bool = False


def groups(measured: Measured, group_size: int, random: np.random.Generator) -> Iterator[SimulatedGroup]:
    """Groups without end, tickets from 0."""
    ticket = 0
    while True:
        tokens = resampled(measured.tokens, group_size, BLOCK, random)
        factors = random.choice(measured.spread, (BLOCK, 1))
        steps = ((tokens + measured.engine.prompt_tokens) * factors).tolist()
        sums = (tokens.sum(axis=1) + measured.prompt_tokens).tolist()
        flat = (random.random(BLOCK) < measured.flat_share).tolist()
        for own, total, is_flat in zip(steps, sums, flat, strict=True):
            yield SimulatedGroup(ticket=ticket, steps=own, tokens=total, is_flat=is_flat)
            ticket += 1


def resampled(
    tokens: NDArray[np.int64], group_size: int, num_groups: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Lengths [num_groups, group_size] from those measured [groups, their size]: of as many completions of
    one group as are wanted, or of several groups put together."""
    measured_size = tokens.shape[1]
    rows_each = -(-group_size // measured_size)
    rows = random.integers(len(tokens), size=(num_groups, rows_each))
    drawn = tokens[rows].reshape(num_groups, rows_each * measured_size)
    if drawn.shape[1] > group_size:
        drawn = random.permuted(drawn, axis=1)
    return drawn[:, :group_size]
