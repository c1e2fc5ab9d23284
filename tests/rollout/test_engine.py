"""The engine in processes of its own: updates while it draws, failed updates, and its processes' ends."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from tiny_qwen import add_noise, changed_model, largest_difference, reference_logprobs

from alphadrive.data.parquet import DrivingDataset
from alphadrive.errors import EngineDiedError, WeightSyncError
from alphadrive.types import RolloutGroup, WeightVersion
from rollout.engine import RolloutEngine
from rollout.settings import EngineSettings, Sampling

pytestmark = pytest.mark.vllm

TOLERANCE = 1e-3
LONG = Sampling(num_samples=4, max_new_tokens=300, seed=1)


def settings_for(model: Path, dataset: Path) -> EngineSettings:
    return EngineSettings(model_folder=str(model), datasets={"train": str(dataset)})


@pytest.fixture(scope="module")
def engine(tiny_model: Path, noise_dataset: Path, runner: asyncio.Runner) -> Iterator[RolloutEngine]:
    pytest.importorskip("vllm")
    engine = runner.run(RolloutEngine.start(settings_for(tiny_model, noise_dataset), "engine-0"))
    yield engine
    processes = engine_processes(psutil.Process())
    assert processes
    runner.run(engine.close())
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive


def engine_processes(parent: psutil.Process) -> list[psutil.Process]:
    """vLLM's processes below `parent`."""
    children = parent.children(recursive=True)
    return [child for child in children if child.is_running() and "EngineCor" in child.name()]


async def until_drawing(engine: RolloutEngine, num_tokens: int) -> None:
    """Wait until every sequence in flight has so many tokens."""
    states = engine._llm.output_processor.request_states
    async with asyncio.timeout(120):
        while not states or any(
            state.detokenizer.num_output_tokens() < num_tokens for state in states.values()
        ):
            await asyncio.sleep(0.005)


def test_an_update_in_mid_draw_switches_weights_between_two_tokens(
    engine: RolloutEngine, tiny_model: Path, noise_dataset: Path, tmp_path: Path, runner: asyncio.Runner
) -> None:
    new = changed_model(tiny_model, tmp_path / "new", WeightVersion(0, 1), add_noise(0.02))
    query = DrivingDataset(noise_dataset).query(0)

    async def run() -> RolloutGroup:
        drawing = asyncio.create_task(engine.generate(3, query, LONG))
        await until_drawing(engine, 5)
        assert await engine.update_weights(new.weights) == new.weights.sha256
        return await drawing

    group = runner.run(run())
    assert engine.version == WeightVersion(0, 1) and group.oldest_version == WeightVersion(0, 0)
    before = reference_logprobs(tiny_model, noise_dataset, group, 1.0)
    after = reference_logprobs(new.folder, noise_dataset, group, 1.0)
    assert any(len(completion.weight_versions) == 2 for completion in group.completions)
    for completion, old, fresh in zip(group.completions, before, after, strict=True):
        first, *rest = completion.weight_versions
        assert first.version == WeightVersion(0, 0) and first.start == 0
        expected = old[: first.end] + fresh[first.end :]
        assert max(abs(a - b) for a, b in zip(completion.rollout_logprobs, expected, strict=True)) < TOLERANCE
        assert [span.version for span in rest] == [WeightVersion(0, 1)] * len(rest)
        assert completion.weight_versions[-1].end == len(completion.token_ids)


