"""Variant `random`: a control, a reward that knows nothing."""

import random


def random_terms(num_texts: int, key: str) -> list[dict[str, float]]:
    """One term `random` for each text, uniform in [0, 1); it depends on `key` and the place alone."""
    noise = random.Random(key)
    return [{"random": noise.random()} for _ in range(num_texts)]
