"""A vLLM engine inside this process, for debugging: a breakpoint anywhere in it is hit.

The same methods as `RolloutEngine`, but `generate` draws one group at a time and nothing else runs
meanwhile. There is nothing to pause; the caches are dropped at an update all the same.
"""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from alphadrive.errors import EngineDiedError, RolloutError, WeightSyncError
from alphadrive.types import DrivingQuery, RolloutGroup, WeightsFile, WeightVersion
from rollout.engine import check_received
from rollout.environment import prepare_environment
from rollout.settings import EngineSettings, Sampling

if TYPE_CHECKING:
    from vllm import LLM

    from rollout.requests import RequestMaker

logger = logging.getLogger(__name__)


class InProcessEngine:
    """A synchronous vLLM engine in this process. Make one with `start`."""

    def __init__(self, llm: "LLM", requests: "RequestMaker", version: WeightVersion) -> None:
        self.version = version
        self.engine_id = requests.engine_id
        self._llm = llm
        self._requests = requests
        self._failure: Exception | None = None

    @classmethod
    async def start(cls, settings: EngineSettings, engine_id: str) -> Self:
        """Start the engine with the weights in `settings.model_folder`. Raises as `RolloutEngine.start`."""
        prepare_environment(settings.device, in_process=True)
        settings = replace(settings, weight_transfer="file")  # the learner is in this process, too
        from vllm import LLM

        from rollout.requests import RequestMaker, engine_arguments

        requests = RequestMaker(settings, engine_id)
        llm = LLM(**engine_arguments(settings, requests.processor))
        llm.update_weight_version(str(settings.initial_version))
        logger.info("%s started in this process at version %s", engine_id, settings.initial_version)
        return cls(llm, requests, settings.initial_version)

    @property
    def tokens_generated(self) -> int:
        """Tokens of all groups this engine has returned."""
        return self._requests.tokens_generated

    async def generate(
        self, ticket: int, query: DrivingQuery, sampling: Sampling, dataset: str = "train"
    ) -> RolloutGroup:
        """Draw one group, now and in this thread. Raises as `RolloutEngine.generate`."""
        if self._failure is not None:
            raise self._failure
        from vllm.exceptions import VLLMError

        prompt = self._requests.prompt(query, dataset)
        try:
            outputs = self._llm.generate(prompt, self._requests.parameters(sampling), use_tqdm=False)
        except (VLLMError, ValueError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise RolloutError(f"{self.engine_id}: vLLM refused or failed: {reason}") from error
        return self._requests.group(ticket, query, sampling, outputs[0])

    async def update_weights(self, weights: WeightsFile) -> str:
        """Swap to `weights`; returns the digest of the tensors received. Raises as `RolloutEngine` does."""
        if self._failure is not None:
            raise self._failure
        if weights.version < self.version:
            raise WeightSyncError(
                f"{self.engine_id}: asked to go back from version {self.version} to {weights.version}"
            )
        try:
            self._transfer(weights)
        except Exception as error:
            self._failure = WeightSyncError(
                f"{self.engine_id}: update to version {weights.version} from {weights.path} failed, the "
                f"engine cannot be used any more: {type(error).__name__}: {error}"
            )
            raise self._failure from error
        self.version = weights.version
        return weights.sha256

    def _transfer(self, weights: WeightsFile) -> None:
        llm = self._llm
        llm.start_weight_update()
        llm.update_weights({"update_info": {"path": weights.path}})
        llm.finish_weight_update(str(weights.version))
        check_received(llm.collective_rpc("alphadrive_received_sha256"), weights)
        self.reset_caches()

    def reset_caches(self) -> None:
        """Drop all that was computed before: prefixes, images, vision features."""
        self._llm.reset_prefix_cache()
        self._llm.llm_engine.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()

    async def close(self) -> None:
        """Give the engine's memory back."""
        if self._failure is None:
            self._failure = EngineDiedError(f"{self.engine_id} is closed")
        self._llm.llm_engine.engine_core.shutdown()
