"""All checks of `alphadrive doctor`, in the order in which they are shown.

What takes longest, loading torch and asking Ray, runs in processes of its own beside the other checks.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from alphadrive.config import Config
from alphadrive.doctor import cluster, gpu, machine, software
from alphadrive.doctor.check import Check
from alphadrive.doctor.child import ChildError, ask

LIBRARIES_TIMEOUT_S = 60.0


def all_checks(config: Config, address: str | None) -> list[Check]:
    """Every check, in the order in which they are shown."""
    packages = software.Packages()
    with ThreadPoolExecutor() as pool:
        reached = pool.submit(cluster.check_ray, address)
        loaded = pool.submit(_libraries)
        rows = [software.check_python(), *software.check_packages(packages)]
        model, num_parameters = machine.check_model(config)
        weights = None if num_parameters is None else machine.weights_bytes(config, num_parameters)
        of_machine = [
            model,
            machine.check_shm(weights),
            machine.check_run_root(config, num_parameters),
            machine.check_open_files(),
            machine.check_ports(),
            machine.check_host_name(),
            machine.check_clock(config, is_cluster=address is not None),
        ]
        libraries = loaded.result()
        of_libraries = [
            software.check_vllm_torch(packages, libraries),
            gpu.check_driver(packages, libraries),
            gpu.check_cuda(packages, libraries),
            gpu.check_nccl(packages, libraries),
            gpu.check_compiler(packages, libraries),
        ]
        return [*rows, *of_libraries, *of_machine, cluster.check_token(), reached.result()]


def _libraries() -> dict[str, Any] | ChildError:
    try:
        return ask("rollout.library_probe", [], LIBRARIES_TIMEOUT_S, {"OMP_NUM_THREADS": "1"})
    except ChildError as error:
        return error
