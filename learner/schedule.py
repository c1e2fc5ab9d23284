"""Learning rates by optimizer step (counted from 1). Pure."""

import math


def warmup_then_constant(step: int, peak: float, warmup_steps: int) -> float:
    """Rises linearly to `peak` at step `warmup_steps`, then stays.

    >>> [warmup_then_constant(step, 1.0, 2) for step in (1, 2, 3)]
    [0.5, 1.0, 1.0]
    """
    return peak * min(1.0, step / warmup_steps) if warmup_steps else peak


def warmup_then_cosine(step: int, peak: float, num_steps: int, warmup_ratio: float) -> float:
    """Rises linearly over the first `warmup_ratio` of `num_steps`, then falls along a half cosine
    that would reach 0 one step after the last; later steps stay at 0."""
    warmup_steps = round(num_steps * warmup_ratio)
    if step <= warmup_steps:
        return peak * step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / (num_steps - warmup_steps + 1))
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
