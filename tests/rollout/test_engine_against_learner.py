"""Engine and learner on the same tokens, in the dtypes both run in: they differ by rounding, and by no more.

What rounding is, the learner itself says: its log-probabilities in bfloat16 against those in float32.
"""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_qwen import add_noise, changed_model

from alphadrive.data.parquet import DrivingDataset
from alphadrive.processing import PromptProcessor
from alphadrive.types import RolloutGroup, WeightVersion
from learner.batch import build_token_batch
from learner.patches import PatchTable
from learner.policy import Policy
from learner.rows import RowReader
from rollout.in_process import InProcessEngine
from rollout.settings import EngineSettings, Sampling

pytestmark = pytest.mark.vllm

TEMPERATURE = 0.8
MAX_PIXELS = 401408


@pytest.fixture(scope="module")
def groups(tiny_model: Path, noise_dataset: Path, runner: asyncio.Runner) -> Iterator[list[RolloutGroup]]:
    """Four groups of eight, drawn by an engine that computes in bfloat16."""
    pytest.importorskip("vllm")
    settings = EngineSettings(
        model_folder=str(tiny_model), datasets={"train": str(noise_dataset)}, dtype="bfloat16"
    )
    engine = runner.run(InProcessEngine.start(settings, "engine-0"))
    dataset = DrivingDataset(noise_dataset)
    sampling = Sampling(num_samples=8, temperature=TEMPERATURE, max_new_tokens=40, seed=1)
    yield [runner.run(engine.generate(row, dataset.query(row), sampling)) for row in range(4)]
    runner.run(engine.close())


def engine_logprobs(groups: list[RolloutGroup]) -> np.ndarray:
    return np.concatenate([one.rollout_logprobs for group in groups for one in group.completions])


def learner_logprobs(model: Path, dataset: Path, groups: list[RolloutGroup], dtype: str) -> np.ndarray:
    processor = PromptProcessor(model, MAX_PIXELS)
    policy = Policy.from_folder(model, dtype, processor.vision_token_ids, TEMPERATURE)
    with closing(RowReader(dataset, processor)) as reader, torch.no_grad():
        rows = [reader.rollout_row(group) for group in groups]
        policy.patch_table = PatchTable.of(processor)
        logprobs_T, _ = policy(build_token_batch(rows, policy.prompt_positions))
    return logprobs_T.numpy()


def test_in_bfloat16_engine_and_learner_differ_by_rounding(
    groups: list[RolloutGroup], tiny_model: Path, noise_dataset: Path, tmp_path: Path
) -> None:
    drawn = engine_logprobs(groups)
    half = learner_logprobs(tiny_model, noise_dataset, groups, "bfloat16")
    rounding = np.abs(half - learner_logprobs(tiny_model, noise_dataset, groups, "float32"))
    difference = np.abs(drawn - half)
    assert len(drawn) >= 4 * 8 * 10 and rounding.mean() > 1e-3
    assert difference.mean() < 2 * rounding.mean() and difference.max() < 2 * rounding.max()

    moved = changed_model(tiny_model, tmp_path / "moved", WeightVersion(0, 1), add_noise(0.02)).folder
    other = np.abs(drawn - learner_logprobs(moved, noise_dataset, groups, "bfloat16"))
    assert other.mean() > 4 * rounding.mean()
