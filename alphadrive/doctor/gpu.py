"""Checks of the driver, CUDA, NCCL and the compilers that GPU libraries call at run time."""

import re
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

from alphadrive.doctor.check import Check, Status
from alphadrive.doctor.child import ChildError
from alphadrive.doctor.software import Packages, locked_versions

SMI_TIMEOUT_S = 10.0
_SMI = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
_OLDEST_DRIVER = {"12": 525, "13": 580}
"""The first driver branch of each CUDA major version; within one, newer CUDA runs on older drivers."""

Libraries = dict[str, Any] | ChildError
Smi = Callable[[], str]


def query_smi() -> str:
    """What `nvidia-smi` prints, a line a GPU. Raises OSError when there is none, ChildError when it fails."""
    try:
        done = subprocess.run(_SMI, capture_output=True, text=True, timeout=SMI_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ChildError(f"nvidia-smi gave no answer in {SMI_TIMEOUT_S:g} s: the driver hangs") from None
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines() or ["it said nothing"]
        raise ChildError(f"nvidia-smi failed: {said[-1]}")
    return done.stdout


def check_driver(packages: Packages, libraries: Libraries, smi: Smi = query_smi) -> Check:
    """The GPUs and their driver, against the CUDA that torch is built for."""
    name = "GPU and driver"
    major = _cuda_major(libraries)
    oldest = _OLDEST_DRIVER.get(major or "")
    expected = f"driver {oldest} or newer, for CUDA {major}" if oldest else ""
    try:
        gpus = [[cell.strip() for cell in line.split(",")] for line in smi().splitlines() if line.strip()]
    except OSError:
        gpus = []
    except ChildError as error:
        remedy = "look into `dmesg` for Xid errors; restart the machine or the driver"
        return Check(name=name, status=Status.FAIL, found=str(error), expected=expected, remedy=remedy)
    if not gpus:
        return _without_gpu(name, packages, expected)
    (model, driver, memory), count = gpus[0][:3], len(gpus)
    found = f"{count} x {model}, {memory}, driver {driver}"
    if packages.extra == "cpu":
        remedy = "engines and learner will run on the CPU; for the GPUs: `make setup EXTRA=gpu`"
        found += "; the CPU build is installed"
        return Check(name=name, status=Status.WARN, found=found, expected=expected, remedy=remedy)
    if oldest and _number(driver) < oldest:
        remedy = f"install driver {oldest} or newer on the host (a container uses the host's)"
        return Check(name=name, status=Status.FAIL, found=found, expected=expected, remedy=remedy)
    return Check(name=name, status=Status.OK, found=found, expected=expected)


def _without_gpu(name: str, packages: Packages, expected: str) -> Check:
    found = "no GPU (no nvidia-smi)"
    if packages.extra == "cpu":
        return Check(name=name, status=Status.ABSENT, found=f"{found}; engines and learner run on the CPU")
    remedy = (
        "fine on a head node without workers; elsewhere install the driver, and start containers with "
        "`--gpus all` (Kubernetes: a limit of nvidia.com/gpu)"
    )
    return Check(name=name, status=Status.WARN, found=found, expected=expected, remedy=remedy)


def check_cuda(packages: Packages, libraries: Libraries) -> Check:
    """Whether torch reaches the GPUs."""
    name = "CUDA"
    if packages.extra == "cpu":
        return Check(name=name, status=Status.ABSENT, found="the CPU build of torch is installed")
    if isinstance(libraries, ChildError) or "torch_problem" in libraries:
        return Check(name=name, status=Status.ABSENT, found="torch does not load, see above")
    version, gpus = libraries["cuda_version"], libraries.get("gpus") or []
    if problem := libraries.get("cuda_problem"):
        remedy = "mend the row of the driver first; then check CUDA_VISIBLE_DEVICES and the device files"
        found = f"torch for CUDA {version} reaches no GPU: {problem}"
        status = Status.WARN if shutil.which("nvidia-smi") is None else Status.FAIL
        return Check(name=name, status=status, found=found, expected="a GPU", remedy=remedy)
    old = sorted({gpu["capability"] for gpu in gpus if float(gpu["capability"]) < 8.0})
    found = f"CUDA {version}, {len(gpus)} GPUs for torch, compute capability {gpus[0]['capability']}"
    if old:
        remedy = 'without bfloat16: set `model.dtype: "float32"`, or use Ampere (8.0) or newer'
        expected = "compute capability 8.0 or more"
        return Check(name=name, status=Status.WARN, found=found, expected=expected, remedy=remedy)
    return Check(name=name, status=Status.OK, found=found)


def check_nccl(packages: Packages, libraries: Libraries) -> Check:
    """The NCCL that torch has loaded, against the lock's."""
    name = "NCCL"
    if packages.extra == "cpu":
        return Check(name=name, status=Status.ABSENT, found="learner ranks use gloo on the CPU")
    if isinstance(libraries, ChildError) or "nccl_version" not in libraries:
        return Check(name=name, status=Status.ABSENT, found="torch does not load, see above")
    found = str(libraries["nccl_version"])
    pins = locked_versions(packages.extra)
    locked = next((version for name, version in pins.items() if name.startswith("nvidia-nccl")), "")
    if locked and locked.split(".")[:2] != found.split(".")[:2]:
        remedy = f"another libnccl is found first (LD_LIBRARY_PATH?); unset that, or {packages.install}"
        return Check(name=name, status=Status.WARN, found=found, expected=locked, remedy=remedy)
    return Check(name=name, status=Status.OK, found=found, expected=locked)


def check_compiler(packages: Packages, libraries: Libraries) -> Check:
    """What Triton (a C compiler) and FlashInfer (nvcc) compile with when an engine starts on a GPU."""
    name = "compiler"
    compiler = next((path for each in ("cc", "gcc", "clang") if (path := shutil.which(each))), None)
    cuda_home = None if isinstance(libraries, ChildError) else libraries.get("cuda_home")
    found = f"{compiler or 'no C compiler'}, CUDA toolkit: {cuda_home or 'none'}"
    if packages.extra == "cpu":
        return Check(name=name, status=Status.OK, found=f"{compiler or 'none'}; none is needed on the CPU")
    expected = "a C compiler for Triton, nvcc for FlashInfer"
    if compiler is None:
        remedy = "`apt-get install gcc python3.11-dev`"
        return Check(name=name, status=Status.FAIL, found=found, expected=expected, remedy=remedy)
    if cuda_home is None:
        remedy = (
            "kernels that are not shipped ready cannot be compiled: install the CUDA toolkit of torch's "
            "version, or set CUDA_HOME to it"
        )
        return Check(name=name, status=Status.WARN, found=found, expected=expected, remedy=remedy)
    return Check(name=name, status=Status.OK, found=found, expected=expected)


def _cuda_major(libraries: Libraries) -> str | None:
    version = None if isinstance(libraries, ChildError) else libraries.get("cuda_version")
    return None if version is None else str(version).partition(".")[0]


def _number(driver: str) -> int:
    match = re.match(r"\d+", driver)
    return int(match.group()) if match else 0
