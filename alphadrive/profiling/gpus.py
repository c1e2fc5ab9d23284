"""What a GPU can do at most: dense matrix products, operations a second, from the makers' data sheets."""

import re

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
