"""Both ends of `nccl` and `ipc` transfers where there is no GPU: all of ours and vLLM's packing, with CUDA's
streams left out, NCCL's group one of threads, and CUDA's handle the name of a tensor in this process."""

import json
import queue
import threading
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from weights_to_send import buckets_of, digest_of, layout_of, make_tensors

from alphadrive.errors import LearnerDiedError, TransferCutError
from alphadrive.types import WeightsStream

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

SOON_S, LATE_S = 1.5, 60.0


class ThreadGroup:
    """What NCCL gives: members who know the same id meet; a broadcast ends when all take part in it."""

    meetings: ClassVar[dict] = {}

    def __init__(self, shared_id, rank, size):
        self.rank, self.size, self.aborted = rank, size, threading.Event()
        barrier, self.queues = self.meetings.setdefault(
            shared_id, (threading.Barrier(size), [queue.Queue(1) for _ in range(size)])
        )
        barrier.wait(60)

    def broadcast(self, tensor, src, stream=None):
        assert not self.aborted.is_set(), "an aborted group was used"
        others = [place for place in range(self.size) if place != src] if self.rank == src else [self.rank]
        for place in others:
            self._until_done(tensor, self.queues[place])

    def _until_done(self, tensor, own):
        while not self.aborted.is_set():
            try:
                if self.rank == 0:
                    return own.put(tensor.clone(), timeout=0.02)
                return tensor.copy_(own.get(timeout=0.02))
            except (queue.Full, queue.Empty):
                pass

    def destroy(self):
        self.aborted.set()


class Engine:
    """An engine that takes streams on a thread."""

    def __init__(self, name, make_inlet):
        from rollout.weight_receiver import WeightReceiver

        self.name, self.stops_at = name, None
        self.receiver = WeightReceiver(lambda kind, host, timeout_s: make_inlet(timeout_s))
        self.released = threading.Event()

    def take(self, offer):
        self.got, self.answer, self._loads = {}, None, 0
        stream = WeightsStream(offer=offer, member=self.name, timeout_s=LATE_S)
        self.thread = threading.Thread(target=self._take, args=(stream,), daemon=True)
        self.thread.start()

    def _take(self, stream):
        try:
            self.answer = self.receiver.receive(stream, self._load)
        except Exception as error:
            self.answer = error

    def _load(self, tensors):
        self._loads += 1
        if self._loads == self.stops_at:
            self.released.wait(60)
        self.got |= {name: tensor.clone() for name, tensor in tensors}

    def result(self):
        self.thread.join(60)
        return self.answer


@pytest.fixture
def cuda(monkeypatch):
    """What of CUDA is called, without it."""
    from vllm.distributed.weight_transfer import packed_tensor

    stream = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(packed_tensor, "_get_streams", lambda index, number: (stream,) * number)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    for name in ("set_device", "synchronize", "ipc_collect"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="GPU-1"))


@pytest.fixture
def nccl(cuda, monkeypatch):
    """Makes engines that join groups of threads; gives the ids of all groups that were made."""
    from vllm.distributed.weight_transfer import nccl_common

    import rollout.nccl_group

    made = []

    def new_id():
        made.append(bytes([len(made)]) * 128)
        return made[-1]

    def join(shared_id, rank, size, device):
        return ThreadGroup(shared_id, rank, size)

    monkeypatch.setattr(ThreadGroup, "meetings", {})
    monkeypatch.setattr(rollout.nccl_group, "new_id", new_id)
    monkeypatch.setattr(rollout.nccl_group, "uid_init_process_group", join)
    monkeypatch.setattr(nccl_common, "uid_init_process_group", join)
    parallel = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
    owner = SimpleNamespace(
        config=None,
        vllm_config=SimpleNamespace(parallel_config=parallel, model_config=None),
        device=torch.device("cpu"),
        model=None,
    )
    make = lambda name: Engine(name, lambda timeout_s: rollout.nccl_group.NcclInlet(owner))  # noqa: E731
    return SimpleNamespace(engine=make, groups=made)


@contextmanager
def sending_by(kind, timeout_s=LATE_S):
    from rollout.weight_sender import WeightSender

    sender = WeightSender(kind, "127.0.0.1", timeout_s)
    yield sender
    sender.close()


def publish(sender, engines, step):
    tensors = make_tensors(step)
    offer = sender.offer(layout_of(tensors, 0, step))
    for engine in engines:
        engine.take(offer)
    names = [engine.name for engine in engines]
    return sender.send(names, names, buckets_of(sender, tensors)), tensors


