"""Further reward terms, chosen by `rewards.weights`: the built-in ones and the user's own functions.

Every term is a function of a query and the completions of its group that gives one finite number for
each. A term that raises, or gives anything else, is a RewardError: it never becomes a 0.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

from alphadrive.config import RewardConfig
from alphadrive.errors import RewardError
from alphadrive.secrets import redact
from alphadrive.types import Completion, DrivingQuery
from rewards.consistency import consistency_values
from rewards.judge import Judge
from rewards.length import length_values
from rewards.trajectory import trajectory_values
from rewards.user_function import load_function

GroupReward = Callable[[DrivingQuery, Sequence[Completion]], Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FurtherTerm:
    """A term of `rewards.weights`: its name there, its weight, and what computes it."""

    name: str
    weight: float
    function: GroupReward


def load_terms(config: RewardConfig, folder: Path) -> tuple[FurtherTerm, ...]:
    """The terms that a configuration asks for; those of weight 0 are left out.

    The user's functions are looked for in `folder` too, where the run was started. Raises ConfigError
    for one that cannot be imported or called, and for a judge whose key is not in the environment.
    """
    return tuple(
        FurtherTerm(name=name, weight=weight, function=_function(name, config, folder))
        for name, weight in config.weights.items()
        if weight
    )


def _function(name: str, config: RewardConfig, folder: Path) -> GroupReward:
    if name == "trajectory":
        return lambda query, completions: trajectory_values(query, completions, config.trajectory_cap_m)
    if name == "length":
        return lambda query, completions: length_values(completions, config.length_chars)
    if name == "consistency":
        return lambda query, completions: consistency_values(completions)
    if name == "judge":
        return Judge(config).values
    return load_function(name, folder)


def term_values(term: FurtherTerm, query: DrivingQuery, completions: Sequence[Completion]) -> list[float]:
    """What a term pays each completion, weighted. Raises RewardError naming query, term and reason."""
    where = f"query {query.query_id}: reward term {term.name!r}"
    try:
        values = list(term.function(query, completions))
    except RewardError as error:
        raise RewardError(f"{where}: {error}") from error
    except Exception as error:
        raise RewardError(redact(f"{where} raised {type(error).__name__}: {error}")) from error
    if len(values) != len(completions):
        raise RewardError(f"{where} gave {len(values)} values, expected {len(completions)}, one a completion")
    for index, value in enumerate(values):
        if not isinstance(value, Real) or not math.isfinite(value):
            raise RewardError(f"{where} gave {value!r} for completion {index}, expected a finite number")
    return [term.weight * float(value) + 0.0 for value in values]  # no -0.0
