"""What an engine is started with, what it is asked for, what it tells: plain values that pickle."""

from dataclasses import dataclass, field

from alphadrive.config import Config
from alphadrive.data.fetching import place_for_others
from alphadrive.types import WeightVersion

CANARY_TICKET = -2
"""The ticket of the groups that prove an engine's weights."""
_FIRST_VERSION = WeightVersion(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Everything one engine needs to start.

    `datasets` names the folders or addresses an engine may be asked about (`train`, `eval`); it opens them
    itself.
    `kv_cache_bytes` sizes the KV cache on CPU, `gpu_memory_utilization` (a share of the GPU's memory) on
    `cuda`. `seed` starts the stream of unseeded requests: give every engine its own. `with_trajectory` is
    `data.trajectory`. `weight_transfer` is how weights come: in a `file`, or by `gloo`, `nccl`, `ipc`.
    """

    model_folder: str
    datasets: dict[str, str] = field(default_factory=dict)
    device: str = "cpu"
    dtype: str = "float32"
    max_pixels: int = 401408
    max_num_seqs: int = 32
    max_model_len: int = 2048
    kv_cache_bytes: int = 64 << 20
    gpu_memory_utilization: float = 0.85
    seed: int = 0
    initial_version: WeightVersion = _FIRST_VERSION
    with_trajectory: bool = False
    weight_transfer: str = "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to draw the completions of one request.

    `temperature` 0 is greedy decoding and needs `num_samples` 1; 2 is the most vLLM takes. With a `seed`,
    completion i draws from the stream `seed + i`; without one, from the engine's own stream.
    """

    num_samples: int
    temperature: float = 1.0
    max_new_tokens: int = 256
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.max_new_tokens < 1 or not 0 <= self.temperature <= 2:
            raise ValueError(
                f"{self}: expected num_samples >= 1, max_new_tokens >= 1 and a temperature of 0 to 2"
            )
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                f"num_samples={self.num_samples} at temperature 0: greedy completions are all the same; use 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReceipt:
    """What an engine tells of a weight update: the digest of the tensors it received, and how long it was
    paused for it."""

    sha256: str
    paused_s: float


def engine_settings(
    config: Config, model_folder: str, *, engine_index: int = 0, attempt: int = 0
) -> EngineSettings:
    """The settings of engine number `engine_index` of a run; `model_folder` is the resolved model. Raises
    DataError when data at an address cannot be had."""
    datasets = {"train": place_for_others(config.data.train)}
    if config.data.eval is not None:
        datasets["eval"] = place_for_others(config.data.eval)
    return EngineSettings(
        model_folder=model_folder,
        datasets=datasets,
        device="cuda" if config.rollout.gpus_per_worker > 0 else "cpu",
        dtype=config.model.dtype,
        max_pixels=config.model.max_pixels,
        max_num_seqs=config.rollout.max_num_seqs,
        max_model_len=config.rollout.max_model_len,
        kv_cache_bytes=config.rollout.kv_cache_bytes,
        gpu_memory_utilization=config.rollout.gpu_memory_utilization,
        seed=config.seed * 1000 + engine_index,
        initial_version=WeightVersion(attempt, 0),
        with_trajectory=config.data.trajectory,
        weight_transfer="file"
        if config.rollout.weight_transfer == "auto"
        else config.rollout.weight_transfer,
    )


def group_sampling(config: Config, seed: int | None = None) -> Sampling:
    """How a training group is drawn."""
    return Sampling(
        num_samples=config.grpo.group_size,
        temperature=config.grpo.temperature,
        max_new_tokens=config.grpo.max_new_tokens,
        seed=seed,
    )


def greedy_sampling(config: Config) -> Sampling:
    """How an answer is drawn for evaluation."""
    return Sampling(num_samples=1, temperature=0.0, max_new_tokens=config.grpo.max_new_tokens)
