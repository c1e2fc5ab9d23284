"""One vLLM engine: draws groups, takes new weights, is closed. One for each rollout actor.

    caller's process                      EngineCore process (and worker processes with more GPUs)
      RolloutEngine ── AsyncLLM ─ sockets ─▶ scheduler, model, sampler, weight transfer

Any number of `generate` calls may be waiting; vLLM batches them. `update_weights` freezes them between two
tokens, swaps the weights and lets them go on; the version of every token is in its completion.
Nothing here knows Ray.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Self, TypeVar

from alphadrive.errors import AlphaDriveError, EngineDiedError, RolloutError, WeightSyncError
from alphadrive.types import DrivingQuery, RolloutGroup, WeightsFile, WeightVersion
from rollout.environment import prepare_environment
from rollout.settings import EngineSettings, Sampling

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

    from rollout.requests import RequestMaker

logger = logging.getLogger(__name__)
T = TypeVar("T")


class RolloutEngine:
    """A vLLM engine in processes of its own. Make one with `start`."""

    def __init__(self, llm: "AsyncLLM", requests: "RequestMaker", version: WeightVersion) -> None:
        self.version = version
        self.engine_id = requests.engine_id
        self._llm = llm
        self._requests = requests
        self._num_requests = 0
        self._is_open = True
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def start(cls, settings: EngineSettings, engine_id: str) -> Self:
        """Start the engine with the weights in `settings.model_folder`, called `settings.initial_version`.

        Raises ConfigError for an environment that makes an engine unsafe, ModelError for a model that
        cannot be used, EngineDiedError if the engine's process does not come up.
        """
        prepare_environment(settings.device)
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from rollout.requests import RequestMaker, engine_arguments

        requests = RequestMaker(settings, engine_id)
        arguments = AsyncEngineArgs(**engine_arguments(settings, requests.processor))

        class Llm(AsyncLLM):
            """vLLM's engine without its finaliser, which fails when the interpreter is going down; `close`
            shuts the engine down."""

            def __del__(self) -> None:
                pass

        try:
            llm = Llm.from_engine_args(arguments)
        except RuntimeError as error:
            raise EngineDiedError(f"{engine_id}: the engine's process did not start: {error}") from error
        engine = cls(llm, requests, settings.initial_version)
        await engine._call(llm.update_weight_version(str(settings.initial_version)))
        logger.info("%s started on %s at version %s", engine_id, settings.device, settings.initial_version)
        return engine

    @property
    def tokens_generated(self) -> int:
        """Tokens of all groups this engine has returned."""
        return self._requests.tokens_generated

    async def generate(
        self, ticket: int, query: DrivingQuery, sampling: Sampling, dataset: str = "train"
    ) -> RolloutGroup:
        """Draw one group: one request for all its completions.

        Raises DataError for a bad row, RolloutError if the request fails, EngineDiedError if the engine's
        process is gone, WeightSyncError if a weight update failed before or while it was drawn.
        """
        self._raise_failure()
        prompt = await asyncio.to_thread(self._requests.prompt, query, dataset)
        self._num_requests += 1
        request_id = f"{self.engine_id}-{ticket}-{self._num_requests}"
        output = await self._call(self._final_output(prompt, sampling, request_id))
        return self._requests.group(ticket, query, sampling, output)

    async def _final_output(self, prompt: Any, sampling: Sampling, request_id: str) -> Any:
        final = None
        async for output in self._llm.generate(prompt, self._requests.parameters(sampling), request_id):
            final = output
        return final

    async def update_weights(self, weights: WeightsFile) -> str:
        """Swap to `weights` between two tokens; returns the digest of the tensors the engine received.

        Requests in flight are frozen and go on with the new weights; everything computed from the old ones
        (prefix, image and vision-encoder caches) is dropped. Raises WeightSyncError when anything goes wrong
        or the digest is not `weights.sha256`, EngineDiedError when the engine's process is gone. After that
        (or a cancellation midway) the engine stays paused for ever: every `generate` raises, and all that
        is left to do is `close`.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        self._raise_failure()
        if weights.version < self.version:
            raise WeightSyncError(
                f"{self.engine_id}: asked to go back from version {self.version} to {weights.version}"
            )
        try:
            received = await self._transfer(weights)
        except BaseException as error:
            kind = EngineDiedError if isinstance(error, EngineDeadError) else WeightSyncError
            failure = kind(
                f"{self.engine_id}: update to version {weights.version} from {weights.path} failed, the "
                f"engine cannot be used any more: {type(error).__name__}: {error}"
            )
            self._fail(failure)
            if isinstance(error, Exception):
                raise failure from error
            raise
        self.version = weights.version
        return received

    async def _transfer(self, weights: WeightsFile) -> str:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        llm = self._llm
        await llm.pause_generation(mode="keep", clear_cache=True)
        await llm.start_weight_update()
        await llm.update_weights(WeightTransferUpdateRequest(update_info={"path": weights.path}))
        await llm.finish_weight_update(str(weights.version))
        received = await llm.collective_rpc("alphadrive_received_sha256")
        check_received(received, weights)
        await llm.resume_generation()
        return weights.sha256

    async def close(self) -> None:
        """Stop the engine and its processes; requests in flight end with EngineDiedError. May be repeated."""
        self._fail(EngineDiedError(f"{self.engine_id} is closed"))
        if self._is_open:
            self._is_open = False
            self._llm.shutdown()
            del self._llm

    def _fail(self, failure: AlphaDriveError) -> None:
        if not self._failure.done():
            self._failure.set_exception(failure)
            self._failure.exception()

    def _raise_failure(self) -> None:
        if self._failure.done():
            self._failure.result()

    async def _call(self, call: Coroutine[Any, Any, T]) -> T:
        """Await vLLM, but no longer than the engine is usable; its errors as ours."""
        from vllm.exceptions import VLLMError
        from vllm.v1.engine.exceptions import EngineDeadError

        task = asyncio.ensure_future(call)
        waited: set[asyncio.Future[Any]] = {task, self._failure}
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self._raise_failure()
            return task.result()
        except EngineDeadError as error:
            raise EngineDiedError(f"{self.engine_id}: the engine's process is gone: {error}") from error
        except (VLLMError, ValueError, RuntimeError) as error:
            raise RolloutError(f"{self.engine_id}: vLLM refused or failed: {error}") from error
        finally:
            task.cancel()


def check_received(received: list[str], weights: WeightsFile) -> None:
    """Raise WeightSyncError unless every worker received exactly `weights`."""
    if set(received) != {weights.sha256}:
        raise WeightSyncError(
            f"version {weights.version}: the engine's workers received {received}, expected "
            f"{weights.sha256} from each"
        )
