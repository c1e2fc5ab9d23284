"""What is taken away from a planner's input, to see whether it is used: `alphadrive eval --ablate`.

    image=blank        a grey image of the same size
    image=shuffle      the image of another row
    navigation=none    the prompt says that the navigation command is 'no navigation'
    speed=none         the prompt says that the current speed is unknown

Each is one input changed and everything else left as it is. A planner that uses an input is worse without
it. Reading the option only; `alphadrive.image_controls` makes the images, `alphadrive.prompts` the words.
"""

from dataclasses import dataclass, replace

from alphadrive.errors import ConfigError
from alphadrive.types import DrivingQuery

CHOICES = {"image": ("blank", "shuffle"), "navigation": ("none",), "speed": ("none",)}
SYNTAX = ",".join(f"{field}={'|'.join(values)}" for field, values in CHOICES.items())


@dataclass(frozen=True, slots=True, order=True)
class Ablation:
    """One input changed: `image`, `navigation` or `speed`, and what stands in its place."""

    field: str
    value: str

    def __str__(self) -> str:
        return f"{self.field}={self.value}"

    def __post_init__(self) -> None:
        if self.value not in CHOICES.get(self.field, ()):
            raise ConfigError(f"--ablate {self}: expected some of {SYNTAX}")

    def of(self, query: DrivingQuery) -> DrivingQuery:
        """The query with the input withheld from the prompt; the same for an image."""
        if self.field == "image":
            return query
        return replace(query, withheld=query.withheld | {self.field})


def parse_ablations(texts: list[str]) -> tuple[Ablation, ...]:
    """Read `image=blank|shuffle,navigation=none`: one ablation a value, each once, in their order.

    Raises ConfigError naming what there is.
    """
    found = []
    for item in ",".join(texts).split(",") if texts else []:
        field, _, values = item.strip().partition("=")
        found += [Ablation(field, value.strip()) for value in values.split("|")]
    return tuple(dict.fromkeys(found))