def test_the_groups_that_prove_an_update_are_drawn_before_those_that_fill_the_engine(
    engine: RolloutEngine, tiny_model: Path, noise_dataset: Path, tmp_path: Path, runner: asyncio.Runner
) -> None:
    """More sequences than the engine decodes at once: in turn, a canary would wait until one has ended."""
    step = engine.version.step + 1
    new = changed_model(tiny_model, tmp_path / "new", WeightVersion(0, step), add_noise(1e-3))
    dataset = DrivingDataset(noise_dataset)
    short = Sampling(num_samples=2, max_new_tokens=4, seed=9)

    async def run() -> int:
        before = engine.tokens_generated
        drawing = [
            asyncio.create_task(engine.generate(row, dataset.query(row % 8), LONG)) for row in range(12)
        ]
        while engine.tokens_generated < before + 200:
            await asyncio.sleep(0.01)
        receipt, canaries = await engine.update_and_draw(new.weights, [dataset.query(0)], short)
        assert receipt.sha256 == new.weights.sha256
        assert {one.oldest_version.step for one in canaries[0].completions} == {step}
        states = engine._llm.output_processor.request_states.values()
        drawn = [state.detokenizer.num_output_tokens() for state in states]
        await asyncio.gather(*drawing)
        return sum(tokens == 0 for tokens in drawn)

    assert runner.run(run()) >= 12 * 4 - 32


def test_tokens_are_counted_as_they_come(
    engine: RolloutEngine, noise_dataset: Path, runner: asyncio.Runner
) -> None:
    query = DrivingDataset(noise_dataset).query(0)

    async def run() -> None:
        before = await engine.health()
        drawing = asyncio.create_task(engine.generate(0, query, LONG))
        await until_drawing(engine, 5)
        assert not drawing.done() and await engine.health() >= before + 20
        group = await drawing
        drawn = sum(len(one.token_ids) for one in group.completions)
        assert await engine.health() == before + drawn

    runner.run(run())


def test_vision_features_and_output_head_are_new_after_an_update(
    engine: RolloutEngine, tiny_model: Path, noise_dataset: Path, tmp_path: Path, runner: asyncio.Runner
) -> None:
    query = DrivingDataset(noise_dataset).query(1)
    short = Sampling(num_samples=2, max_new_tokens=16, seed=4)
    runner.run(engine.generate(0, query, short))
    for step, change in ((2, add_noise(0.1, only="visual")), (3, add_noise(0.02, only="embed_tokens"))):
        new = changed_model(tiny_model, tmp_path / str(step), WeightVersion(0, step), change)
        runner.run(engine.update_weights(new.weights))
        group = runner.run(engine.generate(0, query, short))
        assert (
            largest_difference(group, reference_logprobs(new.folder, noise_dataset, group, 1.0)) < TOLERANCE
        )


def test_many_seeded_groups_survive_an_update_that_makes_them_compute_their_prompts_again(
    engine: RolloutEngine, tiny_model: Path, noise_dataset: Path, tmp_path: Path, runner: asyncio.Runner
) -> None:
    new = changed_model(tiny_model, tmp_path / "new", WeightVersion(0, 4), add_noise(0.01))
    dataset = DrivingDataset(noise_dataset)

    async def run() -> list[RolloutGroup]:
        drawing = [
            asyncio.create_task(engine.generate(row, dataset.query(row), Sampling(num_samples=8, seed=row)))
            for row in range(8)
        ]
        await asyncio.sleep(0.5)
        await engine.update_weights(new.weights)
        return await asyncio.gather(*drawing)

    assert len(runner.run(run())) == 8


def test_many_groups_at_once_are_drawn_together(
    engine: RolloutEngine, noise_dataset: Path, runner: asyncio.Runner
) -> None:
    dataset = DrivingDataset(noise_dataset)

    async def run() -> list[RolloutGroup]:
        sampling = Sampling(num_samples=8, max_new_tokens=10)
        return await asyncio.gather(
            *(engine.generate(ticket, dataset.query(ticket % 8), sampling) for ticket in range(12))
        )

    groups = runner.run(run())
    assert [(group.ticket, group.query.row) for group in groups] == [(i, i % 8) for i in range(12)]


