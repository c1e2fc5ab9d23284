"""One vLLM engine: draws groups, takes new weights, is closed. One for each rollout actor.

    caller's process                      EngineCore process (and worker processes with more GPUs)
      RolloutEngine ── AsyncLLM ─ sockets ─▶ scheduler, model, sampler, weight transfer

Any number of `generate` calls may be waiting; vLLM batches them. `update_and_draw` freezes them between two
tokens, swaps the weights and lets them go on, behind the groups that prove the new weights; the version of
every token is in its completion. Nothing here knows Ray.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

from alphadrive.errors import (
    AlphaDriveError,
    EngineDiedError,
    RolloutError,
    TransferCutError,
    WeightSyncError,
)
from alphadrive.profiling.spans import add_span
from alphadrive.types import DrivingQuery, RolloutGroup, WeightsFile, WeightsStream, WeightVersion
from rollout.environment import prepare_environment
from rollout.settings import CANARY_TICKET, EngineSettings, Sampling, UpdateReceipt

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import RequestOutputCollector

    from rollout.requests import RequestMaker

logger = logging.getLogger(__name__)
T = TypeVar("T")

FIRST = -1
"""The priority of a request that is drawn before all others, whose priority is 0."""


class RolloutEngine:
    """A vLLM engine in processes of its own. Make one with `start`."""

    def __init__(self, llm: "AsyncLLM", requests: "RequestMaker", version: WeightVersion) -> None:
        self.version = version
        self.engine_id = requests.engine_id
        self._llm = llm
        self._requests = requests
        self._num_requests = self._num_tokens = 0
        self._is_open = True
        self._updating = asyncio.Lock()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count_tokens()

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
        arguments = AsyncEngineArgs(
            **engine_arguments(settings, requests.processor), scheduling_policy="priority"
        )

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
        """Tokens drawn since the start, counted as they come."""
        return self._num_tokens

    def _count_tokens(self) -> None:
        """Count every token that comes out of the engine's process."""
        core = self._llm.engine_core
        receive = core.get_output_async

        async def receive_and_count() -> Any:
            received = await receive()
            self._num_tokens += sum(len(output.new_token_ids) for output in received.outputs)
            return received

        core.get_output_async = receive_and_count

    async def health(self) -> int:
        """`tokens_generated`, once the engine's process has answered a question.

        Raises EngineDiedError when it is gone, and what made the engine unusable.
        """
        self._raise_failure()
        await self._call(self._llm.is_paused())
        return self.tokens_generated

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

    async def see_offer(self, stream: WeightsStream) -> None:
        """Look at weights on offer, while groups are drawn on: the engine answers and can have them.

        Raises WeightSyncError for another version than told or an older one than its own, TransferCutError
        when the learner cannot be reached, EngineDiedError when the engine's process is gone.
        """
        from rollout.weight_receiver import see_offer

        await self.health()
        self._refuse_older(stream.version)
        await asyncio.to_thread(see_offer, stream)

    async def update_weights(self, weights: WeightsFile | WeightsStream) -> str:
        """`update_and_draw` without anything to draw; returns the digest of what the engine received."""
        receipt, _ = await self.update_and_draw(weights, (), Sampling(num_samples=1))
        return receipt.sha256

    async def update_and_draw(
        self, weights: WeightsFile | WeightsStream, queries: Sequence[DrivingQuery], sampling: Sampling
    ) -> tuple[UpdateReceipt, list[RolloutGroup]]:
        """Swap to `weights` between two tokens, then draw a group for each query before anything else.

        Requests in flight are frozen and go on with the new weights; everything computed from the old ones
        (prefix, image and vision-encoder caches) is dropped. Raises WeightSyncError when anything goes wrong
        or the digest is not the learner's, EngineDiedError when the engine's process is gone. After that
        (or a cancellation midway) the engine stays paused for ever: every `generate` raises, and all that
        is left to do is `close`.
        """
        async with self._updating:
            self._raise_failure()
            self._refuse_older(weights.version)
            inputs = [await self._rendered(query) for query in queries]
            receipt, drawing = await self._transferred(weights, inputs, sampling)
            self.version = weights.version
        outputs = [await self._call(final_of(collector)) for collector in drawing]
        groups = [
            self._requests.group(CANARY_TICKET, query, sampling, output)
            for query, output in zip(queries, outputs, strict=True)
        ]
        return receipt, groups

    def _refuse_older(self, version: WeightVersion) -> None:
        if version < self.version:
            raise WeightSyncError(
                f"{self.engine_id}: asked to go back from version {self.version} to {version}"
            )

    async def _rendered(self, query: DrivingQuery) -> Any:
        """A prompt with all work done on it that can be done while the engine still draws."""
        prompt = await asyncio.to_thread(self._requests.prompt, query, "train")
        (rendered,) = await self._call(self._llm.renderer.render_cmpl_async([prompt]))
        return rendered

    async def _transferred(
        self, weights: WeightsFile | WeightsStream, inputs: Sequence[Any], sampling: Sampling
    ) -> tuple[UpdateReceipt, list["RequestOutputCollector"]]:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return await self._transfer(weights, inputs, sampling)
        except BaseException as error:
            kind: type[AlphaDriveError] = WeightSyncError
            if isinstance(error, EngineDeadError):
                kind = EngineDiedError
            elif TransferCutError.MARK in str(error):
                kind = TransferCutError
            failure = kind(
                f"{self.engine_id}: update to version {weights.version} from {source_of(weights)} failed, "
                f"the engine cannot be used any more: {type(error).__name__}: {error}"
            )
            self._fail(failure)
            if isinstance(error, Exception):
                raise failure from error
            raise

    async def _transfer(
        self, weights: WeightsFile | WeightsStream, inputs: Sequence[Any], sampling: Sampling
    ) -> tuple[UpdateReceipt, list["RequestOutputCollector"]]:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        llm = self._llm
        paused_s = time.monotonic()
        # As `llm.pause_generation`, which then sleeps 20 ms to no end here: tokens carry their version.
        await llm.renderer.clear_mm_cache_async()
        await llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=True)
        await llm.start_weight_update()
        await llm.update_weights(WeightTransferUpdateRequest(update_info=update_info(weights)))
        await llm.finish_weight_update(str(weights.version))
        received = await llm.collective_rpc("alphadrive_received_sha256")
        sha256 = check_received(received, weights)
        parameters = self._requests.parameters(sampling)
        drawing = []
        for index, rendered in enumerate(inputs):
            request_id = f"{self.engine_id}-canary-{weights.version}-{index}"
            drawing.append(await llm.add_request(request_id, rendered, parameters, priority=FIRST))
        await llm.resume_generation()
        add_span("paused", paused_s)
        return UpdateReceipt(sha256=sha256, paused_s=time.monotonic() - paused_s), drawing

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
            reason = f"{type(error).__name__}: {error}"
            raise RolloutError(f"{self.engine_id}: vLLM refused or failed: {reason}") from error
        finally:
            task.cancel()


async def final_of(collector: "RequestOutputCollector") -> Any:
    """The output of a request that has ended."""
    while not (output := await collector.get()).finished:
        pass
    return output


def check_received(received: list[str], weights: WeightsFile | WeightsStream) -> str:
    """The digest of what every worker received: that of the file; of a stream, which told its own at its
    end, the same for all. Raises WeightSyncError where it is another one."""
    expected = weights.sha256 if isinstance(weights, WeightsFile) else received[0]
    if set(received) != {expected}:
        raise WeightSyncError(
            f"version {weights.version}: the engine's workers received {received}, expected "
            f"{expected} from each"
        )
    return expected


def source_of(weights: WeightsFile | WeightsStream) -> str:
    """Where weights come from, in words."""
    if isinstance(weights, WeightsFile):
        return weights.path
    offer = weights.offer
    return f"the learner at {offer.host}:{offer.port} by {offer.kind}"


def update_info(weights: WeightsFile | WeightsStream) -> dict[str, Any]:
    """Where weights come from, as vLLM carries it to its workers."""
    if isinstance(weights, WeightsFile):
        return {"path": weights.path}
    from rollout.weight_receiver import StreamInfo

    return StreamInfo.of(weights)
