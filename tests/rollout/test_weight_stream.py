"""Weights sent by gloo to engines in processes of their own: what arrives, who is missing, who joins."""

import os
import signal
import time

import pytest
from stream_engine import Engines
from weights_to_send import buckets_of, digest_of, layout_of, make_tensors

from alphadrive.types import WeightVersion
from rollout.weight_sender import WeightSender

TIMEOUT_S = 1.5


@pytest.fixture
def engines():
    engines = Engines()
    yield engines
    engines.close()


@pytest.fixture
def sender():
    sender = WeightSender("gloo", "127.0.0.1", TIMEOUT_S)
    yield sender
    sender.close()


def publish(sender, engines, members, step, living=None, faults=None):
    """One transfer of new weights; the learner's account, its tensors, and the answers of those that got
    them."""
    tensors = make_tensors(step)
    offer = sender.offer(layout_of(tensors, 0, step))
    for name in members:
        engines.order(name, offer, TIMEOUT_S, **(faults or {}).get(name, {}))
    sent = sender.send(members, living or members, buckets_of(sender, tensors))
    answers = {name: engines.answer(name) for name in members if name not in sent.missing}
    assert sent.sha256 == digest_of(tensors)
    assert sent.version == WeightVersion(0, step)
    return sent, tensors, answers


def test_every_engine_gets_every_tensor_and_links_are_kept_until_an_engine_joins_or_is_gone(sender, engines):
    engines.start("engine-0", "engine-1")
    links = []
    for step, members in enumerate(
        [["engine-0", "engine-1"], ["engine-0", "engine-1"], ["engine-1", "engine-0.1"], ["engine-0.1"]]
    ):
        if step == 2:
            engines.processes["engine-0"].kill()
            engines.start("engine-0.1")
        living = members if step < 3 else ["engine-1", "engine-0.1"]
        sent, tensors, answers = publish(sender, engines, members, step, living)
        assert sent.missing == {} and sent.num_bytes == sum(each.nbytes for each in tensors.values())
        assert answers.keys() == set(members)
        for answer in answers.values():
            assert answer["sha256"] == sent.sha256
            assert answer["names"] == sorted(tensors) and answer["buckets"] > 3
        links.append({name: answer["link"] for name, answer in answers.items()})
    assert links[0] == links[1]
    assert links[2]["engine-1"] == links[1]["engine-1"]
    assert links[3]["engine-0.1"] == links[2]["engine-0.1"]
    assert sender._fabric._kept.keys() == {"engine-1", "engine-0.1"}
    assert len({name for kept in links for name in kept.values()}) == 3


@pytest.mark.parametrize("fault", ["stops_at", "dies_at"])
def test_an_engine_that_stands_still_or_dies_on_the_way_is_named_and_the_others_get_all(
    sender, engines, fault
):
    engines.start("engine-0", "engine-1", "engine-2")
    members = ["engine-0", "engine-1", "engine-2"]
    sent, _, answers = publish(sender, engines, members, 0, faults={"engine-1": {fault: 2}})
    assert sent.missing.keys() == {"engine-1"}
    assert "engine-1 (rank 2 of 4) took bucket" in sent.missing["engine-1"]
    assert f"rollout.sync_timeout_s={TIMEOUT_S}" in sent.missing["engine-1"]
    assert {answer["sha256"] for answer in answers.values()} == {sent.sha256}
    engines.start("engine-1.1")
    members = ["engine-0", "engine-2", "engine-1.1"]
    sent, _, answers = publish(sender, engines, members, 1)
    assert sent.missing == {} and len(answers) == 3