def test_groups_that_share_a_cached_prompt_survive_updates(
    engine: RolloutEngine, tiny_model: Path, noise_dataset: Path, tmp_path: Path, runner: asyncio.Runner
) -> None:
    """The siblings of a group find its prompt in the prefix cache; an update clears that cache in mid-draw
    and their image must be encoded again."""
    dataset = DrivingDataset(noise_dataset)
    sampling = Sampling(num_samples=8, max_new_tokens=120, seed=5)
    first = engine.version.step + 1

    async def run() -> list[RolloutGroup]:
        draws = [
            asyncio.create_task(engine.generate(row, dataset.query(row % 8), sampling)) for row in range(6)
        ]
        for step in range(first, first + 3):
            new = changed_model(tiny_model, tmp_path / str(step), WeightVersion(0, step), add_noise(1e-3))
            await until_drawing(engine, 5 * (step - first + 1))
            await engine.update_weights(new.weights)
        return await asyncio.gather(*draws)

    assert all(len(group.completions) == 8 for group in runner.run(run()))


def test_a_cancelled_request_leaves_the_engine_free(
    engine: RolloutEngine, noise_dataset: Path, runner: asyncio.Runner
) -> None:
    query = DrivingDataset(noise_dataset).query(0)

    async def run() -> None:
        drawing = asyncio.create_task(engine.generate(0, query, LONG))
        await until_drawing(engine, 1)
        drawing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await drawing
        async with asyncio.timeout(30):
            while engine._llm.output_processor.request_states:
                await asyncio.sleep(0.01)

    runner.run(run())


def test_a_failed_update_raises_everywhere_and_the_engine_serves_nothing_more(
    engine: RolloutEngine, tiny_model: Path, noise_dataset: Path, tmp_path: Path, runner: asyncio.Runner
) -> None:
    """The last test of the shared engine: it is of no use afterwards."""
    query = DrivingDataset(noise_dataset).query(0)
    new = changed_model(tiny_model, tmp_path / "new", WeightVersion(0, 9), add_noise(1e-6))
    claimed = replace(new.weights, sha256="0" * 64)

    async def run() -> None:
        drawing = asyncio.create_task(engine.generate(0, query, LONG))
        await until_drawing(engine, 1)
        with pytest.raises(WeightSyncError, match=new.weights.sha256):
            await engine.update_weights(claimed)
        with pytest.raises(WeightSyncError):
            await drawing
        with pytest.raises(WeightSyncError):
            await engine.generate(1, query, LONG)
        with pytest.raises(WeightSyncError):
            await engine.update_weights(new.weights)
        with pytest.raises(WeightSyncError):
            await engine.health()
        assert engine.version != new.weights.version

    runner.run(run())


PARENT = """
import asyncio, sys
from rollout.engine import RolloutEngine
from rollout.settings import EngineSettings
async def main():
    engine = await RolloutEngine.start(EngineSettings(model_folder=sys.argv[1]), "engine-k")
    print("started", flush=True)
    await asyncio.sleep(600)
if __name__ == "__main__":
    asyncio.run(main())
"""


def test_an_engines_processes_end_when_its_parent_is_killed(tiny_model: Path, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tiny_model)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert parent.stdout is not None
        lines = iter(parent.stdout.readline, "")
        assert any(line.strip() == "started" for line in lines)
        children = psutil.Process(parent.pid).children(recursive=True)
        assert engine_processes(psutil.Process(parent.pid))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_a_dead_engine_process_is_an_error_with_a_name(
    tiny_model: Path, noise_dataset: Path, runner: asyncio.Runner
) -> None:
    query = DrivingDataset(noise_dataset).query(0)

    async def run() -> None:
        before = engine_processes(psutil.Process())
        engine = await RolloutEngine.start(settings_for(tiny_model, noise_dataset), "engine-d")
        try:
            drawing = asyncio.create_task(engine.generate(0, query, LONG))
            await until_drawing(engine, 1)
            for process in set(engine_processes(psutil.Process())) - set(before):
                process.kill()
            with pytest.raises(EngineDiedError, match="engine-d"):
                await asyncio.wait_for(drawing, 60)
            with pytest.raises(EngineDiedError):
                await engine.generate(1, query, LONG)
            with pytest.raises(EngineDiedError):
                await engine.health()
        finally:
            await engine.close()

    runner.run(run())
