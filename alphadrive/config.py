"""The configuration of a run: one dataclass tree, one YAML file, dotted overrides.

Defaults live here and nowhere else; a YAML file states what differs. `load_config` reads a file
(by path, or by the name of a shipped one), applies overrides, refuses unknown keys with the nearest
valid one, and checks what spans several keys. Whether the data, the model and the machine fit the
configuration is checked by `alphadrive.preflight`.
"""

import dataclasses
import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alphadrive.atomic import write_text
from alphadrive.config_checks import check_config
from alphadrive.errors import ConfigError
from alphadrive.resources import shipped

SHIPPED_CONFIGS = shipped("configs")

_TERM_WEIGHTS = "rewards.weights"


@dataclass
class RunConfig:
    """Where a run writes. The folder is `root/name`."""

    name: str = "run"
    root: str = "runs"
    tensorboard: bool = True
    wandb_project: str | None = None


@dataclass
class ModelConfig:
    """A Hugging Face Qwen2-VL (or Qwen2.5-VL) folder, or a hub id with a revision."""

    path: str = "tiny"
    """`tiny` is the model shipped with the project."""
    revision: str | None = None
    max_pixels: int = 401408
    """Images are scaled down to at most this many pixels (the paper's value)."""
    dtype: str = "float32"
    """`float32` or `bfloat16`, for the learner's arithmetic and the engines alike."""


@dataclass
class DataConfig:
    """Folders of Parquet shards, as `alphadrive data` writes them, or `s3://`, `gs://` and `file://`
    addresses of such."""

    train: str = "data/train"
    eval: str | None = None
    num_rows: int | None = None
    """Use only the first rows of `train`."""
    sampling: str = "uniform"
    """`uniform`: every row once an epoch; `balanced`: every recorded plan equally often, for SFT and GRPO."""
    trajectory: bool = False
    """Ask for a trajectory beside the plan, and teach it; every row needs its waypoints."""


@dataclass
class SftConfig:
    """Stage 1: supervised fine-tuning on reasoning and answer."""

    steps: int = 100
    batch_size: int = 32
    """Samples an optimizer step, over all ranks."""
    learning_rate: float = 2e-5
    warmup_ratio: float = 0.1
    target: str = "teacher"
    """`teacher`: the plan the teacher decided on, where a row has one; `recorded`: plans[0]."""


@dataclass
class GrpoConfig:
    """Stage 2: group relative policy optimisation."""

    steps: int = 100
    group_size: int = 8
    """Completions a query (G)."""
    groups_per_step: int = 8
    """Queries an optimizer step, over all ranks."""
    max_policy_lag: int = 1
    """The most weight versions a trained group may be behind, plus `sync_every - 1`; 0 with
    `sync_every: 1` is synchronous."""
    sync_every: int = 1
    """Send weights to the engines every so many steps."""
    clip_low: float | None = None
    clip_high: float | None = None
    """Ratios are clipped below 1 - clip_low and above 1 + clip_high; null is the loss's own."""
    kl_coef: float = 0.0
    """Coefficient of the KL to the frozen starting policy; 0 skips its forward pass."""
    learning_rate: float = 1e-6
    warmup_steps: int = 0
    temperature: float = 1.0
    max_new_tokens: int = 256
    loss: str = "grpo"
    """`grpo`, `dr_grpo`, `dapo`, `gspo` or `cispo`; all are in docs/learner.md."""
    loss_aggregation: str | None = None
    """What counts the same: every `token`, every completion (`sequence`), or every token whatever the
    lengths in a step (`constant`); null is the loss's own."""
    clip_dual: float | None = None
    """The loss of a token is at most so many times its negative advantage; null is no bound."""
    kl_estimator: str = "k3"
    """`k1`, `k2` or `k3`."""
    epochs: int = 1
    """Times a step goes through its groups."""
    minibatches: int = 1
    """Optimizer steps an epoch: the groups of all ranks are shuffled and cut into so many parts."""
    old_policy: str = "rollout"
    """Denominator of the ratio: `rollout`, the engine that drew the tokens, or `learner`, the policy at the
    step's start."""
    importance_level: str | None = None
    """Correct for the engine's arithmetic and older weights by `token` or by completion (`sequence`), by
    one or both of the next keys; null is no correction."""
    importance_cap: float | None = None
    """With `old_policy: learner`: weights are truncated to this."""
    importance_mask: list[float] | None = None
    """[low, high]: what the learner finds so much less or more likely than the engine is left out."""

    @property
    def advantage_estimator(self) -> str:
        """How `rewards.advantage` makes advantages for the loss."""
        return "dr_grpo" if self.loss == "dr_grpo" else "grpo"


