"""What the language model sees of images: run through the vision tower, or kept where that is frozen.

    reader thread   known(row) ──▶ features instead of pixels in the batch: nothing is decoded for it
    main thread     of(batch)  ──▶ given or kept features; the tower runs for the rest, which is then kept

A trained tower changes with every optimizer step, so nothing is kept of it (`learner.policy`). Under ZeRO-3
a forward of the tower is a collective: a rank that needs none joins in with a dummy when another one does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.batch import Grid, TokenBatch
from learner.byte_cache import ByteCache

Tower = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""Pixel values (patches, dim) and grids (images, 3) to the features (V, D) of every image."""
Agreement = Callable[[bool], bool]
"""Whether any rank says yes; every rank asks together."""


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """One image: its features (V, D) on the CPU, in the model's dtype, and its grid in patches."""

    features_VD: Tensor
    grid: Grid

    @property
    def nbytes(self) -> int:
        """Bytes of the features."""
        return self.features_VD.nbytes


class FrozenFeatures:
    """Features by image of one frozen tower, at most `budget_bytes` of them.

    Whatever changes the tower's weights calls `forget`. `any_rank` is given under ZeRO-3 only.
    """

    def __init__(self, budget_bytes: int, any_rank: Agreement | None = None) -> None:
        self._kept: ByteCache[ImageFeatures] = ByteCache(budget_bytes)
        self._any_rank = any_rank

    def known(self, key: int) -> ImageFeatures | None:
        """The features of an image, if they are kept. Safe to call from any thread."""
        return self._kept.get(key)

    def forget(self) -> None:
        """Drop all features: the tower's weights are not those they were computed with."""
        self._kept.clear()

    def of(self, batch: TokenBatch, tower: Tower, dummy: Callable[[], object]) -> Tensor:
        """The features of a pack's images in order, (V, D) on the pack's device.

        `dummy` runs the tower on nothing of interest, see above.
        """
        device = batch.image_grid_thw.device
        features = list(batch.image_features)
        for index, key in enumerate(batch.image_keys):
            if features[index] is None and key is not None and (known := self.known(key)) is not None:
                features[index] = known.features_VD.to(device, non_blocking=True)
        missing = [index for index, given in enumerate(features) if given is None]
        is_pass_due = self._any_rank(bool(missing)) if self._any_rank else bool(missing)
        with torch.no_grad():
            if missing:
                grids = batch.image_grid_thw[missing]
                for index, computed, grid in zip(
                    missing, tower(_pixels_of(batch, missing), grids), grids.tolist(), strict=True
                ):
                    features[index] = computed
                    self._keep(batch.image_keys[index], computed, grid)
            elif is_pass_due:
                dummy()
        return torch.cat([given for given in features if given is not None])

    def _keep(self, key: int | None, features_VD: Tensor, grid: list[int]) -> None:
        if key is not None:
            time, height, width = grid
            # A copy of its own: what comes out of the tower is a view of the whole microbatch's.
            kept = features_VD.to("cpu", copy=True)
            self._kept.put(key, ImageFeatures(kept, (time, height, width)))


def _pixels_of(batch: TokenBatch, images: Sequence[int]) -> Tensor:
    """The patches of some of the pack's images; all of them came with pixels."""
    with_pixels = [index for index, given in enumerate(batch.image_features) if given is None]
    assert batch.pixel_values is not None
    if list(images) == with_pixels:
        return batch.pixel_values
    sizes = batch.image_grid_thw[with_pixels].prod(-1).tolist()
    parts = dict(zip(with_pixels, batch.pixel_values.split(sizes), strict=True))
    return torch.cat([parts[index] for index in images])
