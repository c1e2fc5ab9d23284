"""torch's own profiler for chosen steps of learner rank 0: every operator and kernel, `profile.torch_steps`.

A step that is traced takes longer, up to several times, and its trace some megabytes.
"""

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from alphadrive.profiling.spans import span

logger = logging.getLogger(__name__)


class StepTraces:
    """Writes `step_000010.json.gz`, a Chrome trace, into `folder` for each of `steps`."""

    def __init__(self, steps: Collection[int], folder: Path) -> None:
        self._steps, self._folder = frozenset(steps), folder

    @contextmanager
    def of(self, step: int) -> Iterator[None]:
        """Trace the block where `step` is one of those chosen. A trace that cannot be written is told of in
        the log; a block that raises leaves none."""
        if step not in self._steps:
            yield
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities) as trace:
            yield
        path = self._folder / f"step_{step:06}.json.gz"
        # torch compresses what is named so.
        partial = self._folder / f".{path.name.removesuffix('.json.gz')}.tmp.json.gz"
        try:
            with span("torch_trace"):
                self._folder.mkdir(parents=True, exist_ok=True)
                trace.export_chrome_trace(str(partial))
                partial.replace(path)
        except (OSError, RuntimeError) as error:
            logger.error("%s: the trace cannot be written: %s", path, error)
        else:
            logger.info("torch's trace of step %d: %s", step, path)
