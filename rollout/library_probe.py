"""Do the libraries of an engine load together? Asked by `alphadrive doctor` in a process of its own.

    python -m rollout.library_probe   prints one JSON object

Imports torch and torchvision and loads vLLM's compiled kernels beside them, without importing vLLM, which
takes ten times as long. Starts nothing.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any


def main() -> None:
    """Print what was found."""
    print(json.dumps(probe()))


def probe() -> dict[str, Any]:
    """Versions and devices as torch sees them; `*_problem` for each part that does not load."""
    try:
        import torch
        import torch.utils.cpp_extension
    except Exception as error:  # a broken library raises anything
        return {"torch_problem": _words(error)}
    found: dict[str, Any] = {"torch": torch.__version__, "cuda_version": torch.version.cuda}
    found["cuda_home"] = torch.utils.cpp_extension.CUDA_HOME
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        found["torchvision_problem"] = _words(error)
    if torch.version.cuda is not None:
        found |= _cuda()
    if torch.version.cuda is None or found["gpus"]:
        kernels = kernel_files()
        found["kernels"] = ", ".join(file.name.partition(".")[0] for file in kernels)
        try:
            for file in kernels:
                torch.ops.load_library(str(file))
        except OSError as error:
            found["kernels_problem"] = _words(error)
    return found


def kernel_files() -> list[Path]:
    """The compiled libraries that vLLM loads on this machine."""
    import torch

    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent
    if torch.version.cuda is not None:
        names = ["_C_stable_libtorch.abi3.so", "_C.abi3.so"]
    elif torch.cpu._is_avx512_bf16_supported():
        names = ["_C.abi3.so"]
    else:
        names = ["_C_AVX512.abi3.so" if torch.cpu._is_avx512_supported() else "_C_AVX2.abi3.so"]
    return [folder / name for name in names if (folder / name).is_file()]


def _cuda() -> dict[str, Any]:
    """Devices and libraries of a CUDA build of torch; `cuda_problem` says why there are no devices."""
    import torch

    found: dict[str, Any] = {"gpus": [], "nccl_version": ".".join(map(str, torch.cuda.nccl.version()))}
    try:
        torch.cuda.init()
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            capability = f"{device.major}.{device.minor}"
            gpu = {"name": device.name, "bytes": device.total_memory, "capability": capability}
            found["gpus"].append(gpu)
    except (RuntimeError, AssertionError) as error:
        found["cuda_problem"] = _words(error)
    return found


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


if __name__ == "__main__":
    main()
