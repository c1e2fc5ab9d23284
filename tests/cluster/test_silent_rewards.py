"""Reward workers that come up and then answer nothing, as on a machine that is too busy. Starts no Ray."""

import asyncio

import pytest

from alphadrive.config import RewardConfig

pytest.importorskip("ray")


class SilentActor:
    """Says where it is once, and nothing after that."""

    def __init__(self):
        self._num_asked = 0
        self.where = self

    def remote(self):
        self._num_asked += 1
        answer = asyncio.get_running_loop().create_future()
        if self._num_asked == 1:
            answer.set_result((1, "node"))
        return answer


def test_idle_workers_that_do_not_answer_are_replaced_for_as_long_as_it_takes(monkeypatch):
    from cluster import remote, reward_pool

    monkeypatch.setattr(reward_pool, "HEALTH_PERIOD_S", 0.0)
    monkeypatch.setattr(reward_pool, "HEALTH_TIMEOUT_S", 0.001)
    monkeypatch.setattr(remote, "kill", lambda actor: None)

    async def main():
        pool = reward_pool.RewardPool(
            RewardConfig(timeout_s=0.001, num_workers=1), lambda worker_id: SilentActor()
        )
        await pool.start()
        async with asyncio.timeout(20):
            while pool.workers()[0].id != f"w0.{2 * reward_pool.MAX_RESTARTS}":
                await pool._fleet.changed()
        await pool._fleet.close()

    asyncio.run(main())
