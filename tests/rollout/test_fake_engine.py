"""The fake engine keeps the promises of the real one."""

import asyncio
from pathlib import Path

import pytest

from alphadrive.actions import parse_answer
from alphadrive.errors import EngineDiedError, RolloutError, WeightSyncError
from alphadrive.types import DrivingQuery, WeightVersion
from rollout.fake import FakeEngine, Faults, write_fake_weights
from rollout.settings import EngineSettings, Sampling

SETTINGS = EngineSettings(model_folder="none", initial_version=WeightVersion(2, 0))
QUERY = DrivingQuery(query_id="q", row=3, speed_mps=5.0, navigation="left", plans=("KEEP, STRAIGHT",))
SAMPLING = Sampling(num_samples=4)


def test_groups_are_whole_and_the_same_in_two_runs() -> None:
    async def draw() -> object:
        engine = await FakeEngine.start(SETTINGS, "e0")
        group = await engine.generate(7, QUERY, SAMPLING)
        assert engine.tokens_generated == sum(len(one.token_ids) for one in group.completions)
        return group

    group = asyncio.run(draw())
    assert group == asyncio.run(draw())
    assert len({one.text for one in group.completions}) > 1
    for one in group.completions:
        assert len(one.token_ids) == len(one.rollout_logprobs) == one.weight_versions[-1].end
        assert one.oldest_version == WeightVersion(2, 0)
        assert one.finish_reason == "stop" and parse_answer(one.text) is not None


def test_an_update_while_drawing_shows_in_the_version_spans(tmp_path: Path) -> None:
    weights = write_fake_weights(tmp_path / "w.safetensors", WeightVersion(2, 1))

    async def run() -> None:
        engine = FakeEngine(SETTINGS, "e0", delay_s=0.01)
        drawing = asyncio.create_task(engine.generate(0, QUERY, SAMPLING))
        await asyncio.sleep(0)
        assert await engine.update_weights(weights) == weights.sha256
        group = await drawing
        assert [span.version.step for span in group.completions[0].weight_versions] == [0, 1]
        assert group.oldest_version == WeightVersion(2, 0)
        assert (await engine.generate(1, QUERY, SAMPLING)).oldest_version == WeightVersion(2, 1)

    asyncio.run(run())


def test_a_failed_update_ends_what_is_in_flight_and_all_that_follows(tmp_path: Path) -> None:
    weights = write_fake_weights(tmp_path / "w.safetensors", WeightVersion(2, 1))

    async def run() -> None:
        engine = FakeEngine(SETTINGS, "e0", faults=Faults(failing_update=True, hanging_rows={3}))
        drawing = asyncio.create_task(engine.generate(0, QUERY, SAMPLING))
        await asyncio.sleep(0)
        with pytest.raises(WeightSyncError, match=r"e0.*2\.1"):
            await engine.update_weights(weights)
        with pytest.raises(WeightSyncError):
            await drawing
        with pytest.raises(WeightSyncError):
            await engine.generate(1, QUERY, SAMPLING)

    asyncio.run(run())


def test_faults_raise_the_errors_of_the_real_engine() -> None:
    async def run() -> None:
        failing = FakeEngine(SETTINGS, "e0", faults=Faults(failing_rows={3}))
        with pytest.raises(RolloutError, match="query q"):
            await failing.generate(0, QUERY, SAMPLING)
        mortal = FakeEngine(SETTINGS, "e1", faults=Faults(dies_after=1))
        await mortal.generate(0, QUERY, SAMPLING)
        with pytest.raises(EngineDiedError):
            await mortal.generate(1, QUERY, SAMPLING)

    asyncio.run(run())


def test_a_skipped_update_answers_with_the_wrong_digest(tmp_path: Path) -> None:
    weights = write_fake_weights(tmp_path / "w.safetensors", WeightVersion(2, 1))

    async def run() -> str:
        return await FakeEngine(SETTINGS, "e0", faults=Faults(skips_update=True)).update_weights(weights)

    assert asyncio.run(run()) != weights.sha256


def test_sampling_that_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature 0"):
        Sampling(num_samples=2, temperature=0.0)
    with pytest.raises(ValueError, match="num_samples"):
        Sampling(num_samples=0)
