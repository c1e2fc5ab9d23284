"""The digest of a set of weights: computed by the learner when it exports, by every engine when it receives.

Only bytes, names, dtypes and shapes are here, so that a process without torch can check a file. The
digest is of the tensors, not of the file that carried them: how a file orders or pads them is
no part of it.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from alphadrive.errors import WeightSyncError

SAFETENSORS_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}

CHUNK_BYTES = 4 << 20
MAX_THREADS = 8


def dtype_name(dtype: object) -> str:
    """The name of a torch or numpy dtype in a safetensors file: `torch.bfloat16` is `BF16`.

    Raises WeightSyncError for a dtype that weights do not have.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in SAFETENSORS_DTYPES:
        raise WeightSyncError(f"weights of dtype {name}; expected one of {', '.join(SAFETENSORS_DTYPES)}")
    return SAFETENSORS_DTYPES[name]


class WeightDigest:
    """SHA-256 over tensors in ascending order of their names: name, dtype, shape, raw little-endian bytes.

    Of tensors above `CHUNK_BYTES` the digests of their chunks stand for the bytes, which several threads
    compute: engines are paused meanwhile (`benchmarks/digest.py` says how fast one core is).

    >>> digest = WeightDigest()
    >>> digest.add("lm.weight", "F32", (2,), np.zeros(2, np.float32).tobytes())
    >>> len(digest.hexdigest())
    64
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._threads: ThreadPoolExecutor | None = None
        self._last_name = ""
        self.num_tensors = 0
        self.num_bytes = 0

    def add(self, name: str, dtype: str, shape: Sequence[int], data: bytes | npt.NDArray[np.uint8]) -> None:
        """Take one tensor: its safetensors dtype name and its contiguous bytes.

        For a torch tensor the bytes are `tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()`.
        Raises WeightSyncError when a name does not come after the one before it.
        """
        if self.num_tensors and name <= self._last_name:
            raise WeightSyncError(
                f"weights out of order: {name!r} after {self._last_name!r}; sort them by name"
            )
        raw = memoryview(data) if isinstance(data, bytes) else data.data
        header = json.dumps([name, dtype, [int(size) for size in shape], raw.nbytes])
        self._hash.update(header.encode() + b"\n")
        self._hash.update(raw if raw.nbytes <= CHUNK_BYTES else self._chunk_digests(raw))
        self._last_name = name
        self.num_tensors += 1
        self.num_bytes += raw.nbytes

    def _chunk_digests(self, raw: memoryview) -> bytes:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(MAX_THREADS, "digest")
        chunks = (raw[start : start + CHUNK_BYTES] for start in range(0, raw.nbytes, CHUNK_BYTES))
        return b"".join(self._threads.map(lambda chunk: hashlib.sha256(chunk).digest(), chunks))

    def hexdigest(self) -> str:
        """The digest of what was added so far."""
        return self._hash.hexdigest()


class StoredTensor(NamedTuple):
    """One tensor of a safetensors file. `data` is its bytes, mapped from the file, not copied."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]


def stored_tensors(path: Path | str) -> Iterator[StoredTensor]:
    """The tensors of a safetensors file in ascending order of their names.

    Raises WeightSyncError when the file is missing or is not a whole safetensors file.
    """
    try:
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
        header_end = 8 + int.from_bytes(mapped[:8].tobytes(), "little")
        header = json.loads(mapped[8:header_end].tobytes())
        header.pop("__metadata__", None)
        entries = [(name, header[name]) for name in sorted(header)]
        size = header_end + max((entry["data_offsets"][1] for _, entry in entries), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightSyncError(f"{path}: not readable as a safetensors file: {error}") from error
    if size != mapped.size:
        raise WeightSyncError(f"{path}: {mapped.size} bytes, expected {size} from its header; it is cut off")
    for name, entry in entries:
        start, end = (header_end + offset for offset in entry["data_offsets"])
        yield StoredTensor(name, entry["dtype"], tuple(entry["shape"]), mapped[start:end])


def file_sha256(path: Path | str) -> str:
    """The digest (see `WeightDigest`) of the tensors in a safetensors file."""
    digest = WeightDigest()
    for tensor in stored_tensors(path):
        digest.add(tensor.name, tensor.dtype, tensor.shape, tensor.data)
    return digest.hexdigest()
