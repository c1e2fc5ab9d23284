"""The environment variables an engine's process needs; set before vLLM is imported.

vLLM reads most of them at import. Why each CPU value: `TORCHDYNAMO_DISABLE` saves the compilation of sampler
helpers that eager mode does not stop (about 20 s at the first request); one OpenMP thread is several times
faster than vLLM's default for small models, and leaves the other cores to other processes; `nobind`
because the default binding pins every engine to the same core. Warnings that every start on a CPU gives
are left out of the log.
"""

import os
import warnings

from alphadrive.errors import ConfigError

ENGINE_MARK = "ALPHADRIVE_ENGINE"
"""Set where an engine of ours runs, and so in its child processes."""

LOOPBACK = ("127.0.0.1", "::1")
"""Addresses that no other machine reaches."""
ON_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}

_ALWAYS = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    ENGINE_MARK: "1",
}
_CPU = {
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
}
_CHOSEN_BY_USER = {
    "VLLM_LOGGING_LEVEL",
    "TORCH_CPP_LOG_LEVEL",
    "PYTHONWARNINGS",
    "OMP_NUM_THREADS",
    "HF_HUB_OFFLINE",
}
_REFUSED = {
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "lets anything that reaches an engine's socket run code in it",
    "VLLM_SERVER_DEV_MODE": "opens unauthenticated control routes",
}


def prepare_environment(device: str, *, in_process: bool = False) -> None:
    """Set what an engine on `device` (`cpu` or `cuda`) needs in this process's environment.

    `in_process` runs the engine's core in this process. What a user set on purpose (log level,
    threads, hub access) is kept. Raises ConfigError when a variable that makes an engine unsafe is on.
    """
    for name, danger in _REFUSED.items():
        if os.environ.get(name, "0").strip().lower() not in ("", "0", "false"):
            raise ConfigError(f"{name}={os.environ[name]} is set: it {danger}; unset it")
    values = dict(_ALWAYS)
    if device == "cpu":
        values |= _CPU
    if device == "cpu" or in_process:
        values["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    for name, value in values.items():
        if name not in _CHOSEN_BY_USER or name not in os.environ:
            os.environ[name] = value
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(vllm|torch)\.")


def stay_on_loopback() -> None:
    """Have gloo, NCCL and vLLM, where they open ports, open them on loopback: for processes that all are on
    this machine. Otherwise they take the address that the machine's name stands for, or the interface that is
    set for runs on several machines."""
    os.environ |= ON_LOOPBACK


def use_threads(num_threads: int) -> None:
    """Compute with so many threads in this process: sums over threads depend on their number, which would
    otherwise be this machine's."""
    os.environ |= {"OMP_NUM_THREADS": str(num_threads), "MKL_NUM_THREADS": str(num_threads)}
    import torch

    torch.set_num_threads(num_threads)
