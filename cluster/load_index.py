"""The serving engines by how many groups they draw, for `cluster.dispatch`: the least loaded is at the top.

A heap of (groups under way, number of the engine). Every change of an engine is noted with a new entry;
entries that are no longer true are dropped when they come to the top, and all of them when they are too
many. So a choice costs about the same among thousands of engines as among ten.
"""

import heapq
from collections.abc import Callable, Sequence

from cluster.engine_handle import Engine
from cluster.workers import WorkerState

Entry = tuple[int, int, int, Engine]
SPARE_ENTRIES = 64


def is_open(engine: Engine, owner: object) -> bool:
    """Whether an engine is given groups now: those of `owner` that it is reserved for, or (None) of all."""
    return engine.reserved_for is owner and engine.state is WorkerState.SERVING


class LoadIndex:
    """`engines` tells those that there are, the oldest first."""

    def __init__(self, engines: Callable[[], Sequence[Engine]]) -> None:
        self._engines = engines
        self._entries: list[Entry] = []
        self._num_notes = 0

    def note(self, engine: Engine) -> None:
        """An engine's state, groups or reservation have changed."""
        if is_open(engine, None):
            self._num_notes += 1
            heapq.heappush(self._entries, (engine.num_under_way, engine.number, self._num_notes, engine))
            if len(self._entries) > 4 * len(self._engines()) + SPARE_ENTRIES:
                self._rebuild()

    def least_loaded(self, avoided: object = None) -> Engine | None:
        """The engine with the fewest groups under way, the oldest of several; `avoided` only where there is
        no other. None when no engine serves."""
        engine = self._top()
        if engine is None or engine is not avoided:
            return engine
        entry = heapq.heappop(self._entries)
        while (other := self._top()) is engine:
            heapq.heappop(self._entries)
        heapq.heappush(self._entries, entry)
        return other or engine

    def _top(self) -> Engine | None:
        while self._entries:
            num_under_way, _, _, engine = self._entries[0]
            if num_under_way == engine.num_under_way and is_open(engine, None):
                return engine
            heapq.heappop(self._entries)
        return None

    def _rebuild(self) -> None:
        self._entries = [
            (engine.num_under_way, engine.number, number, engine)
            for number, engine in enumerate(self._engines())
            if is_open(engine, None)
        ]
        self._num_notes = len(self._entries) + len(self._engines())
        heapq.heapify(self._entries)
