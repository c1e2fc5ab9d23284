"""Tensors of several dtypes, packed and sent in tests of transfers."""

import torch

from alphadrive.types import WeightVersion
from alphadrive.weight_layout import TensorMeta, WeightLayout
from alphadrive.weights import WeightDigest, dtype_name


def make_tensors(seed=0, num=9, size=100_000):
    random = torch.Generator().manual_seed(seed)
    dtypes = [torch.float32, torch.bfloat16, torch.float16]
    tensors = {
        f"layer.{index}.weight": torch.randn(index + 1, size, generator=random).to(dtypes[index % 3])
        for index in range(num)
    }
    return tensors | {
        "a.scalar": torch.tensor(3.5),
        "z.empty": torch.empty(0, 4),
        "z.mask": torch.ones(3).bool(),
    }


def layout_of(tensors, attempt, step):
    metas = (
        TensorMeta(name, str(tensors[name].dtype).removeprefix("torch."), tuple(tensors[name].shape))
        for name in sorted(tensors)
    )
    return WeightLayout(WeightVersion(attempt, step), tuple(metas), 300_000)


def digest_of(tensors):
    digest = WeightDigest()
    for name in sorted(tensors):
        tensor = tensors[name]
        raw = tensor.contiguous().flatten().view(torch.uint8).numpy()
        digest.add(name, dtype_name(tensor.dtype), tuple(tensor.shape), raw)
    return digest.hexdigest()


def buckets_of(sender, tensors):
    for bucket in sender._layout.buckets:
        yield [tensors[slot.tensor.name] for slot in bucket]
