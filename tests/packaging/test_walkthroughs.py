"""Pages that are followed from top to bottom work as they are written: every file, every line typed."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import DOCS, ROOT, typed_lines, written_files

sys.path.insert(0, str(ROOT / "tests" / "alphadrive" / "teacher"))
from faulty_endpoint import FaultyEndpoint

DATASET, REWARD = DOCS / "custom-dataset.md", DOCS / "custom-reward.md"
IS_LONG = re.compile(r"alphadrive (sft|grpo|debug|eval) ")
"""Starts engines or a learner."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with FaultyEndpoint() as teacher:
        yield teacher.url


def typed(line: str, folder: Path, url: str = "") -> str:
    """Type a line of a page into a shell in a folder, a teacher of this machine in the place of OpenAI's."""
    if line.startswith("alphadrive distill"):
        line = f"{line} --base-url {url}"
    tools = str(Path(sys.executable).parent)
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def followed(page: Path, folder: Path, url: str = "") -> dict[str, str]:
    """Write the files of a page and type its lines but the long ones; what each printed."""
    for name, text in written_files(page).items():
        (folder / name).write_text(text)
    return {line: typed(line, folder, url) for line in typed_lines(page) if not IS_LONG.match(line)}


@pytest.fixture(scope="module")
def with_data(tmp_path_factory: pytest.TempPathFactory, endpoint: str) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("dataset")
    return folder, followed(DATASET, folder, endpoint)


def test_the_page_of_the_dataset_makes_what_it_says(with_data: tuple[Path, dict[str, str]]) -> None:
    folder, printed = with_data
    assert sum("rows, valid" in text for text in printed.values()) == 2
    assert any(line.startswith("alphadrive distill") for line in printed)
    for name in ("mine", "parts/train", "parts/eval", "explained", "written"):
        assert (folder / "data" / name / "part-00000.parquet").is_file(), name
    assert (folder / "stats.html").is_file() and (folder / "rows.html").is_file()


@pytest.fixture(scope="module")
def with_reward(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("reward")
    return folder, followed(REWARD, folder)


def test_the_page_of_the_reward_scores_what_it_says(with_reward: tuple[Path, dict[str, str]]) -> None:
    _, printed = with_reward
    (scored,) = (text for line, text in printed.items() if line.startswith("alphadrive score"))
    assert scored in REWARD.read_text()


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.e2e
def test_the_page_of_the_dataset_trains_on_it(with_data: tuple[Path, dict[str, str]]) -> None:
    folder, _ = with_data
    stages = ("alphadrive sft debug data.train=data/explained", "alphadrive grpo")
    for line in (line for line in typed_lines(DATASET) if line.startswith(stages)):
        typed(line, folder)
    assert metrics(folder / "runs" / "mine")[-1]["step"] == 2


@pytest.mark.vllm
@pytest.mark.e2e
def test_the_page_of_the_reward_trains_with_it(with_reward: tuple[Path, dict[str, str]]) -> None:
    folder, _ = with_reward
    (line,) = (line for line in typed_lines(REWARD) if line.startswith("alphadrive debug"))
    typed(line, folder)
    assert all("reward/my_rewards:smooth/mean" in step for step in metrics(folder / "runs" / "try"))
