"""What changes the number of workers of a live run: requests from outside, and `rollout.autoscale`.

A request for rollout workers sets autoscale aside until the end of the run: who asks for a number means it.
No Ray: called by `cluster.control_room`, every second, from the driver's event loop.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

from alphadrive.config import AutoscaleConfig
from cluster.autoscale import Autoscaler, Observation
from cluster.control import Wishes
from cluster.watched import ElasticPool, Watched, num_in_service

logger = logging.getLogger(__name__)

ASIDE = "set aside until the end of the run by `alphadrive scale`"


class Scaling:
    """Resizes the pools in `watched`; makes the autoscaler there if `bounds` ask for one."""

    def __init__(self, watched: Watched, bounds: AutoscaleConfig) -> None:
        self._watched = watched
        self._is_aside = False
        self._last: dict[str, Any] | None = None
        self._done = Wishes()
        if bounds.max:
            watched.autoscaler = Autoscaler(bounds.min, bounds.max)

    def act(self, wishes: Wishes, fields: Mapping[str, Any], now_s: float) -> None:
        """Carry out what is newly wished, then what the autoscaler decides. `fields` are the status's.

        Until the loop runs nothing is done; wishes are kept.
        """
        rollouts, rewards = self._watched.rollouts, self._watched.rewards
        if self._watched.buffer is None:
            return
        if isinstance(rollouts, ElasticPool):
            if wishes.rollout_workers not in (None, self._done.rollout_workers):
                self._set_aside()
                _resize(rollouts, "rollout", wishes.rollout_workers)
            self._autoscale(rollouts, fields, now_s)
        if isinstance(rewards, ElasticPool) and wishes.reward_workers not in (
            None,
            self._done.reward_workers,
        ):
            _resize(rewards, "reward", wishes.reward_workers)
        self._done = wishes

    def as_fields(self) -> dict[str, Any] | None:
        """How autoscale stands, for the status; None when the run has none."""
        scaler = self._watched.autoscaler
        if scaler is None:
            return None
        return {
            "min": scaler.low,
            "max": scaler.high,
            "is_on": not self._is_aside,
            "note": ASIDE if self._is_aside else "",
            "num_ups": scaler.num_ups,
            "num_downs": scaler.num_downs,
            "last": self._last,
        }

    def _set_aside(self) -> None:
        if self._watched.autoscaler is not None and not self._is_aside:
            self._is_aside = True
            logger.info("autoscale: %s", ASIDE)

    def _autoscale(self, pool: ElasticPool, fields: Mapping[str, Any], now_s: float) -> None:
        scaler, loop = self._watched.autoscaler, fields.get("throughput")
        if scaler is None or self._is_aside or loop is None:
            return
        before = pool.num_wanted
        decision = scaler.observe(
            Observation(
                now_s=now_s,
                steps=fields["step"],
                loop_s=loop["loop_s"],
                waited_s=loop["learner_waited_s"],
                num_wanted=before,
                num_serving=num_in_service(pool.workers(), "rollout"),
            )
        )
        if decision is None:
            return
        self._last = {
            "time_s": round(time.time(), 3),
            "step": fields["step"],
            "from": before,
            "to": decision.num_workers,
            "reason": decision.reason,
        }
        logger.info("autoscale: rollout workers %d -> %d: %s", before, decision.num_workers, decision.reason)
        pool.resize(decision.num_workers)


def _resize(pool: ElasticPool, kind: str, num_workers: int) -> None:
    logger.info("%s workers %d -> %d, by request", kind, pool.num_wanted, num_workers)
    pool.resize(num_workers)
