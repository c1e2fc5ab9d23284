"""Sets up the virtual environment from a lock; `make setup` calls it with the interpreter to build on.

Standard library only, and no syntax newer than Python 3.7, so that an old one can say that it is the
wrong one. A stamp in the environment holds a hash of everything the result depends on: when it
matches, nothing is done. Every failure is one sentence on stderr and exit code 1; all of pip's output
is in `setup.log` inside the environment.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = (3, 11)
"""The locks pin files for this version."""
NEEDED_GB = {"cpu": 6, "gpu": 20, "peers": 5}
"""Locks there are, and the disk an environment takes. `peers` holds what the benchmarks compare with."""
CPU_TORCH = ("cpu", "peers")
ANOTHER_PYTHON = "Name another interpreter with `make PYTHON=/path/to/python3.11 setup`."

FAILURES = (
    (r"No space left on device|Errno 28", "the disk is full"),
    (r"THESE PACKAGES DO NOT MATCH THE HASHES", "a downloaded file is not the one the lock names"),
    (
        r"NewConnectionError|name resolution|ConnectTimeout|Read timed out|Connection (refused|broken|reset)"
        r"|ProxyError|Network is unreachable|Max retries exceeded|SSLError",
        "the package registry cannot be reached: check the network and pip's configuration",
    ),
    (r"No matching distribution found for (?P<what>\S+)", "the package registry offers no {what}"),
)
"""Pattern in pip's output, what it means."""


class SetupError(Exception):
    """Why the environment cannot be set up, in one sentence."""


