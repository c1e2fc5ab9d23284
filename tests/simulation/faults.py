"""What goes wrong in a life of the driver: planned from the seed, counted when it happens.

A fault belongs to a place (a method of an actor, a change of the disk, a kill) and strikes the nth time
the place is passed; or it has a moment. Faults of rows (a poison query) belong to the world's data.
"""

import random
from collections import Counter, defaultdict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """A fault: its name, the place where it strikes, and within how many passes of it."""

    name: str
    place: str
    within: int


KINDS = (
    Kind("engine dies starting", "engine.start", 5),
    Kind("engine hangs starting", "engine.start", 5),
    Kind("engine dies drawing", "engine.generate", 30),
    Kind("engine hangs drawing", "engine.generate", 30),
    Kind("engine stalls drawing", "engine.generate", 30),
    Kind("engine is slow", "engine.generate", 30),
    Kind("engine fails a query", "engine.generate", 30),
    Kind("engine dies in its canary", "engine.canary", 12),
    Kind("engine dies in its canary", "engine.update_weights", 12),
    Kind("engine hangs in its canary", "engine.canary", 12),
    Kind("engine hangs in its canary", "engine.update_weights", 12),
    Kind("engine dies in an evaluation", "engine.answer", 6),
    Kind("engine hangs drawing", "engine.answer", 6),
    Kind("engine dies updating", "engine.update_weights", 12),
    Kind("engine hangs updating", "engine.update_weights", 12),
    Kind("engine updates slowly", "engine.update_weights", 12),
    Kind("engine refuses an update", "engine.update_weights", 12),
    Kind("weights do not arrive", "engine.update_weights", 12),
    Kind("weights arrive damaged", "engine.update_weights", 12),
    Kind("weights arrive and are not used", "engine.update_weights", 12),
    Kind("weights arrive and are not used", "engine.update_weights", 4),
    Kind("call runs twice", "engine.generate", 30),
    Kind("call runs twice", "engine.update_weights", 12),
    Kind("call runs twice", "reward.score", 30),
    Kind("reply is late", "engine.generate", 30),
    Kind("reply is late", "engine.update_weights", 12),
    Kind("reply is late", "reward.score", 30),
    Kind("reply is lost", "engine.generate", 30),
    Kind("reply is lost", "engine.update_weights", 12),
    Kind("reply is lost", "reward.score", 30),
    Kind("engine core dies", "engine.generate", 30),
    Kind("engine core dies", "engine.update_weights", 12),
    Kind("engine answers with another ticket", "engine.generate", 30),
    Kind("engine answers another query", "engine.generate", 30),
    Kind("engine answers with a short group", "engine.generate", 30),
    Kind("engine answers of another version", "engine.generate", 30),
    Kind("engine raises something odd", "engine.generate", 30),
    Kind("no room for a worker", "engine.where", 5),
    Kind("no room for a worker", "reward.where", 5),
    Kind("kill is slow", "kill", 3),
    Kind("reward worker dies", "reward.score", 30),
    Kind("reward worker dies starting", "reward.where", 4),
    Kind("reward hangs", "reward.score", 30),
    Kind("reward is slow", "reward.score", 30),
    Kind("reward worker hangs writing", "reward.flush", 2),
    Kind("reward raises", "reward.score", 30),
    Kind("learner rank dies", "learner.step", 10),
    Kind("learner rank dies after its step", "learner.step", 10),
    Kind("learner rank dies", "learner.logprob_differences", 12),
    Kind("learner rank dies exporting", "learner.export_weights", 12),
    Kind("learner rank dies", "learner.start", 4),
    Kind("learner rank dies", "learner.save", 6),
    Kind("learner rank dies", "learner.load", 2),
    Kind("learner rank hangs", "learner.step", 10),
    Kind("learner rank hangs", "learner.export_weights", 12),
    Kind("learner rank hangs", "learner.save", 6),
    Kind("learner rank hangs", "learner.logprob_differences", 12),
    Kind("learner rank raises", "learner.step", 10),
    Kind("no room for the learner", "learner.place", 2),
    Kind("step is not finite", "learner.step", 10),
    Kind("step is not finite", "learner.step", 10),
    Kind("disk is full", "disk.checkpoint", 120),
    Kind("disk is full", "disk.records", 200),
    Kind("driver is killed", "disk.checkpoint", 120),
    Kind("power is cut", "disk.checkpoint", 120),
    Kind("driver is killed", "disk.records", 200),
    Kind("power is cut", "disk.records", 200),
    Kind("power is cut", "disk.records", 200),
    Kind("power is cut", "disk.records", 60),
    Kind("driver is killed", "disk.summary", 8),
    Kind("driver is killed", "moment", 60),
    Kind("power is cut", "moment", 60),
    Kind("run is told to stop", "moment", 60),
    Kind("run is told to stop", "moment", 12),
    Kind("run is told twice to stop", "moment", 60),
    Kind("run is told to stop by command", "moment", 60),
    Kind("engines are resized", "moment", 60),
    Kind("engines are resized", "moment", 60),
    Kind("reward workers are resized", "moment", 60),
    Kind("node is drained", "moment", 60),
    Kind("node is drained", "moment", 30),
    Kind("node is lost", "moment", 60),
    Kind("idle engine dies", "moment", 60),
    Kind("idle engine hangs", "moment", 60),
    Kind("idle reward worker dies", "moment", 60),
    Kind("idle learner rank dies", "moment", 60),
    Kind("idle learner rank hangs", "moment", 60),
    Kind("idle control actor dies", "moment", 60),
)


class Faults:
    """The faults of one life. `injected` counts what struck, over all lives."""

    def __init__(
        self, chance: random.Random, num_faults: int, injected: Counter[str], kinds: tuple[Kind, ...]
    ) -> None:
        self.struck: Counter[str] = Counter()
        self.moments: list[tuple[float, str]] = []
        self._injected = injected
        self._planned: defaultdict[str, dict[int, str]] = defaultdict(dict)
        self._passes: Counter[str] = Counter()
        for _ in range(num_faults):
            kind = chance.choice(kinds)
            if kind.place == "moment":
                self.moments.append((chance.uniform(0, kind.within), kind.name))
            else:
                self._planned[kind.place][chance.randrange(kind.within)] = kind.name

    def at(self, place: str) -> str | None:
        """The fault of this pass of a place, counted as injected."""
        number = self._passes[place]
        self._passes[place] += 1
        name = self._planned[place].get(number) if place in self._planned else None
        if name is not None:
            self.strike(name)
        return name

    def strike(self, name: str) -> None:
        """Count a fault."""
        self.struck[name] += 1
        self._injected[name] += 1

    def any_of(self, *names: str) -> bool:
        """Whether one of these struck in this life."""
        return any(self.struck[name] for name in names)
