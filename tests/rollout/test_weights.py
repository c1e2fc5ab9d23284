"""The digest both sides of a weight update compute."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from alphadrive.errors import WeightSyncError
from alphadrive.weights import CHUNK_BYTES, WeightDigest, dtype_name, file_sha256

TENSORS = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.weight": np.array([1.5, -2.0], dtype=np.float16),
    "c.scalar": np.array(7, dtype=np.int64),
}


def digest_of(tensors: dict[str, np.ndarray]) -> str:
    digest = WeightDigest()
    for name in sorted(tensors):
        array = tensors[name]
        digest.add(name, dtype_name(array.dtype), array.shape, array.tobytes())
    return digest.hexdigest()


def test_the_digest_is_the_documented_sha256() -> None:
    digest = WeightDigest()
    digest.add("w", "F32", (1,), b"\0\0\x80\x3f")
    assert digest.hexdigest() == hashlib.sha256(b'["w", "F32", [1], 4]\n\0\0\x80\x3f').hexdigest()
    assert (digest.num_tensors, digest.num_bytes) == (1, 4)


@pytest.mark.parametrize("more", [0, 1, 3 * CHUNK_BYTES + 5])
def test_of_a_large_tensor_the_digests_of_its_chunks_are_digested(more: int) -> None:
    data = np.arange(CHUNK_BYTES + more, dtype=np.uint8)
    digest = WeightDigest()
    digest.add("w", "U8", data.shape, data)
    chunks = [data[start : start + CHUNK_BYTES].tobytes() for start in range(0, data.size, CHUNK_BYTES)]
    body = b"".join(hashlib.sha256(chunk).digest() for chunk in chunks) if more else chunks[0]
    header = f'["w", "U8", [{data.size}], {data.size}]\n'.encode()
    assert digest.hexdigest() == hashlib.sha256(header + body).hexdigest()
    last_changed = data.copy()
    last_changed[-1] ^= 1
    assert digest_of({"w": last_changed}) != digest_of({"w": data})


def test_a_file_has_the_digest_of_its_tensors(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "w.safetensors", metadata={"format": "pt"})
    assert file_sha256(tmp_path / "w.safetensors") == digest_of(TENSORS)


@pytest.mark.parametrize(
    "changed",
    [
        TENSORS | {"b.weight": TENSORS["b.weight"] + np.float32(1e-6)},
        TENSORS | {"b.weight": TENSORS["b.weight"].reshape(3, 2)},
        TENSORS | {"c.scalar": TENSORS["c.scalar"].astype(np.uint8)},
        {name: array for name, array in TENSORS.items() if name != "c.scalar"},
        {("d" + name[1:] if name[0] == "a" else name): array for name, array in TENSORS.items()},
    ],
    ids=["value", "shape", "dtype", "missing", "name"],
)
def test_any_difference_changes_the_digest(changed: dict[str, np.ndarray]) -> None:
    assert digest_of(changed) != digest_of(TENSORS)


def test_names_out_of_order_and_unknown_dtypes_are_refused() -> None:
    digest = WeightDigest()
    digest.add("b", "F32", (0,), b"")
    with pytest.raises(WeightSyncError, match="out of order"):
        digest.add("a", "F32", (0,), b"")
    with pytest.raises(WeightSyncError, match="complex64"):
        dtype_name("torch.complex64")


def test_a_torch_bfloat16_tensor_and_its_file_agree(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch_file

    tensor = torch.tensor([[1.0, -3.5], [0.25, 9.0]], dtype=torch.bfloat16)
    digest = WeightDigest()
    digest.add("w", dtype_name(tensor.dtype), tensor.shape, tensor.flatten().view(torch.uint8).numpy())
    save_torch_file({"w": tensor}, tmp_path / "w.safetensors")
    assert digest.hexdigest() == file_sha256(tmp_path / "w.safetensors")


@pytest.mark.parametrize("damage", ["missing", "cut", "text"])
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(TENSORS, path)
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[:-4] if damage == "cut" else b"not a safetensors file")
    with pytest.raises(WeightSyncError, match=r"w\.safetensors"):
        file_sha256(path)
