"""The engine against transformers: log-probabilities, sampling, the vision mask, and proof of weight updates.

One in-process engine for the whole file; every test that updates it goes on from the one before. The
sabotages at the end break one step of an update each, and must be noticed.
"""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_qwen import (
    ModelVersion,
    add_noise,
    changed_model,
    largest_difference,
    reference_logits,
    reference_logprobs,
)

from alphadrive.data.parquet import DrivingDataset
from alphadrive.errors import RolloutError, WeightSyncError
from alphadrive.types import RolloutGroup, VersionSpan, WeightVersion
from rollout.in_process import InProcessEngine
from rollout.settings import EngineSettings, Sampling

pytestmark = pytest.mark.vllm

TOLERANCE = 1e-3
Publish = Callable[..., ModelVersion]


@pytest.fixture(scope="module")
def engine(tiny_model: Path, noise_dataset: Path, runner: asyncio.Runner) -> Iterator[InProcessEngine]:
    pytest.importorskip("vllm")
    settings = EngineSettings(
        model_folder=str(tiny_model),
        datasets={"train": str(noise_dataset)},
        initial_version=WeightVersion(1, 0),
    )
    engine = runner.run(InProcessEngine.start(settings, "engine-0"))
    yield engine
    runner.run(engine.close())


@pytest.fixture(scope="module")
def draw(engine: InProcessEngine, noise_dataset: Path, runner: asyncio.Runner) -> Callable[..., RolloutGroup]:
    dataset = DrivingDataset(noise_dataset)

    def draw(row: int = 0, **sampling: Any) -> RolloutGroup:
        asked = Sampling(**{"num_samples": 4, "max_new_tokens": 12, "seed": 5} | sampling)
        return runner.run(engine.generate(9, dataset.query(row), asked))

    return draw