@dataclass
class AutoscaleConfig:
    """How many rollout engines a run may have while it goes on, so that the learner does not wait for
    groups; both 0: as many as it started with. See docs/operating.md."""

    min: int = 0
    max: int = 0


@dataclass
class RolloutConfig:
    """The rollout engines."""

    num_workers: int = 1
    max_num_seqs: int = 32
    """Sequences an engine decodes at once."""
    max_model_len: int = 2048
    kv_cache_bytes: int = 64 << 20
    gpu_memory_utilization: float = 0.85
    """Share of a GPU's memory an engine takes; not used on CPU."""
    gpus_per_worker: float = 0.0
    cpus_per_worker: float = 1.0
    max_restarts: int = 2
    """Restarts of one engine in a row, without a group drawn between, before it is given up; a run ends when
    none is left. An engine that works between its deaths is always restarted."""
    max_attempts: int = 2
    """Times a query may be refused, time out or come back as garbage before it is dead-lettered."""
    request_timeout_s: float = 300.0
    sync_timeout_s: float = 120.0
    canary_rows: int = 2
    """Image prompts compared with the learner after each weight sync."""
    update_mode: str = "keep"
    """New weights reach an engine between two tokens (`keep`), or when its groups have ended (`wait`)."""
    weight_transfer: str = "auto"
    """How weights reach the engines: in a `file` through /dev/shm (one machine), by `gloo` over the network
    (CPU), by `nccl` (GPUs of their own), by `ipc` (a GPU the learner is on, too). docs/weight-sync.md"""
    weight_bucket_bytes: int = 256 << 20
    """Weights sent at once; the learner and each engine hold one or two of such buckets beside the model."""
    hang_timeout_s: float = 60.0
    """An engine that draws no token for so long, with groups under way, is found hung and restarted."""
    autoscale: AutoscaleConfig = field(default_factory=AutoscaleConfig)


@dataclass
class RewardConfig:
    """The reward workers and what they pay."""

    num_workers: int = 1
    variant: str = "strict"
    """`strict`; `paper` (Algorithm 1) and `released` (the published code, quirks included) for
    reproduction; `random` (a control: a reward that knows nothing)."""
    weights: dict[str, float] = field(default_factory=dict)
    """Further terms and their weights: `trajectory`, `length`, `consistency`, `judge`, and functions of
    your own, `package.module:function` or `path/to/file.py:function`."""
    trajectory_cap_m: float = 3.0
    """Average displacement from which `trajectory` pays nothing, m."""
    length_chars: int = 400
    """Characters up to which `length` takes nothing."""
    judge_url: str | None = None
    """An OpenAI-compatible endpoint, with its `/v1`."""
    judge_model: str | None = None
    judge_api_key_env: str | None = None
    """Name of the environment variable that holds the key, on every node with reward workers."""
    judge_timeout_s: float = 10.0
    judge_retries: int = 1
    timeout_s: float = 30.0
    """A reward worker that needs longer for a group is killed."""
    max_dead_letter_share: float = 0.01
    """Share of groups that may be dead-lettered before the run ends."""


