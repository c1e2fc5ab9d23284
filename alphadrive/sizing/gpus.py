"""What GPUs hold and do at most, from their makers' data sheets."""

import re
from dataclasses import dataclass

GB = 10**9

_DENSE_TFLOPS = {
    # bfloat16 on tensor cores; float32 without them, which is torch's default
    "B200": (2250.0, 80.0),
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100": (989.0, 67.0),
    "H800": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "A800": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "A10": (125.0, 31.2),
}


def peak_flops(device: str, dtype: str) -> float | None:
    """The peak of a device by its CUDA name; None when it is none, or not in the table.

    >>> peak_flops("NVIDIA A100-SXM4-80GB", "bfloat16")
    312000000000000.0
    >>> peak_flops("cpu", "float32") is None
    True
    """
    for name, (bfloat16, float32) in _DENSE_TFLOPS.items():
        if re.search(rf"\b{name}\b", device):
            return 1e12 * (bfloat16 if dtype == "bfloat16" else float32)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU: memory that programs can have, dense bfloat16 arithmetic, memory and link speed.

    `link_bytes_per_s` is one direction to another GPU of its node (NVLink, or PCIe where it has none).
    """

    name: str
    memory_bytes: int
    flops: float
    bytes_per_s: float
    link_bytes_per_s: float


def _gpu(name: str, mib: int, memory_gb_s: float, link_gb_s: float) -> Gpu:
    return Gpu(
        name=name,
        memory_bytes=mib << 20,
        flops=peak_flops(name, "bfloat16") or 0.0,
        bytes_per_s=memory_gb_s * GB,
        link_bytes_per_s=link_gb_s * GB,
    )


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("A100-40", 40_000, 1555, 300),
        _gpu("A100-80", 80_500, 2039, 300),
        _gpu("A800", 80_500, 2039, 200),
        _gpu("L40S", 45_400, 864, 32),
        _gpu("H100", 80_500, 3350, 450),
        _gpu("H200", 142_500, 4800, 450),
    )
}
"""By name. A little less memory than drivers report, who count what programs cannot have."""
DEFAULT_GPU = "H100"
