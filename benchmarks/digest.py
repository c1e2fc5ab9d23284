"""Bytes a second of the digest of weights, and of SHA-256 on one core: `python benchmarks/digest.py`."""

import hashlib
import os
import statistics
import time
from collections.abc import Callable

import numpy as np

from alphadrive.weights import WeightDigest

NUM_BYTES = 512 << 20
REPEATS = 5


def main() -> None:
    """Print the medians of repeats in turn, GB/s."""
    data = np.random.default_rng(0).integers(0, 256, NUM_BYTES, dtype=np.uint8)
    ways = {
        "one thread": lambda: hashlib.sha256(data),
        "WeightDigest": lambda: WeightDigest().add("w", "U8", data.shape, data),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(REPEATS):
        for way, work in ways.items():
            seconds[way].append(taken(work))
    for way, each in seconds.items():
        print(f"{way:12}  {NUM_BYTES / 1e9 / statistics.median(each):.2f} GB/s  ({os.cpu_count()} cores)")


def taken(work: Callable[[], object]) -> float:
    """Seconds of a call."""
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


if __name__ == "__main__":
    main()
