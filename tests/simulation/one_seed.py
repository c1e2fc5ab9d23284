"""Simulating one seed, with the log where it is wanted."""

import logging
import traceback
import warnings

from simulation.faults import Kind
from simulation.loop import OrderedTask
from simulation.report import Report
from simulation.world import World


def simulate(seed: int, kinds: tuple[Kind, ...], *, with_logs: bool = False) -> Report:
    """Simulate one seed; `with_logs` adds what the shipped code logs to the trace."""
    world = World(seed, kinds)
    OrderedTask.count = 0
    handler = _LogToTrace(world)
    root = logging.getLogger()
    was_disabled, level = logging.root.manager.disable, root.level
    logging.disable(logging.NOTSET if with_logs else logging.CRITICAL)
    if with_logs:
        root.addHandler(handler)
        root.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            # Of a driver that is killed before it awaits what it has made.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            return world.run()
    except Exception as error:
        world.say(traceback.format_exc())
        world.report.violations = [f"the simulation itself failed: {type(error).__name__}: {error}"]
        return world.report
    finally:
        logging.disable(was_disabled)
        root.setLevel(level)
        root.removeHandler(handler)


class _LogToTrace(logging.Handler):
    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        self._world.say(f"log: {record.getMessage()}")
