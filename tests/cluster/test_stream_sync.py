"""Weight sync by gloo streams on a real Ray; learner and engines are fakes, the weights really travel."""

import asyncio
import logging
import os
import re
import signal

import pytest

from alphadrive.errors import LearnerDiedError, WeightSyncError
from alphadrive.types import WeightVersion

pytest.importorskip("ray")
pytestmark = pytest.mark.ray


def run_streamed(tmp_path, monkeypatch, main, **options):
    from test_weight_sync import run_synchronised

    options = {"options": {"streams": True}} | options
    run_synchronised(tmp_path, monkeypatch, main, kind="gloo", **options)


def test_every_engine_takes_every_version_a_killed_one_is_replaced_and_a_wrong_version_is_refused(
    small_ray, tmp_path, monkeypatch
):
    from test_pools import states, until

    async def main(pool, learner, sync):
        for _ in range(2):
            await learner.step([])
            await sync.publish(learner.version)
        for engine in pool.engines:
            assert await engine.actor.updates_taken.remote() == [(0, 0), (0, 1), (0, 2)]
        lost = pool.engines[0]
        os.kill(lost.pid, signal.SIGKILL)
        await learner.step([])
        await sync.publish(learner.version)
        await until(lambda: states(pool).get(f"{lost.id}.1") == "SERVING")
        await learner.step([])
        await sync.publish(learner.version)
        taken = {engine.id: await engine.actor.updates_taken.remote() for engine in pool.engines}
        assert taken == {
            "engine-1": [(0, step) for step in range(5)],
            "engine-0.1": [(0, 3), (0, 4)],
        }
        assert sync.canary_differences == [0.0] * len(sync.canary_differences)
        await learner._ranks[0].make_offer.remote(WeightVersion(0, 7))
        with pytest.raises(WeightSyncError, match=r"offers version 0\.7 of its weights, expected 0\.4"):
            await sync.publish(learner.version)

    run_streamed(tmp_path, monkeypatch, main, num_ranks=2)


def test_a_silent_engine_is_named_and_fenced_while_the_others_draw_and_are_updated(
    small_ray, tmp_path, monkeypatch, caplog
):
    from test_pools import states

    async def main(pool, learner, sync):
        silent, other = pool.engines
        os.kill(silent.pid, signal.SIGSTOP)
        await learner.step([])
        with caplog.at_level(logging.WARNING):
            await sync.publish(learner.version)
        assert states(pool)[silent.id] == "DEAD" and states(pool)[other.id] == "SERVING"
        assert other.version == learner.version
        assert (await other.actor.updates_taken.remote())[-1] == learner.version
        assert sync.paused_seconds[-1] < 1.0

    run_streamed(tmp_path, monkeypatch, main)
    assert "(rank 1 of 3) did not answer the roll call in rollout.sync_timeout_s=6" in caplog.text


def test_an_engine_that_the_sender_gives_up_is_lost_with_its_own_error(
    small_ray, tmp_path, monkeypatch, caplog
):
    from test_pools import states

    async def main(pool, learner, sync):
        assert states(pool)["engine-0"] == "DEAD" and states(pool)["engine-1"] == "SERVING"

    run_streamed(tmp_path, monkeypatch, main, options={"streams": True, "update": "raises"})
    words = r"engine-0 .*joined no group.*; the engine: RuntimeError: injected: no memory for the bucket"
    assert re.search(words, caplog.text)


def test_engines_stay_when_the_learner_is_lost_in_the_roll_call_and_find_the_next_one(
    small_ray, tmp_path, monkeypatch
):
    from cluster.learner_group import LearnerGroup

    async def main(pool, learner, sync):
        offer_weights = LearnerGroup.offer_weights

        async def offer_and_die(self, *args):
            offer = await offer_weights(self, *args)
            os.kill(learner._gang.processes[0].pid, signal.SIGKILL)
            await asyncio.sleep(0.5)
            return offer

        with monkeypatch.context() as patch:
            patch.setattr(LearnerGroup, "offer_weights", offer_and_die)
            with pytest.raises(LearnerDiedError):
                await sync.publish(learner.version)
        await learner.restart(WeightVersion(1, 0), None)
        await sync.publish(learner.version)
        assert pool.num_lost == 0
        for engine in pool.engines:
            assert await engine.actor.updates_taken.remote() == [(0, 0), (1, 0)]
            assert engine.version == WeightVersion(1, 0)

    run_streamed(tmp_path, monkeypatch, main, update_mode="wait")
