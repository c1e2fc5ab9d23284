"""The options of commands that start one engine (`eval`, `predict`), and what they come to.

Loads nothing heavy: the command line is built for `--help` too.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from alphadrive.config import Config, DataConfig, EvalConfig, GrpoConfig, ModelConfig, RolloutConfig

_NVIDIA_DEVICE = Path("/dev/nvidiactl")
_SIZES = (
    ("max-pixels", ModelConfig.max_pixels, "images are scaled down to this"),
    ("max-new-tokens", GrpoConfig.max_new_tokens, "longest answer"),
    ("max-num-seqs", RolloutConfig.max_num_seqs, "answers drawn at once"),
    ("max-model-len", RolloutConfig.max_model_len, "prompt, image and answer"),
    ("kv-cache-bytes", RolloutConfig.kv_cache_bytes, "KV cache on CPU"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What an engine is started with.

    `model` may be a model folder, a hub id, `tiny`, a checkpoint or a run. `trajectory` is `data.trajectory`
    of the training: the prompt asks for one, and every row needs its waypoints.
    """

    model: str
    revision: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    max_pixels: int = ModelConfig.max_pixels
    max_new_tokens: int = GrpoConfig.max_new_tokens
    max_num_seqs: int = RolloutConfig.max_num_seqs
    max_model_len: int = RolloutConfig.max_model_len
    kv_cache_bytes: int = RolloutConfig.kv_cache_bytes
    seed: int = 0
    trajectory: bool = False

    def as_config(self, data: Path, num_rows: int | None = None) -> Config:
        """The options as the configuration that the checks before a start take."""
        return Config(
            model=ModelConfig(
                path=self.model, revision=self.revision, max_pixels=self.max_pixels, dtype=self.dtype
            ),
            data=DataConfig(eval=str(data), trajectory=self.trajectory),
            grpo=GrpoConfig(max_new_tokens=self.max_new_tokens),
            rollout=RolloutConfig(
                max_num_seqs=self.max_num_seqs,
                max_model_len=self.max_model_len,
                kv_cache_bytes=self.kv_cache_bytes,
                gpus_per_worker=float(self.device == "cuda"),
            ),
            eval=EvalConfig(num_rows=num_rows),
        )


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `engine_options` reads, all but the model."""
    parser.add_argument("--revision", metavar="COMMIT", help="the commit of a hub id")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is an NVIDIA GPU"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on cuda")
    for name, default, words in _SIZES:
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{words} (default: {default})"
        )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of everything random (default: 0)")


def engine_options(args: argparse.Namespace, model: str) -> EngineOptions:
    """The options in parsed arguments, with the device that is there."""
    device = args.device or ("cuda" if _NVIDIA_DEVICE.exists() else "cpu")
    return EngineOptions(
        model=model,
        revision=args.revision,
        device=device,
        dtype=args.dtype or ("bfloat16" if device == "cuda" else "float32"),
        max_pixels=args.max_pixels,
        max_new_tokens=args.max_new_tokens,
        max_num_seqs=args.max_num_seqs,
        max_model_len=args.max_model_len,
        kv_cache_bytes=args.kv_cache_bytes,
        seed=args.seed,
    )