def assert_all_got(engines, sent, tensors):
    assert sent.missing == {} and sent.sha256 == digest_of(tensors)
    for engine in engines:
        assert engine.result() == sent.sha256
        assert engine.got.keys() == tensors.keys()
        assert all(torch.equal(engine.got[name], tensor) for name, tensor in tensors.items())


def test_nccl_keeps_its_group_until_an_engine_joins_or_is_gone(nccl):
    first, second, third = (nccl.engine(f"engine-{place}") for place in range(3))
    with sending_by("nccl") as sender:
        for step, engines in enumerate([[first, second], [first, second], [second, third], [second]]):
            assert_all_got(engines, *publish(sender, engines, step))
    assert len(nccl.groups) == 3


def test_nccl_names_who_stands_still_the_learner_goes_on_and_the_next_sync_has_a_new_group(nccl):
    first, second, third = (nccl.engine(f"engine-{place}") for place in range(3))
    second.stops_at = 2
    with sending_by("nccl", SOON_S) as sender:
        sent, tensors = publish(sender, [first, second, third], 0)
        words = f"engine-1 (rank 2 of 4) did not take all tensors in rollout.sync_timeout_s={SOON_S:g}"
        assert sent.missing == dict.fromkeys(["engine-0", "engine-1", "engine-2"], words)
        assert sent.sha256 == digest_of(tensors)
        successors = [nccl.engine(f"engine-{place}.1") for place in range(3)]
        assert_all_got(successors, *publish(sender, successors, 1))
    second.released.set()
    assert len(nccl.groups) == 2


def test_nccl_names_who_does_not_join_and_takes_all_buckets_from_the_learner_all_the_same(nccl):
    first, second = nccl.engine("engine-0"), nccl.engine("engine-1")
    tensors = make_tensors()
    with sending_by("nccl", SOON_S) as sender:
        first.take(sender.offer(layout_of(tensors, 0, 0)))
        sent = sender.send(["engine-0", "engine-1"], ["engine-0", "engine-1"], buckets_of(sender, tensors))
        words = f"engine-1 (rank 2 of 3) did not join the group in rollout.sync_timeout_s={SOON_S:g}"
        assert sent.missing == dict.fromkeys(["engine-0", "engine-1"], words)
        assert sent.sha256 == digest_of(tensors)
        assert_all_got([second], *publish(sender, [second], 1))


def test_a_broadcast_that_cannot_be_aborted_ends_the_learner(nccl, monkeypatch):
    monkeypatch.setattr(ThreadGroup, "destroy", lambda self: None)
    engine = nccl.engine("engine-0")
    engine.stops_at = 1
    with (
        sending_by("nccl", SOON_S) as sender,
        pytest.raises(LearnerDiedError, match=r"engine-0 \(rank 1 of 2\)"),
    ):
        publish(sender, [engine], 0)
    engine.released.set()


@pytest.mark.parametrize("breaks", ["joining", "sending"])
def test_an_error_of_nccl_at_the_learner_names_the_engines_and_the_next_sync_has_a_new_group(
    nccl, monkeypatch, breaks
):
    import rollout.nccl_group

    def fails(*_, **__):
        raise RuntimeError("NCCL error: remote process exited")

    first = nccl.engine("engine-0")
    tensors = make_tensors()
    with sending_by("nccl", SOON_S) as sender, monkeypatch.context() as broken:
        offer = sender.offer(layout_of(tensors, 0, 0))
        if breaks == "joining":
            broken.setattr(rollout.nccl_group, "uid_init_process_group", fails)
        else:
            broken.setattr(ThreadGroup, "broadcast", fails)
            first.take(offer)
        sent = sender.send(["engine-0"], ["engine-0"], buckets_of(sender, tensors))
        assert sent.sha256 == digest_of(tensors)
        assert "engine-0 (rank 1 of 2) did not" in sent.missing["engine-0"]
        assert sent.missing["engine-0"].endswith("NCCL error: remote process exited")
        broken.undo()
        second = nccl.engine("engine-0.1")
        assert_all_got([second], *publish(sender, [second], 1))


