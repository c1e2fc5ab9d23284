"""The wheel: what is in it, and that it works away from the checkout."""

import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from alphadrive.resources import FIRST_IMPORTED, shadowed_packages

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"alphadrive", "rollout", "learner", "rewards", "cluster"}
HOOK = {"alphadrive_torchvision.py", "alphadrive_torchvision.pth"}


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = ("-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--quiet")
    run(*pip, "--wheel-dir", folder, ROOT, cwd=folder)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    pip = ("-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", folder)
    run(*pip, wheel, cwd=folder)
    return folder


def test_the_top_level_holds_the_packages_and_the_hook_alone(names: set[str]) -> None:
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == PACKAGES | HOOK


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_every_module_is_inside(package: str, names: set[str]) -> None:
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / package).rglob("*.py")}
    assert modules
    assert modules <= names


@pytest.mark.parametrize("folder", ["configs", "assets/tiny-vlm"])
def test_shipped_files_are_inside_the_package(folder: str, names: set[str]) -> None:
    shipped = {str(file.relative_to(ROOT)) for file in (ROOT / folder).rglob("*") if file.is_file()}
    assert shipped
    assert {f"alphadrive/{name}" for name in shipped} <= names


def test_the_locks_that_doctor_compares_with_are_inside_the_package(names: set[str]) -> None:
    assert {f"alphadrive/requirements/{extra}.lock" for extra in ("cpu", "gpu")} <= names


def test_entry_points_are_declared(wheel: Path, names: set[str]) -> None:
    (file,) = (name for name in names if name.endswith("entry_points.txt"))
    text = zipfile.ZipFile(wheel).read(file).decode()
    assert "[console_scripts]\nalphadrive = alphadrive.cli:main" in text
    assert "[vllm.general_plugins]\nalphadrive = rollout.vllm_plugin:register" in text


def test_a_shipped_configuration_loads_by_name_from_elsewhere(site: Path, tmp_path: Path) -> None:
    name = sorted((ROOT / "configs").glob("*.yaml"))[0].stem
    code = (
        "import alphadrive.config as config, alphadrive.resources as resources\n"
        f"config.load_config({name!r})\n"
        "print(config.__file__, resources.shipped('assets/tiny-vlm'))\n"
    )
    output = run("-c", code, cwd=tmp_path, PYTHONPATH=str(site))
    expected = [site / "alphadrive" / "config.py", site / "alphadrive" / "assets" / "tiny-vlm"]
    assert output.split() == [str(path) for path in expected]
    assert expected[1].is_dir()


def test_the_console_script_does_not_see_the_packages_of_the_folder_it_is_run_in(
    site: Path, tmp_path: Path
) -> None:
    for name in ("rewards", "tests", "alphadrive"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not ours')\n")
    output = run(site / "bin" / "alphadrive", "--help", cwd=tmp_path, PYTHONPATH=str(site))
    assert "usage: alphadrive" in output


def test_packages_that_ray_workers_would_import_instead_of_ours_are_named(tmp_path: Path) -> None:
    (tmp_path / "rewards").mkdir()
    assert shadowed_packages(tmp_path) == []
    (tmp_path / "rewards" / "__init__.py").touch()
    (tmp_path / "cluster.py").touch()
    assert shadowed_packages(tmp_path) == ["rewards", "cluster"]
    assert shadowed_packages(tmp_path, FIRST_IMPORTED) == ["cluster"]
    assert shadowed_packages(ROOT) == []


@pytest.fixture
def unrelated(tmp_path: Path) -> Path:
    """Somebody's repository: a `rewards` package that is not ours, and two reward functions."""
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "__init__.py").write_text("raise RuntimeError('not ours')\n")
    for file in ("their_module.py", "rewards/smooth.py"):
        (tmp_path / file).write_text(
            "from rewards.strict import DIVERSITY_SHARE\n"
            "def half(query, completions):\n    return [0.5 for completion in completions]\n"
        )
    return tmp_path


TERMS = ("their_module:half", "rewards/smooth.py:half")


@pytest.mark.parametrize("name", TERMS)
def test_score_takes_the_functions_of_a_repository_with_a_rewards_folder(
    site: Path, unrelated: Path, name: str
) -> None:
    (unrelated / "groups.jsonl").write_text('{"solution": "KEEP, STRAIGHT", "completions": ["a", "b"]}\n')
    for script in ([site / "bin" / "alphadrive"], ["-m", "alphadrive.cli"]):
        output = run(
            *script, "score", "groups.jsonl", f"rewards.weights.{name}=2", cwd=unrelated, PYTHONPATH=str(site)
        )
        assert [reward[name] for reward in json.loads(output)["rewards"]] == [1.0, 1.0]


WORKERS = """\
import asyncio, os, sys
from pathlib import Path
import ray
from alphadrive.config import RewardConfig
from alphadrive.types import Completion, DrivingQuery, RolloutGroup, VersionSpan, WeightVersion
from cluster.actors import RewardActor
from cluster.batches import BatchItem
from cluster.processes import ProcessTree
from cluster.ray_session import ray_session
from cluster.reward_pool import RewardPool

span = VersionSpan(version=WeightVersion(0, 0), start=0, end=1)
completion = Completion(
    text="", token_ids=(1,), rollout_logprobs=(-1.0,), finish_reason="stop", weight_versions=(span,)
)
query = DrivingQuery(query_id="q", row=0, speed_mps=1.0, navigation="", plans=("KEEP, STRAIGHT",))
group = RolloutGroup(
    ticket=0, query=query, prompt_token_ids=(1,), completions=(completion, completion), engine_id="e"
)
config = RewardConfig(weights={name: 2.0 for name in sys.argv[2:]}, timeout_s=60.0)

async def main():
    actor = ray.remote(RewardActor).options(num_cpus=0)
    here = str(Path.cwd())
    pool = RewardPool(config, lambda worker_id: actor.remote(config, 0, sys.argv[1], worker_id, here))
    await pool.start()
    header = await pool.score(BatchItem(ray.put((group,)), 0))
    await pool.close()
    print(header.term_means)

with ProcessTree() as tree, ray_session(0, tree):
    asyncio.run(main())
"""


@pytest.mark.ray
def test_reward_workers_take_the_functions_of_a_repository_with_a_rewards_folder(
    site: Path, unrelated: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("ray")
    elsewhere = tmp_path_factory.mktemp("driver")
    (elsewhere / "workers.py").write_text(WORKERS)
    output = run(
        elsewhere / "workers.py",
        elsewhere / "rollouts",
        *TERMS,
        cwd=unrelated,
        PYTHONPATH=str(site),
        HOME=str(elsewhere),
    )
    assert ast.literal_eval(output.splitlines()[-1]) == {
        "format": 0.0, "path": 0.0, "speed": 0.0, **dict.fromkeys(TERMS, 1.0)
    }  # fmt: skip
