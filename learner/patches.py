"""Pixel values of 8-bit patches, made where the model is: on the host they are an eighth of the size.

    uint8 (patches, C * p * p) ──table of 256 values a channel──▶ float32 (patches, C * frames * p * p)

The table is read off the image processor itself, so that the values are its own to the bit.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alphadrive.processing import PromptProcessor

CHANNELS = 3
LEVELS = 256


@dataclass(frozen=True, slots=True)
class PatchTable:
    """What the image processor makes of each level of each channel, (C, 256) float32. A single image
    stands for `num_frames` equal frames."""

    values_CL: Tensor
    num_frames: int

    @classmethod
    def of(cls, processor: PromptProcessor) -> Self:
        """The table of a model folder's image processor."""
        side = processor.patch_size * processor.merge_size
        ramp = np.resize(np.arange(LEVELS, dtype=np.uint8), (side, side))
        image = np.repeat(ramp[:, :, None], CHANNELS, axis=2)
        pixel_values, _ = processor.pixels(Image.fromarray(image))
        patches, _ = processor.raw_patches(image)
        num_frames = pixel_values.shape[1] // patches.shape[1]
        values = pixel_values.reshape(len(patches), CHANNELS, num_frames, -1)[:, :, 0]
        levels = patches.reshape(len(patches), CHANNELS, -1)
        table = np.full((CHANNELS, LEVELS), np.nan, dtype=np.float32)
        for channel in range(CHANNELS):
            table[channel, levels[:, channel]] = values[:, channel]
        return cls(torch.from_numpy(table), num_frames)

    def pixel_values(self, patches: Tensor) -> Tensor:
        """(patches, C * p * p) uint8 to (patches, C * frames * p * p) float32, on the same device."""
        table_CL = self.values_CL.to(patches.device)
        levels = patches.view(len(patches), CHANNELS, -1)
        frame = torch.stack(
            [table_CL[channel][levels[:, channel].int()] for channel in range(CHANNELS)], dim=1
        )
        return frame[:, :, None].expand(-1, -1, self.num_frames, -1).reshape(len(patches), -1)