def test_an_error_of_nccl_cuts_the_transfer_and_one_of_the_model_does_not_look_like_one(nccl, monkeypatch):
    def fails(message):
        def broadcast(self, tensor, src, stream=None):
            if self.rank:
                raise RuntimeError(message)

        return broadcast

    for message, kind in [("NCCL error: remote error", TransferCutError), ("a shape", RuntimeError)]:
        monkeypatch.setattr(ThreadGroup, "broadcast", fails(message))
        engine = nccl.engine("engine-0")
        with sending_by("nccl") as sender:
            publish(sender, [engine], 0)
            assert type(engine.result()) is kind and message in str(engine.result())


@pytest.fixture
def ipc(cuda, monkeypatch):
    """Makes engines that look at the learner's buffer by its name."""
    from vllm.distributed.weight_transfer.packed_tensor import PackedIpcChunk, unpack_tensor

    import rollout.ipc_buffer

    buffers = {}

    def produce(iterator, gpu_uuid, post_iter_func, buffer_size_bytes):
        key = bytes([len(buffers)])
        buffer = buffers.setdefault(key, torch.zeros(buffer_size_bytes, dtype=torch.uint8))
        for name, tensor in iterator:
            flat = post_iter_func((name, tensor)).flatten().view(torch.uint8)
            buffer[: len(flat)] = flat
            handle = (
                torch.Tensor, torch.Size([buffer_size_bytes]), (1,), 0, torch.UntypedStorage, torch.uint8, 0,
                key, buffer_size_bytes, 0, False, b"counter", 3, b"event", True,
            )  # fmt: skip
            dtype = str(tensor.dtype).removeprefix("torch.")
            yield PackedIpcChunk([name], [list(tensor.shape)], [dtype], [len(flat)], {gpu_uuid: handle})

    def consume(ipc_handle, names, shapes, dtype_names, tensor_sizes, device_index, importer):
        handle = ipc_handle["GPU-1"]
        assert handle[0] is torch.Tensor and handle[4] is torch.UntypedStorage
        packed = buffers[handle[7]][: sum(tensor_sizes)]
        dtypes = [getattr(torch, name) for name in dtype_names]
        unpacked = unpack_tensor(packed, names, shapes, dtypes, tensor_sizes)
        return [(name, tensor.clone()) for name, tensor in unpacked]

    monkeypatch.setattr(rollout.ipc_buffer, "packed_ipc_producer", produce)
    monkeypatch.setattr(rollout.ipc_buffer, "packed_ipc_consumer", consume)
    owner = SimpleNamespace(device=torch.device("cpu", 0))
    return lambda name: Engine(name, lambda timeout_s: rollout.ipc_buffer.IpcInlet(owner, timeout_s))


def test_ipc_fills_the_buffer_again_only_when_the_engine_has_taken_what_was_in_it(ipc):
    engine = ipc("engine-0")
    with sending_by("ipc") as sender:
        for step in range(2):
            assert_all_got([engine], *publish(sender, [engine], step))


def test_ipc_names_who_stands_still(ipc):
    engine = ipc("engine-0")
    engine.stops_at = 2
    with sending_by("ipc", SOON_S) as sender:
        sent, tensors = publish(sender, [engine], 0)
    assert "engine-0 (rank 1 of 2) did not take chunk 2" in sent.missing["engine-0"]
    assert sent.sha256 == digest_of(tensors)
    engine.released.set()


def test_ipc_on_two_gpus_is_told_apart(ipc, monkeypatch):
    import rollout.ipc_buffer

    uuids = iter(["GPU-1", "GPU-2"])
    monkeypatch.setattr(
        rollout.ipc_buffer.torch.cuda,
        "get_device_properties",
        lambda index: SimpleNamespace(uuid=next(uuids)),
    )
    engine = ipc("engine-0")
    with sending_by("ipc", 1.0) as sender:
        sent, _ = publish(sender, [engine], 0)
    assert "engine-0 is on GPU GPU-2, the learner on GPU-1" in str(engine.result())
    assert sent.missing.keys() == {"engine-0"}


def test_an_ipc_handle_survives_json():
    from rollout.ipc_buffer import handle_from_json, handle_to_json

    handle = (
        torch.Tensor, torch.Size([64]), (1,), 0, torch.UntypedStorage, torch.uint8, 0, b"\x00\xff handle",
        64, 0, False, b"counter", 3, b"event", True,
    )  # fmt: skip
    assert handle_from_json(json.loads(json.dumps(handle_to_json(handle)))) == (
        torch.Tensor, [64], [1], *handle[3:]
    )  # fmt: skip