def test_an_engine_whose_connection_is_closed_between_two_buckets_is_named_and_the_others_get_all(
    sender, engines
):
    engines.start("engine-0", "engine-1")
    tensors = make_tensors()
    offer = sender.offer(layout_of(tensors, 0, 0))
    for name in ("engine-0", "engine-1"):
        engines.order(name, offer, TIMEOUT_S)

    def killing():
        for number, bucket in enumerate(buckets_of(sender, tensors)):
            if number == 2:
                engines.processes["engine-1"].kill()
                time.sleep(0.5)
            yield bucket

    sent = sender.send(["engine-0", "engine-1"], ["engine-0", "engine-1"], killing())
    assert sent.missing.keys() == {"engine-1"}
    assert "engine-1 (rank 2 of 3) took bucket" in sent.missing["engine-1"]
    assert engines.answer("engine-0")["sha256"] == sent.sha256 == digest_of(tensors)


def test_an_engine_that_joins_no_group_is_named_and_the_others_get_all(sender, engines):
    engines.start("engine-0", "engine-1")
    os.kill(engines.processes["engine-1"].pid, signal.SIGSTOP)
    sent, _, answers = publish(sender, engines, ["engine-0", "engine-1"], 0)
    assert "engine-1 (rank 2 of 3) joined no group" in sent.missing["engine-1"]
    assert answers["engine-0"]["sha256"] == sent.sha256


def test_a_wrong_version_and_a_late_one_are_refused_by_name(sender, engines):
    from dataclasses import replace

    engines.start("engine-0")
    tensors = make_tensors()
    offer = sender.offer(layout_of(tensors, 1, 4))
    for wrong in (WeightVersion(0, 4), WeightVersion(1, 5)):
        engines.order("engine-0", replace(offer, version=wrong), TIMEOUT_S)
        error = engines.answer("engine-0")["error"]
        assert "WeightSyncError: engine-0: the learner offers version 1.4" in error
        assert f"expected {wrong}" in error
    engines.order("engine-0", offer, TIMEOUT_S, looks_only=True)
    assert engines.answer("engine-0") == {"seen": "1.4"}
    sender.offer(layout_of(tensors, 1, 5))
    engines.order("engine-0", offer, TIMEOUT_S)
    assert "TransferCutError: transfer cut: rounds/1/layout" in engines.answer("engine-0")["error"]


def test_a_learner_that_is_gone_cuts_the_transfer_and_the_next_learner_is_found(sender, engines):
    engines.start("engine-0")
    publish(sender, engines, ["engine-0"], 0)
    tensors = make_tensors(1)
    offer = sender.offer(layout_of(tensors, 0, 1))
    engines.order("engine-0", offer, TIMEOUT_S)

    def broken():
        yield from list(buckets_of(sender, tensors))[:2]
        sender.close()
        raise OSError("the learner is gone")

    with pytest.raises(OSError, match="the learner is gone"):
        sender.send(["engine-0"], ["engine-0"], broken())
    assert "TransferCutError: transfer cut: engine-0 got" in engines.answer("engine-0")["error"]
    successor = WeightSender("gloo", "127.0.0.1", TIMEOUT_S)
    sent, _, answers = publish(successor, engines, ["engine-0"], 2)
    assert answers["engine-0"]["sha256"] == sent.sha256
    successor.close()


def test_all_buckets_are_taken_from_the_learner_though_no_engine_is_left(sender, engines):
    """The other ranks gather them, too, and would wait."""
    engines.start("engine-0")
    taken = []
    tensors = make_tensors()
    offer = sender.offer(layout_of(tensors, 0, 0))
    engines.order("engine-0", offer, TIMEOUT_S, dies_at=1)

    def noted():
        for bucket in buckets_of(sender, tensors):
            taken.append(len(bucket))
            yield bucket

    sent = sender.send(["engine-0"], ["engine-0"], noted())
    assert sent.missing.keys() == {"engine-0"} and sent.sha256 == digest_of(tensors)
    assert sum(taken) == len(tensors)


def test_the_store_listens_on_one_address_only(sender):
    import psutil

    port = sender._store.port
    listening = [
        each.laddr for each in psutil.Process().net_connections("tcp") if each.status == psutil.CONN_LISTEN
    ]
    assert [address.ip for address in listening if address.port == port] == ["127.0.0.1"]
