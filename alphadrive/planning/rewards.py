"""The reward workers, in virtual time: what waits goes to the next idle one, 20 ms of it at once."""

from collections import deque
from collections.abc import Callable

import numpy as np

from alphadrive.planning.clock import Clock, SimulatedDriver
from alphadrive.planning.measured import Measured
from alphadrive.planning.workload import SimulatedGroup

BATCH_S, PERIOD_S = 0.02, 0.004
"""Both as `cluster.reward_pool`."""


class SimulatedRewards:
    """Scores groups and tells `scored` of each."""

    def __init__(
        self,
        clock: Clock,
        driver: SimulatedDriver,
        measured: Measured,
        num_workers: int,
        random: np.random.Generator,
        scored: Callable[[SimulatedGroup], None],
    ) -> None:
        self._clock, self._driver, self._measured, self._random = clock, driver, measured, random
        self._scored = scored
        self._num_idle = num_workers
        self._waiting: deque[SimulatedGroup] = deque()
        self._group_s = BATCH_S
        self._handed_out_s = float("-inf")
        self._is_handing_out = False

    def score(self, group: SimulatedGroup) -> None:
        """Have a group scored, with what else waits then."""
        self._waiting.append(group)
        self._hand_out_soon()

    def _hand_out_soon(self) -> None:
        if not self._is_handing_out:
            self._is_handing_out = True
            self._clock.at(self._handed_out_s + PERIOD_S, self._hand_out)

    def _hand_out(self) -> None:
        self._is_handing_out = False
        costs = self._measured.driver
        while self._num_idle and self._waiting:
            self._num_idle -= 1
            self._handed_out_s = self._clock.now_s
            number = min(len(self._waiting), max(1, int(np.ceil(BATCH_S / self._group_s))))
            batch = [self._waiting.popleft() for _ in range(number)]
            seconds = float(self._random.choice(self._measured.score_s, number).sum())
            self._group_s = max(1e-6, (self._group_s + seconds / number) / 2)
            self._driver.do(costs.call_s, self._send, batch, seconds)

    def _send(self, batch: list[SimulatedGroup], seconds: float) -> None:
        self._clock.after(seconds + 2 * self._measured.hop_s, self._heard, batch)

    def _heard(self, batch: list[SimulatedGroup]) -> None:
        self._num_idle += 1
        self._hand_out_soon()
        for group in batch:
            self._driver.do(self._measured.driver.group_s / 3, self._scored, group)