@dataclass
class LearnerConfig:
    """The DeepSpeed learner."""

    num_ranks: int = 1
    zero_stage: int = 1
    max_tokens_per_microbatch: int = 8192
    """Prompt and completion tokens computed at once on a rank, SFT's too; a group is never split."""
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    adam_beta2: float = 0.999
    freeze_vision: bool = False
    gpus_per_rank: float = 0.0
    cpus_per_rank: float = 1.0
    image_workers: int = 2
    """Threads a rank decodes and resizes images with, ahead of their use."""
    image_cache_bytes: int = 1 << 30
    """Memory a rank keeps decoded images in."""
    vision_cache_bytes: int = 256 << 20
    """Memory a rank keeps the features of a frozen vision tower in."""
    offload_optimizer: bool = False
    """Keep the optimizer's state, and make its step, in the memory of the CPU; needs `zero_stage` 1 to 3."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    lora_rank: int = 0
    """Rank of the LoRA adapters that are trained instead of the weights; 0 trains the weights."""
    lora_alpha: int = 32
    """The adapters' contribution is scaled by `lora_alpha / lora_rank`."""
    lora_targets: str = r"model\.language_model\..*_proj"
    """A regular expression for the whole names of the linear modules that get adapters."""
    max_restarts: int = 3
    """Times a lost learner restarts without a new checkpoint in between before the run ends."""
    hang_timeout_s: float = 300.0
    """A step, or another call of the learner, that takes longer is a hang, and the learner is restarted; at
    least three times the slowest step."""


@dataclass
class ClusterConfig:
    """Where on a Ray cluster the workers go, see docs/clusters.md."""

    learner_pool: str = ""
    """Labels of the nodes for the learner's ranks, `pool=learner`; several with commas; empty: any node."""
    rollout_pool: str = ""
    """The same for the rollout engines: on nodes of their own they can be taken away, and more added, while
    the learner stays."""
    reward_pool: str = ""
    """The same for the reward workers, which use no GPU."""
    wait_for_nodes_s: float = 0.0
    """Wait so long at the start for nodes that have yet to join (an autoscaler's); 0: what the nodes that are
    there cannot hold is refused at once."""


@dataclass
class EvalConfig:
    """Evaluation: greedy decoding, strict parse."""

    every_steps: int = 0
    """Evaluate on the engines every so many GRPO steps; 0 never."""
    num_rows: int | None = None
    """Rows of `data.eval` used; all when not given."""


@dataclass
class CheckpointConfig:
    """Checkpoints of a run."""

    every_steps: int = 50
    keep_last: int = 2
    keep_best: int = 1
    """Beside the last ones, keep so many that had the highest `val/planning_accuracy`; only those count that
    were evaluated at their step."""
    stop_grace_s: float = 60.0
    """Time after Ctrl-C or SIGTERM for the step under way and a checkpoint."""
    mirror: str | None = None
    """Copy each checkpoint to `ADDRESS/run.name` too (`s3://`, `gs://`, `file://`), and have `--resume` fetch
    the newest from there where the run's folder has none: for disks that go with their machine."""


@dataclass
class ProfileConfig:
    """What is recorded of where a run's time goes; see docs/profiling.md."""

    enabled: bool = False
    """Record what every worker does: `spans.jsonl` and `timeline.json` in the run's folder."""
    torch_steps: list[int] = field(default_factory=list)
    """Steps of which learner rank 0 writes a trace by torch's profiler, into `torch/` of the run's folder."""
    prometheus: bool | None = None
    """Serve the run's figures at Ray's metrics endpoints; null: where a cluster was joined, as nobody asks a
    private one."""


@dataclass
class Config:
    """A whole run."""

    seed: int = 0
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    rewards: RewardConfig = field(default_factory=RewardConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)

    @property
    def num_slots(self) -> int:
        """Groups in flight or waiting at once; bounds the policy lag by construction."""
        return (self.grpo.max_policy_lag + 1) * self.grpo.groups_per_step


