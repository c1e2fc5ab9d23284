"""Faults that have a moment, and wishes from outside: what strikes a life of the driver from without."""

import asyncio
import time
from typing import TYPE_CHECKING

from simulation.seams import SimulatedControl

if TYPE_CHECKING:
    from simulation.world import World

HEAD = "node-0"
"""The driver's node; it is lost with the driver only."""


class Happenings:
    """Brings about the faults of one life that have a moment."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._chance = world.chance
        self.nodes = [HEAD, "node-1", "node-2"]
        self.gang_node = HEAD

    async def run(self) -> None:
        """Bring them about, one after another."""
        loop, faults = asyncio.get_running_loop(), self._world.faults
        start_s = loop.time()
        for moment_s, name in sorted(faults.moments):
            await asyncio.sleep(start_s + moment_s - loop.time())
            if self._happens(name):
                self._world.say(f"FAULT {name}")
                faults.strike(name)

    def roomy_nodes(self) -> list[str]:
        """Nodes that workers may be placed on."""
        return [node for node in self.nodes if node not in self._world.system.draining_ms]

    def place_gang(self) -> float:
        """Choose the learner's node; how long the gang waits for its place there, s."""
        self.gang_node = self._chance.choice(self.roomy_nodes())
        is_full = self._world.fault_at("learner.place") == "no room for the learner"
        return self._chance.uniform(5.0, 100.0) if is_full else 0.0

    def _happens(self, name: str) -> bool:
        world = self._world
        if name in ("driver is killed", "power is cut"):
            world.kill_driver(name)
        elif name.startswith("run is told"):
            return self._told(name)
        elif name.endswith("are resized"):
            return self._resized(name)
        elif name.startswith("node"):
            return self._node_goes(self._chance.uniform(5.0, 120.0) if name == "node is drained" else None)
        else:
            return self._strikes_idle(name)
        return True

    def _told(self, name: str) -> bool:
        loop = self._world.loop
        if name == "run is told to stop by command":
            control = self._control()
            if control is not None:
                loop.create_task(control.control.stop())
            return control is not None
        if name == "run is told twice to stop":
            loop.call_later(self._chance.uniform(0.6, 20.0), loop.signalled)
        loop.signalled()
        return True

    def _resized(self, name: str) -> bool:
        control, num_wanted = self._control(), self._chance.randint(1, 5)
        if control is None:
            return False
        is_rollout = name.startswith("engines")
        self._world.say(f"{num_wanted} wanted")
        scale = control.control.scale(num_wanted if is_rollout else None, None if is_rollout else num_wanted)
        self._world.loop.create_task(scale)
        return True

    def _control(self) -> SimulatedControl | None:
        living = [
            each.implementation
            for each in self._world.system.processes
            if each.is_alive and isinstance(each.implementation, SimulatedControl)
        ]
        return living[-1] if living else None

    def _strikes_idle(self, name: str) -> bool:
        role = name.split()[1]
        processes = self._world.system.processes
        living = [each for each in processes if each.is_alive and each.name.startswith(role)]
        if not living:
            return False
        victim = self._chance.choice(living)
        if name.endswith("hangs"):
            victim.freeze()
        else:
            victim.die(name)
        return True

    def _node_goes(self, deadline_s: float | None) -> bool:
        """A node that is not the head leaves, at once or after notice; another one joins."""
        nodes = [node for node in self.roomy_nodes() if node != HEAD]
        if not nodes:
            return False
        node, system = self._chance.choice(nodes), self._world.system
        self.nodes.append(f"node-{len(self.nodes)}-{self._world.report.num_lives}")

        def leave() -> None:
            system.lose_node(node)
            self.nodes.remove(node)

        if deadline_s is None:
            leave()
        else:
            self._world.say(f"{node} leaves in {deadline_s:.0f} s")
            system.draining_ms[node] = (time.time() + deadline_s) * 1000
            self._world.loop.call_later(deadline_s, leave)
        return True