@pytest.fixture(scope="module")
def publish(engine: InProcessEngine, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Publish:
    """Make the next version: the base model changed, not yet sent to the engine."""

    def publish(change: Callable[[dict[str, Any]], None]) -> ModelVersion:
        version = WeightVersion(engine.version.attempt, engine.version.step + 1)
        folder = tmp_path_factory.mktemp("version") / "model"
        return changed_model(tiny_model, folder, version, change)

    return publish


@pytest.fixture
def repaired(engine: InProcessEngine, publish: Publish, runner: asyncio.Runner) -> Iterator[None]:
    """Puts good weights back after a test that left the engine refusing to work."""
    yield
    engine._failure = None
    runner.run(engine.update_weights(publish(add_noise(0.0)).weights))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_transformers(
    draw: Callable[..., RolloutGroup], tiny_model: Path, noise_dataset: Path, temperature: float
) -> None:
    group = draw(temperature=temperature, max_new_tokens=30)
    expected = reference_logprobs(tiny_model, noise_dataset, group, temperature)
    assert largest_difference(group, expected) < TOLERANCE
    other = reference_logprobs(tiny_model, noise_dataset, group, 2.0)
    assert largest_difference(group, other) > 100 * TOLERANCE


def test_a_group_is_whole_and_knows_its_version(
    engine: InProcessEngine, draw: Callable[..., RolloutGroup], noise_dataset: Path
) -> None:
    before = engine.tokens_generated
    group = draw(2)
    processor = engine._requests.processor
    image = DrivingDataset(noise_dataset).image(2)
    _, grid = processor.pixels(processor.fit(image))
    expanded = processor.expanded_ids(processor.prompt_ids(group.query), grid)
    assert list(group.prompt_token_ids) == expanded
    assert (group.ticket, group.engine_id, len(group.completions)) == (9, "engine-0", 4)
    for completion in group.completions:
        end = len(completion.token_ids)
        assert completion.weight_versions == (VersionSpan(version=engine.version, start=0, end=end),)
    assert engine.tokens_generated - before == sum(len(one.token_ids) for one in group.completions)


def test_completions_differ_and_a_seed_repeats_them(draw: Callable[..., RolloutGroup]) -> None:
    first = draw(seed=11)
    assert len({one.token_ids for one in first.completions}) == 4
    assert draw(seed=11).completions == first.completions
    assert draw(seed=311).completions != first.completions
    assert draw(seed=None).completions != draw(seed=None).completions


def test_the_end_token_is_part_of_the_tokens_and_not_of_the_text(
    engine: InProcessEngine, draw: Callable[..., RolloutGroup], publish: Publish, runner: asyncio.Runner
) -> None:
    end = engine._requests.processor.end_token_id
    wants_end = publish(lambda tensors: prefer(tensors, draw, [end]))
    runner.run(engine.update_weights(wants_end.weights))
    completion = draw(num_samples=1, temperature=0.0).completions[0]
    assert completion.finish_reason == "stop"
    assert completion.token_ids[-1] == end and len(completion.rollout_logprobs) == len(completion.token_ids)
    assert "<|im_end|>" not in completion.text
    cut = draw(max_new_tokens=1, seed=3).completions[0]
    assert len(cut.token_ids) == 1 and cut.finish_reason in ("length", "stop")


def test_vision_tokens_are_never_drawn_even_when_the_model_wants_them(
    engine: InProcessEngine,
    draw: Callable[..., RolloutGroup],
    publish: Publish,
    noise_dataset: Path,
    runner: asyncio.Runner,
) -> None:
    vision = engine._requests.processor.vision_token_ids
    processor = engine._requests.processor
    placeholders = [token for token in vision if token not in processor.prompt_ids(draw().query)]
    runner.run(engine.update_weights(publish(add_noise(0.0)).weights))
    eager = publish(lambda tensors: prefer(tensors, draw, placeholders))
    runner.run(engine.update_weights(eager.weights))
    for sampling in ({"num_samples": 1, "temperature": 0.0}, {"seed": 1}, {"temperature": 2.0, "seed": 2}):
        group = draw(max_new_tokens=20, **sampling)
        drawn = {token for one in group.completions for token in one.token_ids}
        assert not drawn & set(vision)
        first = reference_logits(eager.folder, noise_dataset, group)[0][0]
        assert int(first.argmax()) in placeholders
        temperature = sampling.get("temperature", 1.0) or 1.0
        expected = reference_logprobs(eager.folder, noise_dataset, group, float(temperature))
        assert largest_difference(group, expected) < TOLERANCE


def prefer(tensors: dict[str, Any], draw: Callable[..., RolloutGroup], token_ids: list[int]) -> None:
    """Make the output head give `token_ids` higher logits than the greedy choice at the first position, where
    the engine holds these very weights."""
    likely = draw(num_samples=1, temperature=0.0).completions[0].token_ids[0]
    embedding = tensors["model.embed_tokens.weight"]
    for token_id in token_ids:
        embedding[token_id] = 3 * embedding[likely]


def test_after_an_update_the_engine_computes_with_the_new_weights(
    engine: InProcessEngine,
    draw: Callable[..., RolloutGroup],
    publish: Publish,
    noise_dataset: Path,
    runner: asyncio.Runner,
) -> None:
    old = draw()
    new = publish(add_noise(0.02))
    assert runner.run(engine.update_weights(new.weights)) == new.weights.sha256
    group = draw()
    expected = reference_logprobs(new.folder, noise_dataset, group, 1.0)
    assert largest_difference(group, expected) < TOLERANCE
    assert group.oldest_version == new.weights.version == engine.version
    assert old.oldest_version < group.oldest_version


def test_an_older_version_is_refused(
    engine: InProcessEngine, tiny_model: Path, tmp_path: Path, runner: asyncio.Runner
) -> None:
    old = changed_model(tiny_model, tmp_path / "old", WeightVersion(0, 99), add_noise(0.0))
    with pytest.raises(WeightSyncError, match="go back"):
        runner.run(engine.update_weights(old.weights))


def test_an_unknown_dataset_is_refused(
    engine: InProcessEngine, noise_dataset: Path, runner: asyncio.Runner
) -> None:
    query = DrivingDataset(noise_dataset).query(0)
    with pytest.raises(RolloutError, match="'evaluation'"):
        runner.run(engine.generate(0, query, Sampling(num_samples=1), dataset="evaluation"))


@pytest.mark.usefixtures("repaired")
def test_sabotage_an_update_that_keeps_the_old_weights_is_caught_by_the_digest(
    engine: InProcessEngine,
    draw: Callable[..., RolloutGroup],
    publish: Publish,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    runner: asyncio.Runner,
) -> None:
    from rollout.weight_transfer import FileUpdateInfo, FileWeightTransferEngine

    moved = publish(add_noise(1e-6))
    receive = FileWeightTransferEngine.receive_weights
    stale = FileUpdateInfo(path=str(tiny_model / "model.safetensors"))
    monkeypatch.setattr(
        FileWeightTransferEngine, "receive_weights", lambda self, update_info: receive(self, stale)
    )
    with pytest.raises(WeightSyncError, match=moved.weights.sha256):
        runner.run(engine.update_weights(moved.weights))
    with pytest.raises(WeightSyncError):
        draw()


@pytest.mark.usefixtures("repaired")
def test_sabotage_an_update_that_is_left_out_is_caught_by_the_digest(
    engine: InProcessEngine, publish: Publish, monkeypatch: pytest.MonkeyPatch, runner: asyncio.Runner
) -> None:
    from rollout.weight_transfer import FileWeightTransferEngine

    moved = publish(add_noise(1e-6))
    monkeypatch.setattr(FileWeightTransferEngine, "receive_weights", lambda self, update_info: None)
    with pytest.raises(WeightSyncError, match="received no weights"):
        runner.run(engine.update_weights(moved.weights))


def test_sabotage_an_output_head_that_is_not_packed_again_shows_in_the_logprobs(
    engine: InProcessEngine,
    draw: Callable[..., RolloutGroup],
    publish: Publish,
    noise_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    runner: asyncio.Runner,
) -> None:
    from rollout import weight_transfer

    new = publish(add_noise(0.02, only="embed_tokens"))
    monkeypatch.setattr(weight_transfer, "repack_output_head", lambda model: None)
    assert_update_is_wrong(engine, draw, new, noise_dataset, runner)


def test_sabotage_vision_features_that_are_kept_show_in_the_logprobs(
    engine: InProcessEngine,
    draw: Callable[..., RolloutGroup],
    publish: Publish,
    noise_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    runner: asyncio.Runner,
) -> None:
    new = publish(add_noise(0.1, only="visual"))
    monkeypatch.setattr(engine._llm.llm_engine, "reset_encoder_cache", lambda: None)
    assert_update_is_wrong(engine, draw, new, noise_dataset, runner)


def assert_update_is_wrong(
    engine: InProcessEngine,
    draw: Callable[..., RolloutGroup],
    new: ModelVersion,
    noise_dataset: Path,
    runner: asyncio.Runner,
) -> None:
    """Update and draw as a canary does: the digest is right, the log-probabilities are not."""
    draw(0)
    assert runner.run(engine.update_weights(new.weights)) == new.weights.sha256
    group = draw(0)
    assert (
        largest_difference(group, reference_logprobs(new.folder, noise_dataset, group, 1.0)) > 40 * TOLERANCE
    )


def test_the_same_updates_without_sabotage_are_right(
    engine: InProcessEngine,
    draw: Callable[..., RolloutGroup],
    publish: Publish,
    noise_dataset: Path,
    runner: asyncio.Runner,
) -> None:
    for change in (add_noise(0.02, only="embed_tokens"), add_noise(0.1, only="visual")):
        draw(0)
        new = publish(change)
        runner.run(engine.update_weights(new.weights))
        group = draw(0)
        assert (
            largest_difference(group, reference_logprobs(new.folder, noise_dataset, group, 1.0)) < TOLERANCE
        )
