"""Between our values and vLLM's: engine arguments, prompts, sampling parameters, completions.

Shared by the two engines that run vLLM. The prompt goes in as token ids with one image placeholder
and the fitted image; what comes out holds token ids, the sampler's own log-probabilities and the
weight version of every token.
"""

from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.config import WeightTransferConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.inputs import TokensPrompt
from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from alphadrive.data.fetching import local_folder
from alphadrive.data.parquet import DrivingDataset
from alphadrive.errors import ModelError, RolloutError
from alphadrive.processing import PromptProcessor
from alphadrive.types import Completion, DrivingQuery, RolloutGroup, VersionSpan, WeightVersion
from rollout import vision_mask, vllm_plugin
from rollout.settings import EngineSettings, Sampling

BLOCK_SIZE = 32


def engine_arguments(settings: EngineSettings, processor: PromptProcessor) -> dict[str, Any]:
    """vLLM's engine arguments for `settings`, the same for a synchronous and an asynchronous engine.

    Log-probabilities are those after temperature and mask, of the distribution tokens are drawn from.
    Images are not cached by the engine's front: each is used by one request, and a cleared
    cache on one side only would make requests fail.
    """
    takes_files = settings.weight_transfer == "file"
    backend = vllm_plugin.FILE_BACKEND if takes_files else vllm_plugin.STREAM_BACKEND
    arguments: dict[str, Any] = dict(
        model=settings.model_folder,
        tokenizer=settings.model_folder,
        dtype=settings.dtype,
        seed=settings.seed,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        generation_config="vllm",
        logprobs_mode="processed_logprobs",
        enable_prefix_caching=True,
        limit_mm_per_prompt={"image": 1, "video": 0},
        mm_processor_cache_gb=0,
        logits_processors=[vision_mask.QUALIFIED_NAME],
        additional_config={vision_mask.CONFIG_KEY: list(processor.vision_token_ids)},
        weight_transfer_config=WeightTransferConfig(backend=backend),
        worker_extension_cls=vllm_plugin.WORKER_EXTENSION,
        disable_log_stats=True,
        use_tqdm_on_load=False,
    )
    if settings.device == "cpu":
        arguments |= dict(
            enforce_eager=True, block_size=BLOCK_SIZE, kv_cache_memory_bytes=settings.kv_cache_bytes
        )
    else:
        arguments |= dict(gpu_memory_utilization=settings.gpu_memory_utilization)
    unknown = arguments.keys() - EngineArgs.__dataclass_fields__.keys()
    if unknown:
        raise ModelError(f"this vLLM does not know the engine arguments {sorted(unknown)}; install 0.32")
    return arguments


class RequestMaker:
    """Makes vLLM's requests from queries, and groups from vLLM's outputs. Opens datasets itself."""

    def __init__(self, settings: EngineSettings, engine_id: str) -> None:
        self.processor = PromptProcessor(
            Path(settings.model_folder), settings.max_pixels, settings.with_trajectory
        )
        self.engine_id = engine_id
        self.tokens_generated = 0
        self._folders = {name: local_folder(place) for name, place in settings.datasets.items()}
        self._datasets: dict[str, DrivingDataset] = {}

    def dataset(self, name: str) -> DrivingDataset:
        """The dataset called `name` in the settings. Raises RolloutError for an unknown name."""
        if name not in self._datasets:
            if name not in self._folders:
                raise RolloutError(f"dataset {name!r}: expected one of {sorted(self._folders)}")
            self._datasets[name] = DrivingDataset(self._folders[name])
        return self._datasets[name]

    def prompt(self, query: DrivingQuery, dataset: str) -> TokensPrompt:
        """The prompt of one query: token ids and the fitted image. Raises DataError on a bad image."""
        image = self.processor.fit(self.dataset(dataset).image(query.row))
        return TokensPrompt(
            prompt_token_ids=self.processor.prompt_ids(query), multi_modal_data={"image": image}
        )

    def parameters(self, sampling: Sampling) -> SamplingParams:
        """vLLM's sampling parameters: plain sampling from all unmasked tokens; the text is decoded by us."""
        return SamplingParams(
            n=sampling.num_samples,
            temperature=sampling.temperature,
            top_p=1.0,
            top_k=0,
            seed=sampling.seed,
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=[self.processor.end_token_id],
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def group(
        self, ticket: int, query: DrivingQuery, sampling: Sampling, output: RequestOutput
    ) -> RolloutGroup:
        """The group in a finished output. Raises RolloutError if it is not whole."""
        if len(output.outputs) != sampling.num_samples or not output.prompt_token_ids:
            raise RolloutError(
                f"{self.engine_id}: query {query.query_id}: got {len(output.outputs)} completions, "
                f"expected {sampling.num_samples}"
            )
        completions = tuple(self._completion(query, one) for one in output.outputs)
        self.tokens_generated += sum(len(completion.token_ids) for completion in completions)
        return RolloutGroup(
            ticket=ticket,
            query=query,
            prompt_token_ids=tuple(output.prompt_token_ids),
            completions=completions,
            engine_id=self.engine_id,
        )

    def _completion(self, query: DrivingQuery, output: CompletionOutput) -> Completion:
        token_ids = tuple(output.token_ids)
        logprobs = tuple(output.logprobs.logprobs) if isinstance(output.logprobs, FlatLogprobs) else ()
        if output.finish_reason not in ("stop", "length") or not token_ids or len(logprobs) != len(token_ids):
            raise RolloutError(
                f"{self.engine_id}: query {query.query_id}: a completion of {len(token_ids)} tokens with "
                f"{len(logprobs)} log-probabilities ended with {output.finish_reason!r}; expected a "
                "log-probability a token and an end by 'stop' or 'length'"
            )
        ends = token_ids[-1] == self.processor.end_token_id
        text = self.processor.tokenizer.decode(token_ids[:-1] if ends else token_ids)
        spans = tuple(
            VersionSpan(version=WeightVersion.parse(span.version), start=span.start, end=span.end)
            for span in output.weight_versions or ()
        )
        return Completion(
            text=text,
            token_ids=token_ids,
            rollout_logprobs=logprobs,
            finish_reason=output.finish_reason,
            weight_versions=spans,
        )
