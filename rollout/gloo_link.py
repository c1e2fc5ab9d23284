"""A link between the learner's rank 0 and one engine: a gloo group of the two, kept from sync to sync.

Each engine has a link of its own, so that one that dies or stands still is dropped without the others'
noticing more than a wait: no collective spans them.
"""

from datetime import timedelta

from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, Store, Work

LEARNER, ENGINE = 0, 1


class GlooLink:
    """One end of a link, `side` LEARNER or ENGINE, that both sides know as `name`. The constructor returns
    when the two have met. Raises RuntimeError when they have not in `timeout_s`."""

    def __init__(self, store: Store, name: str, side: int, address: str, timeout_s: float) -> None:
        self.name = name
        options = ProcessGroupGloo._Options()
        options._devices = [ProcessGroupGloo.create_device(hostname=address)]
        options._threads = 1
        options._timeout = timedelta(seconds=timeout_s)
        self._timeout = options._timeout
        self._side = side
        self._group = ProcessGroupGloo(PrefixStore(f"links/{name}", store), side, 2, options)

    def send(self, data: Tensor) -> Work:
        """Begin to send a flat uint8 tensor, which must stay as it is until the work is waited for."""
        return self._group.send([data], 1 - self._side, 0)

    def receive(self, data: Tensor) -> None:
        """Fill a tensor with what the other side sends. Raises RuntimeError."""
        self._group.recv([data], 1 - self._side, 0).wait(self._timeout)

    def close(self) -> None:
        """End the link; what is under way fails on both sides."""
        self._group.abort()
        del self._group  # only this closes the connection, which the other side notices