def main() -> int:
    """Set up `--venv` with `--extra`, or say why not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--extra", default="cpu")
    options = parser.parse_args()
    try:
        set_up(options.venv, options.extra)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    return 0


def set_up(venv: Path, extra: str) -> None:
    """Bring `venv` to the state the lock of `extra` describes; do nothing when it is there already."""
    if extra not in NEEDED_GB:
        raise SetupError(f"EXTRA={extra} is not known; use EXTRA=cpu or EXTRA=gpu.")
    stamp, digest = venv / "alphadrive-setup.json", wanted_digest(extra)
    found = read_stamp(stamp)
    if found.get("digest") == digest:
        print(f"setup: {venv} is up to date")
        return
    check_machine(venv, extra)
    lock = ROOT / "requirements" / f"{extra}.lock"
    print(f"setup: installing {lock.name} into {venv}; the first time this takes some minutes", flush=True)
    stamp.unlink(missing_ok=True)
    create_environment(venv, anew=found.get("extra") not in (None, extra))
    if extra in CPU_TORCH:
        torch = re.search(r"^torch==\S+", lock.read_text(), re.MULTILINE)
        assert torch is not None, "the lock pins torch"
        pip_install(venv, torch.group())
        check_cpu_torch(venv)
    pip_install(venv, "-r", str(lock))
    pip_install(venv, "--no-build-isolation", "--editable", str(ROOT))
    check_imports(venv)
    stamp.write_text(json.dumps({"digest": digest, "extra": extra}))
    print(f"setup: {venv} is ready")


def wanted_digest(extra: str) -> str:
    """A hash of what the environment is made from; the folder counts, as the install is editable."""
    names = [f"requirements/{extra}.lock", "requirements/install.py", "pyproject.toml"]
    files = [ROOT / name for name in names] + sorted((ROOT / "site_hooks").glob("alphadrive_torchvision.*"))
    digest = hashlib.sha256(f"{ROOT} {extra} {sys.version_info[:2]}".encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def read_stamp(stamp: Path) -> dict[str, str]:
    """What the last finished set-up left; empty when none finished."""
    if not stamp.is_file():
        return {}
    content: dict[str, str] = json.loads(stamp.read_text())
    return content


def check_machine(venv: Path, extra: str) -> None:
    """Refuse a wrong Python, a Python without venv, and a disk that is too full."""
    if sys.version_info[:2] != PYTHON:
        have = ".".join(map(str, sys.version_info[:3]))
        raise SetupError(f"Python 3.11 is needed, {sys.executable} is {have}. {ANOTHER_PYTHON}")
    modules = [sys.executable, "-c", "import venv, ensurepip"]
    if subprocess.run(modules, capture_output=True).returncode != 0:
        raise SetupError(f"{sys.executable} cannot make environments: install the package python3.11-venv.")
    if (venv / "bin" / "python").exists():
        return
    folder = next(parent for parent in venv.resolve().parents if parent.exists())
    free_gb, needed_gb = shutil.disk_usage(folder).free / 1e9, NEEDED_GB[extra]
    if free_gb < needed_gb:
        raise SetupError(f"{needed_gb} GB of free disk are needed in {folder}, it has {free_gb:.1f} GB.")


def create_environment(venv: Path, anew: bool) -> None:
    """Make `venv` where it is missing or does not start; `anew` empties it first."""
    python = venv / "bin" / "python"
    check = [str(python), "-c", "import sys, pip; assert sys.version_info[:2] == (3, 11)"]
    if python.exists() and not anew and subprocess.run(check, capture_output=True).returncode == 0:
        return
    if venv.exists() and not (venv / "pyvenv.cfg").exists() and (not venv.is_dir() or any(venv.iterdir())):
        raise SetupError(f"{venv} is not an environment and not empty: name another folder with VENV=.")
    make = [sys.executable, "-m", "venv", "--clear", str(venv)]
    made = subprocess.run(make, capture_output=True, text=True)
    if made.returncode != 0:
        raise SetupError(f"cannot make the environment {venv}: {last_line(made.stdout + made.stderr)}")


def pip_install(venv: Path, *what: str) -> None:
    """`pip install` without dependencies: a lock names all of them."""
    log = venv / "setup.log"
    start = log.stat().st_size if log.exists() else 0
    command = [str(venv / "bin" / "python"), "-m", "pip", "install", "--no-deps", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--log", str(log), *what]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode == 0:
        return
    output = log.read_text(errors="replace")[start:] if log.exists() else done.stdout
    for pattern, meaning in FAILURES:
        match = re.search(pattern, output)
        if match:
            raise SetupError(f"{meaning.format(**match.groupdict())} (details in {log}).")
    raise SetupError(f"pip failed: {last_line(done.stdout)} (details in {log}).")


def check_cpu_torch(venv: Path) -> None:
    """Refuse a GPU build of torch in a CPU environment, before the rest is downloaded."""
    code = (
        "import importlib.util as u, pathlib as p, runpy; "
        "print(runpy.run_path(str(p.Path(u.find_spec('torch').origin).with_name('version.py')))['cuda'])"
    )
    done = subprocess.run([str(venv / "bin" / "python"), "-c", code], capture_output=True, text=True)
    if done.stdout.strip() != "None":
        pip_uninstall = [str(venv / "bin" / "python"), "-m", "pip", "uninstall", "--yes", "--quiet", "torch"]
        subprocess.run(pip_uninstall, capture_output=True)
        raise SetupError(
            "pip found no CPU build of torch; point it at the CPU wheels of PyTorch with "
            "PIP_EXTRA_INDEX_URL (an index) or PIP_FIND_LINKS (a folder), or use EXTRA=gpu."
        )


def check_imports(venv: Path) -> None:
    """Refuse an environment in which the heavy libraries do not load together."""
    code = "import torch, torchvision, transformers"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [str(venv / "bin" / "python"), "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SetupError(f"torch and torchvision do not load together: {last_line(done.stderr)}.")


def last_line(text: str) -> str:
    """The last line of some output that says anything, without pip's colours and prefix."""
    lines = [line for line in text.splitlines() if line.strip()] or ["it said nothing"]
    return re.sub(r"\x1b\[[0-9;]*m|^ERROR: ", "", lines[-1]).strip().rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
