"""Ray for the length of one command: a private local cluster, or the one RAY_ADDRESS names.

A local cluster (`cluster.private_cluster`) is closed to others, and gone when the session ends, with every
process that was started in it. A cluster that was joined (a submitted job's, for which Ray sets RAY_ADDRESS)
goes on: Ray ends the actors of a driver that leaves, no process of it is touched.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from alphadrive.errors import ClusterError
from cluster import private_cluster
from cluster.authentication import choose_authentication
from cluster.jobs import cluster_to_join
from cluster.processes import ProcessTree, end_processes
from cluster.stopping import signals_deferred

logger = logging.getLogger(__name__)

NAMESPACE = "alphadrive"
START_ATTEMPTS = 3


@contextmanager
def ray_session(num_gpus: float, tree: ProcessTree) -> Iterator[None]:
    """Start or join Ray; leave nothing behind. `num_gpus` is what the run asks for, `tree` watches.

    Raises ClusterError when Ray does not come up.
    """
    address = cluster_to_join()
    with private_cluster.closed_to_others() if address is None else private_cluster.reaching(address):
        before = tree.descendants()
        try:
            with signals_deferred():
                if address is None:
                    _start_local(num_gpus, tree)
                else:
                    choose_authentication(address)
                    _init(address=address)
            yield
        finally:
            started = tree.descendants() - before
            with signals_deferred():
                ray.shutdown()
                if address is None:
                    end_processes(started)


def _start_local(num_gpus: float, tree: ProcessTree) -> None:
    """Start a private cluster. Ray waits no longer than 30 s for its own processes, too short for a busy
    machine, and has no setting for it: so once more."""
    for attempt in range(1, START_ATTEMPTS + 1):
        before = tree.descendants()
        try:
            return _init(**private_cluster.options(num_gpus))
        except ClusterError as error:
            ray.shutdown()
            end_processes(tree.descendants() - before)
            if attempt == START_ATTEMPTS:
                raise
            logger.warning("Ray did not start, attempt %d of %d: %s", attempt, START_ATTEMPTS, error)


def _init(**options: Any) -> None:
    try:
        ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # Ray raises bare Exceptions here
        first_line = str(error).strip().partition("\n")[0]
        raise ClusterError(f"Ray did not start or answer at {options['address']!r}: {first_line}") from error
