"""An engine's end of a transfer in a process of its own, for tests; knows no vLLM.

Each order is the stream to take and what goes wrong meanwhile: `stops_at` (SIGSTOP) or `dies_at` (SIGKILL)
once it was handed so many buckets. Its answer says what came, or which error was raised.
"""

import multiprocessing
import os
import signal

from alphadrive.errors import AlphaDriveError
from alphadrive.types import WeightsStream
from rollout.weight_receiver import StreamInfo, WeightReceiver, see_offer

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["rollout.weight_receiver"])


def serve(orders):
    """Take orders until there are no more."""
    receiver = WeightReceiver()
    orders.send("ready")
    while (order := orders.recv()) is not None:
        info, looks_only, stops_at, dies_at = order
        names, num_buckets = [], 0

        def load(tensors, names=names, stops_at=stops_at, dies_at=dies_at):
            nonlocal num_buckets
            num_buckets += 1
            names += [name for name, _ in tensors]
            if num_buckets == stops_at:
                os.kill(os.getpid(), signal.SIGSTOP)
            if num_buckets == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)

        stream = StreamInfo(**info).stream
        try:
            see_offer(stream)
            answer = {"seen": str(stream.version)}
            if not looks_only:
                answer |= {"sha256": receiver.receive(stream, load), "names": names, "buckets": num_buckets}
                answer["link"] = receiver._inlet._link.name
        except AlphaDriveError as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        orders.send(answer)


class Engines:
    """Engine processes by name."""

    def __init__(self):
        self.processes, self._orders = {}, {}

    def start(self, *names):
        for name in names:
            self._orders[name], theirs = processes.Pipe()
            self.processes[name] = processes.Process(target=serve, args=(theirs,), daemon=True)
            self.processes[name].start()
            theirs.close()
        for name in names:
            assert self.answer(name) == "ready"

    def order(self, name, offer, timeout_s, *, looks_only=False, stops_at=None, dies_at=None):
        stream = WeightsStream(offer=offer, member=name, timeout_s=timeout_s)
        self._orders[name].send((StreamInfo.of(stream), looks_only, stops_at, dies_at))

    def answer(self, name):
        assert self._orders[name].poll(60)
        return self._orders[name].recv()

    def close(self):
        for process in self.processes.values():
            process.kill()
            process.join()
