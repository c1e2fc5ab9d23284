"""The names that `rewards.variant` and `rewards.weights` may hold. What they pay is in `rewards`."""

import difflib
import math
import re
from collections.abc import Mapping

VARIANTS = ("strict", "paper", "released", "random")
TERMS = ("trajectory", "length", "consistency", "judge")

_FUNCTION = re.compile(r"(?:[^\W\d]\w*(?:\.[^\W\d]\w*)*|.+\.py):[^\W\d]\w*")


def is_function_name(name: str) -> bool:
    """Whether a term is a function of the user's: `package.module:function`, `path/to/file.py:function`."""
    return _FUNCTION.fullmatch(name) is not None


def weight_problems(weights: Mapping[str, float]) -> list[str]:
    """What is wrong with `rewards.weights`, one sentence each."""
    problems = []
    for name, weight in weights.items():
        if name not in TERMS and not is_function_name(name):
            nearest = difflib.get_close_matches(name, TERMS, n=1, cutoff=0.5)
            expected = f"did you mean {nearest[0]!r}?" if nearest else f"expected one of {', '.join(TERMS)}."
            problems.append(
                f"rewards.weights.{name}: no such term; {expected} A function of your own is named "
                "package.module:function or path/to/file.py:function"
            )
        elif not math.isfinite(weight):
            problems.append(f"rewards.weights.{name}={weight}: expected a finite number, 0 to leave it out")
    return problems