def valid_keys() -> list[str]:
    """Every dotted key of the configuration, for example `grpo.group_size`."""
    return _keys(Config())


def config_file(name_or_path: str) -> Path:
    """The file a user means: a path, or the name of a shipped configuration (with or without
    `.yaml`, with or without a leading `configs/`). Raises ConfigError when there is none."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = SHIPPED_CONFIGS / f"{path.stem}.yaml"
    if shipped.is_file() and str(path.parent) in (".", "configs"):
        return shipped
    names = ", ".join(sorted(found.stem for found in SHIPPED_CONFIGS.glob("*.yaml")))
    raise ConfigError(
        f"no configuration {name_or_path!r}: expected a YAML file or one of the shipped names: {names}"
    )


def load_config(name_or_path: str, overrides: list[str] | None = None) -> Config:
    """Read a configuration file, apply `key=value` overrides, check it.

    Raises ConfigError naming the file or override, the key, and the nearest valid key.
    """
    path = config_file(name_or_path)
    try:
        loaded = OmegaConf.load(path)
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    except Exception as error:  # yaml's own errors share no base with the above
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    tree = OmegaConf.structured(Config)
    if not OmegaConf.is_dict(loaded):
        raise ConfigError(f"{path}: expected a mapping of keys at the top, got a list or a value")
    for key, value in _leaves(OmegaConf.to_container(loaded)):
        _set(tree, key, value, source=str(path))
    return _finished(tree, overrides or [])


def default_config(overrides: list[str]) -> Config:
    """The defaults with `key=value` overrides, checked. Raises as `load_config`."""
    return _finished(OmegaConf.structured(Config), overrides)


def _finished(tree: Any, overrides: list[str]) -> Config:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r}: expected key=value, for example grpo.steps=10")
        try:
            value = OmegaConf.create(f"v: {text}").v
        except Exception as error:
            raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from error
        _set(tree, key, value, source=f"override {override!r}")
    config = OmegaConf.to_object(tree)
    assert isinstance(config, Config)
    _expand_home(config)
    check_config(config)
    return config


def _expand_home(config: Config) -> None:
    """Put this user's home for a leading `~`: a shell does not, behind `run.root=`."""
    config.run.root = os.path.expanduser(config.run.root)
    config.model.path = os.path.expanduser(config.model.path)
    config.data.train = os.path.expanduser(config.data.train)
    if config.data.eval is not None:
        config.data.eval = os.path.expanduser(config.data.eval)


def save_config(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML, whole or not at all."""
    write_text(path, OmegaConf.to_yaml(OmegaConf.structured(config)))


def _keys(section: Any, prefix: str = "") -> list[str]:
    keys = []
    for leaf in dataclasses.fields(section):
        value = getattr(section, leaf.name)
        name = f"{prefix}{leaf.name}"
        keys += _keys(value, f"{name}.") if dataclasses.is_dataclass(value) else [name]
    return keys


def _leaves(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in valid_keys():
            leaves += _leaves(value, f"{key}.") if value else []
        else:
            leaves.append((key, value))
    return leaves


def _set(tree: Any, key: str, value: Any, source: str) -> None:
    keys = valid_keys()
    if key.startswith(f"{_TERM_WEIGHTS}."):  # what follows is the name of a term, dots and all
        key, value = _TERM_WEIGHTS, {key.removeprefix(f"{_TERM_WEIGHTS}."): value}
    if key not in keys:
        own = [name for name in keys if name.startswith(f"{key}.")]
        if own:
            raise ConfigError(f"{source}: {key!r} is a section; its keys are {', '.join(own)}")
        nearest = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ConfigError(f"{source}: unknown key {key!r}{hint}")
    try:
        OmegaConf.update(tree, key, value)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{source}: {key}={value!r} has the wrong type: {reason}") from error
