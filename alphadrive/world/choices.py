"""What may be asked of the world, as names: loaded by the command line, so nothing heavy is imported.

plain            every combination, as for training
counterfactual   two rows a scene, which differ in one deciding fact
familiar         none of the withheld combinations
withheld         one of them at least
ood-camera       the scenes of `plain`, from an unfamiliar camera
ood-textures     ..., with unfamiliar surfaces
ood-weather      ..., in rain, fog or snow stronger than any in training

balanced         each recorded plan has a share that leaves no plan rare
boreas           the shares of real drives
"""

from typing import Literal, get_args

Kind = Literal["plain", "counterfactual", "familiar", "withheld", "ood-camera", "ood-textures", "ood-weather"]
Frequencies = Literal["balanced", "boreas"]

KINDS: tuple[Kind, ...] = get_args(Kind)
FREQUENCIES: tuple[Frequencies, ...] = get_args(Frequencies)
