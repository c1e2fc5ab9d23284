"""Which rows a scene of each kind gives, and where it comes from. The kinds are told in `choices`."""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass

from alphadrive.actions import Plan
from alphadrive.errors import ConfigError
from alphadrive.world.choices import Frequencies, Kind
from alphadrive.world.counterfactual import FACTS, sample_pair
from alphadrive.world.frequencies import plan_shares
from alphadrive.world.look import USUAL_LOOK, Look, Shift, unfamiliar
from alphadrive.world.sampling import sample_scene
from alphadrive.world.scene import Scene, Weather
from alphadrive.world.withheld import familiar, with_combination

_SPLIT_SPACE = {"base": 0, "train": 1, "eval": 2}
_STRONG_WEATHER: tuple[Weather, ...] = ("rain", "fog", "snow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """Where scenes come from: their kind, how often each plan is drawn, the split and its seed."""

    kind: Kind
    frequencies: Frequencies
    split: str
    seed: int

    def __post_init__(self) -> None:
        if self.kind in ("counterfactual", "withheld") and self.frequencies != "balanced":
            raise ConfigError(
                f"--kind {self.kind} with --frequencies {self.frequencies}: what such a scene must show "
                "decides which plans it has; leave --frequencies out, or choose another kind"
            )

    @property
    def _tags(self) -> list[str]:
        """What tells the scenes apart from the plain balanced ones of the same split and seed."""
        kind = [] if self.kind == "plain" or self.kind.startswith("ood-") else [self.kind]
        return kind + ([] if self.frequencies == "balanced" else [self.frequencies])

    def scene_id(self, index: int) -> str:
        """The name of a scene; out-of-distribution kinds show the scenes of `plain`, under their names."""
        return "-".join(["world", *self._tags, self.split, str(self.seed), f"{index:06d}"])

    def scene_seed(self, index: int) -> int:
        """The seed of a scene, one that no other population has (see `scene_seed`)."""
        return scene_seed(self.seed, "+".join([self.split, *self._tags]), index)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One row to be: a scene, the plan recorded in it and how it is painted. `mark` sets its query apart
    from others of the scene, `remark` goes into the row's source; both "" for a plain scene."""

    scene: Scene
    recorded: Plan
    look: Look = USUAL_LOOK
    mark: str = ""
    remark: str = ""


def scene_seed(seed: int, split: str, index: int) -> int:
    """The seed of one scene. The splits `base`, `train` and `eval` never share one, whatever `seed`;
    any other split name gets a space of its own."""
    space = _SPLIT_SPACE.get(split)
    if space is None:
        space = 3 + random.Random(split).randrange(1 << 20)
    return ((space << 24) + seed << 32) + index


def views(population: Population, index: int) -> Sequence[View]:
    """The rows of scene `index`: two of a counterfactual pair, one of any other kind."""
    kind, number = population.kind, population.scene_seed(index)
    shares = plan_shares(population.frequencies)
    if kind == "counterfactual":
        fact = FACTS[index % len(FACTS)]
        return [
            View(
                scene=scene,
                recorded=plan,
                mark=f"#{fact.name}={fact.value(scene)}",
                remark=f" counterfactual: {fact.name}",
            )
            for scene, plan in sample_pair(number, fact)
        ]
    if kind == "withheld":
        combination, adapt = with_combination(index)
        scene, plan = sample_scene(number, shares, adapt)
        return [View(scene=scene, recorded=plan, remark=f" withheld: {combination.name}")]
    scene, plan = sample_scene(number, shares, familiar if kind == "familiar" else None)
    if not kind.startswith("ood-"):
        return [View(scene=scene, recorded=plan)]
    return [_out_of_distribution(kind, scene, plan, random.Random(f"{kind}-{number}"))]


def _out_of_distribution(kind: Kind, scene: Scene, plan: Plan, rng: random.Random) -> View:
    shifts: dict[Kind, Shift] = {
        "ood-camera": "camera",
        "ood-textures": "textures",
        "ood-weather": "weather",
    }
    if kind == "ood-weather" and scene.weather == "clear":
        scene = dataclasses.replace(scene, weather=rng.choice(_STRONG_WEATHER))
    look = unfamiliar(shifts[kind], rng)
    return View(scene=scene, recorded=plan, look=look, mark=f"#{kind}", remark=f" {kind}")
