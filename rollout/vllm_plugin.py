"""What runs inside vLLM's own processes: the weight transfers, and a watch on the parent.

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`). It registers two
names and imports nothing heavy, so that other uses of vLLM on the same machine do not notice it.
"""

import ctypes
import functools
import logging
import multiprocessing
import os
import signal
import threading
from typing import Any

from rollout.environment import ENGINE_MARK

FILE_BACKEND, STREAM_BACKEND = "alphadrive_file", "alphadrive_stream"
WORKER_EXTENSION = "rollout.weight_transfer.ReceivedWeights"

_WATCH_NAME = "alphadrive-parent-watch"
_PR_SET_PDEATHSIG = 1
_LOUD_LOGGERS = (
    "vllm.v1.worker.cpu_worker",  # warns at every request that thread counts stay as they are
    "vllm.model_executor.model_loader.reload.layerwise",  # warns at every update of layers without weights
)


def register() -> None:
    """Make the weight transfer known to vLLM; in an engine of ours also watch the parent. Idempotent."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    engines = {FILE_BACKEND: "FileWeightTransferEngine", STREAM_BACKEND: "StreamWeightTransferEngine"}
    for backend, engine in engines.items():
        if backend not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(backend, "rollout.weight_transfer", engine)
    if ENGINE_MARK in os.environ:
        exit_with_parent()
        keep_pixels_of_cached_prefixes()
        let_cpu_discard_seeded_tokens()
        for name in _LOUD_LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)


def keep_pixels_of_cached_prefixes() -> None:
    """Let every request keep its pixels for as long as it runs.

    A completion of a group that finds the prompt in the prefix cache is handed to the worker without
    pixels (vLLM 0.32, `strip_covered_mm_data`). When a weight update clears that cache while the
    completion is drawn, its image must be encoded again, and the engine died for want of pixels.
    """
    from vllm.v1.core.sched import output

    output.strip_covered_mm_data = lambda mm_features, *args, **kwargs: mm_features


def let_cpu_discard_seeded_tokens() -> None:
    """Let an engine on CPU survive a seeded request whose prompt is computed in several parts.

    A part before the last samples a token that is thrown away; vLLM 0.32 then winds the request's random
    generator back by its offset, which generators on CPU do not have, and the engine died. There the
    generator is left where it is: the same seed gives the same tokens in the same schedule only.
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    finish = GPUModelRunner._bookkeeping_sync
    if getattr(finish, "hides_generators", False):
        return

    @functools.wraps(finish)
    def finish_without_rewinding(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.device.type != "cpu":
            return finish(self, *args, **kwargs)
        generators = self.input_batch.generators
        self.input_batch.generators = {}
        try:
            return finish(self, *args, **kwargs)
        finally:
            self.input_batch.generators = generators

    finish_without_rewinding.hides_generators = True
    GPUModelRunner._bookkeeping_sync = finish_without_rewinding


def exit_with_parent() -> None:
    """End this process when the process that spawned it is gone, however it ended.

    vLLM's worker processes watch their parent; its EngineCore process does not, and would outlive a
    killed engine actor with all its memory. The thread makes it exit; the kernel's signal ends it also when
    it is stopped.
    """
    parent = multiprocessing.parent_process()
    is_watched = any(thread.name == _WATCH_NAME for thread in threading.enumerate())
    if parent is None or is_watched:
        return

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name=_WATCH_NAME, daemon=True).start()
