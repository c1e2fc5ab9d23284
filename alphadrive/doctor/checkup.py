"""All checks of `alphadrive doctor`, in the order in which they are shown.

What takes longest, loading torch and asking Ray, runs in processes of its own beside the other checks.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from alphadrive.config import Config
from alphadrive.doctor import cluster, gpu, machine, software
from alphadrive.doctor.check import Check, Status
from alphadrive.doctor.child import ChildError, ask

LIBRARIES_TIMEOUT_S = 60.0


def all_checks(config: Config, address: str | None) -> list[Check]:
    """Every check, in the order in which they are shown. One that fails by itself says so in its row."""
    packages = software.Packages()
    with ThreadPoolExecutor() as pool:
        reached = pool.submit(cluster.check_ray, address)
        loaded = pool.submit(_libraries)
        rows = _made("packages", lambda: [software.check_python(), *software.check_packages(packages)])
        model, num_parameters = machine.check_model(config)
        weights = None if num_parameters is None else machine.weights_bytes(config, num_parameters)
        of_machine = [
            model,
            *_made("/dev/shm", lambda: [machine.check_shm(weights)]),
            *_made("run.root", lambda: [machine.check_run_root(config, num_parameters)]),
            *_made("open files", lambda: [machine.check_open_files()]),
            *_made("ports", lambda: [machine.check_ports()]),
            *_made("host name", lambda: [machine.check_host_name()]),
            *_made("py-spy", lambda: [machine.check_stacks()]),
            *_made("clock", lambda: [machine.check_clock(config, is_cluster=address is not None)]),
        ]
        libraries = loaded.result()
        of_libraries = [
            *_made("vLLM and torch", lambda: [software.check_vllm_torch(packages, libraries)]),
            *_made("GPU and driver", lambda: [gpu.check_driver(packages, libraries)]),
            *_made("CUDA", lambda: [gpu.check_cuda(packages, libraries)]),
            *_made("NCCL", lambda: [gpu.check_nccl(packages, libraries)]),
            *_made("compiler", lambda: [gpu.check_compiler(packages, libraries)]),
        ]
        of_cluster = [
            *_made("Ray token", lambda: [cluster.check_token()]),
            *_made("Ray", lambda: [reached.result()]),
        ]
        return [*rows, *of_libraries, *of_machine, *of_cluster]


def _made(name: str, make: Callable[[], list[Check]]) -> list[Check]:
    """The rows of a check; a machine that it was not written for must not hide the others."""
    try:
        return make()
    except Exception as error:
        found = f"the check itself failed: {type(error).__name__}: {error}"
        remedy = "look at this one by hand; the other rows do not depend on it"
        return [Check(name=name, status=Status.WARN, found=found, remedy=remedy)]


def _libraries() -> dict[str, Any] | ChildError:
    try:
        return ask("rollout.library_probe", [], LIBRARIES_TIMEOUT_S, {"OMP_NUM_THREADS": "1"})
    except ChildError as error:
        return error
