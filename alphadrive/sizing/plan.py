"""The plan of a run: batches, memory, time, and what would fit where it does not. Pure but for reading the
model's config.json and counting the data's rows."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alphadrive.capacity import gib
from alphadrive.config import Config
from alphadrive.data.parquet import DrivingDataset
from alphadrive.sizing.architecture import Architecture, architecture_of
from alphadrive.sizing.gpus import GPUS, Gpu
from alphadrive.sizing.memory import ASSUMPTIONS as MEMORY_ASSUMPTIONS
from alphadrive.sizing.memory import Device, devices_of
from alphadrive.sizing.throughput import ASSUMPTIONS as TIME_ASSUMPTIONS
from alphadrive.sizing.throughput import Throughput, throughput_of
from alphadrive.sizing.workload import Batch, Workload, batch_of, workload_of

SCHEMA = 1
"""Of `Plan.as_json`: grows when a key changes its meaning or goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything known about a run before it starts. `problems` are what no memory could mend."""

    config: Config
    stage: str
    gpu: Gpu
    architecture: Architecture
    workload: Workload
    batch: Batch
    devices: tuple[Device, ...]
    throughput: Throughput | None
    problems: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the run can be expected to work as configured."""
        return not self.problems and all(device.fits for device in self.devices)

    @property
    def num_gpus(self) -> float:
        """GPUs that the run asks for."""
        config, engines = self.config, self.config.rollout.num_workers if self.stage == "grpo" else 0
        return (
            config.learner.num_ranks * config.learner.gpus_per_rank + engines * config.rollout.gpus_per_worker
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        learner, architecture = self.config.learner, self.architecture
        return {
            "schema": SCHEMA,
            "run": self.config.run.name,
            "stage": self.stage,
            "fits": self.fits,
            "problems": list(self.problems),
            "gpu": asdict(self.gpu) if self.num_gpus else None,
            "num_gpus": self.num_gpus,
            "model": {
                "path": self.config.model.path,
                "family": architecture.family,
                "parameters": architecture.parameters,
                "vision_parameters": architecture.vision_parameters,
                "adapter_parameters": architecture.adapter_parameters(learner),
            },
            "workload": asdict(self.workload) | {"prompt_tokens": self.workload.prompt_tokens},
            "batch": asdict(self.batch)
            | {"samples": self.batch.samples, "microbatches": list(self.batch.microbatches)},
            "devices": [_device_json(device) for device in self.devices],
            "throughput": asdict(self.throughput) if self.throughput else None,
            "assumptions": self.assumptions,
        }

    @property
    def assumptions(self) -> list[str]:
        """What the numbers rest on."""
        size = gib(self.gpu.memory_bytes)
        gpus = f"every GPU is an {self.gpu.name} with {size}; `alphadrive plan --gpu` takes {', '.join(GPUS)}"
        return [
            *((gpus, *MEMORY_ASSUMPTIONS) if self.num_gpus else ()),
            *(TIME_ASSUMPTIONS if self.throughput else ()),
        ]


def make_plan(
    config: Config,
    stage: str,
    gpu: Gpu,
    *,
    rows: int | None = None,
    text_tokens: int | None = None,
    answer_tokens: int | None = None,
) -> Plan:
    """Plan a stage (`grpo`, `sft` or `debug`); None for a length is the usual one. Raises ModelError,
    ConfigError."""
    architecture = architecture_of(config.model)
    workload = workload_of(config, architecture, rows, text_tokens, answer_tokens)
    return Plan(
        config=config,
        stage=stage,
        gpu=gpu,
        architecture=architecture,
        workload=workload,
        batch=batch_of(config, stage, workload),
        devices=devices_of(config, stage, architecture, workload, gpu),
        throughput=throughput_of(config, stage, architecture, workload, gpu),
        problems=tuple(_problems(config, stage, architecture, workload)),
    )


def rows_of(config: Config) -> int | None:
    """Rows of `data.train` that a run uses; None where the folder is not here. Raises DataError."""
    folder = Path(config.data.train)
    if not folder.is_dir():
        return config.data.num_rows
    return len(DrivingDataset(folder, config.data.num_rows))


def _problems(config: Config, stage: str, architecture: Architecture, workload: Workload) -> list[str]:
    problems = []
    limit, positions = config.rollout.max_model_len, architecture.text.max_positions
    if positions is not None and limit > positions:
        problems.append(f"rollout.max_model_len={limit} is more than the model's {positions} positions")
    prompt, size = workload.prompt_tokens, 1 if stage == "sft" else config.grpo.group_size
    if prompt + config.grpo.max_new_tokens > limit:
        problems.append(
            f"a prompt of {prompt} tokens + grpo.max_new_tokens={config.grpo.max_new_tokens} is more than "
            f"rollout.max_model_len={limit}"
        )
    group, budget = prompt + size * config.grpo.max_new_tokens, config.learner.max_tokens_per_microbatch
    if group > budget:
        problems.append(
            f"a group may have {prompt} + {size} x {config.grpo.max_new_tokens} = {group} tokens, more than "
            f"learner.max_tokens_per_microbatch={budget}, and is never split"
        )
    return problems


def _device_json(device: Device) -> dict[str, Any]:
    return {
        "label": device.label,
        "count": device.count,
        "needed_bytes": device.needed_bytes,
        "available_bytes": device.available_bytes,
        "fits": device.fits,
        "spare": device.spare,
        "parts": [
            {"label": part.label, "count": part.count, "each_bytes": part.each_bytes} for part in device.parts
        ],
    }
