"""What a step's images and microbatches cost: waits, decodes, vision passes, over all ranks."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from alphadrive import metric_names as names
from alphadrive.profiling.spans import span
from learner.engine import TrainingEngine
from learner.images import FittedImages
from learner.policy import Policy

Item = TypeVar("Item")


class DataMeter:
    """Counts from one step to the next on this rank. `policies` are all that run a vision tower."""

    def __init__(self, images: FittedImages, policies: Sequence[Policy]) -> None:
        self.policies = list(policies)
        self._images = images
        self._wait_s = 0.0
        self._before = [0, 0, 0]

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; the time until each is there counts as waited."""
        iterator = iter(items)
        while True:
            started = time.perf_counter()
            try:
                with span("data_wait"):
                    item = next(iterator)
            except StopIteration:
                return
            finally:
                self._wait_s += time.perf_counter() - started
            yield item

    def begin_step(self) -> None:
        """Forget what was counted so far: what happened between two steps belongs to neither."""
        self._wait_s = 0.0
        self._before = self._counts()

    def metrics(self, engine: TrainingEngine, num_queries: int, seconds: float) -> dict[str, float]:
        """The step's metrics over all ranks. `num_queries` are this rank's, `seconds` the whole update's."""
        counts = [now - before for now, before in zip(self._counts(), self._before, strict=True)]
        reads, decoded, passes, queries = engine.all_reduce([*map(float, counts), float(num_queries)])
        wait_s = engine.all_reduce([self._wait_s], largest=True)[0]
        return {
            names.DATA_WAIT_S: wait_s,
            names.DATA_WAIT_SHARE: wait_s / seconds,
            names.IMAGE_CACHE_HIT_SHARE: 1.0 - decoded / reads if reads else 1.0,
            names.VISION_PASSES_PER_QUERY: passes / queries,
        }

    def _counts(self) -> list[int]:
        passes = sum(policy.num_vision_passes for policy in self.policies)
        return [self._images.num_reads, self._images.num_decoded, passes]
