"""What GPUs hold and do at most, from their makers' data sheets."""

from dataclasses import dataclass

GB = 10**9


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


def _gpu(name: str, mib: int, tflops: float, memory_gb_s: float, link_gb_s: float) -> Gpu:
    return Gpu(
        name=name,
        memory_bytes=mib << 20,
        flops=tflops * 1e12,
        bytes_per_s=memory_gb_s * GB,
        link_bytes_per_s=link_gb_s * GB,
    )


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("A100-40", 40_000, 312, 1555, 300),
        _gpu("A100-80", 80_500, 312, 2039, 300),
        _gpu("A800", 80_500, 312, 2039, 200),
        _gpu("L40S", 45_400, 362, 864, 32),
        _gpu("H100", 80_500, 989, 3350, 450),
        _gpu("H200", 142_500, 989, 4800, 450),
    )
}
"""By name. A little less memory than drivers report, who count what programs cannot have."""
DEFAULT_GPU = "H100"
