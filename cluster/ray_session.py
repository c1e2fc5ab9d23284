"""Ray for the length of one command: a private local cluster, or the one RAY_ADDRESS names.

A local cluster has no dashboard, asks for a token (Ray's own default for it), and is gone when the
session ends, with every process that was started in it.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from alphadrive.errors import ClusterError
from cluster.processes import ProcessTree, end_processes
from cluster.stopping import signals_deferred

logger = logging.getLogger(__name__)

NAMESPACE = "alphadrive"
START_ATTEMPTS = 3
OBJECT_STORE_BYTES = 1 << 30
"""Enough for references of groups: neither pixels nor weights go through the object store."""


@contextmanager
def ray_session(num_gpus: float, tree: ProcessTree) -> Iterator[None]:
    """Start or join Ray; leave nothing behind. `num_gpus` is what the run asks for, `tree` watches.

    Raises ClusterError when Ray does not come up.
    """
    before = tree.descendants()
    address = os.environ.get("RAY_ADDRESS")
    try:
        with signals_deferred():
            if address:
                _init(address=address)
            else:
                _start_local(num_gpus, tree)
        yield
    finally:
        started = tree.descendants() - before
        with signals_deferred():
            ray.shutdown()
            if not address:
                end_processes(started)


def _start_local(num_gpus: float, tree: ProcessTree) -> None:
    """Start a private cluster. Ray waits no longer than 30 s for its own processes, too short for a busy
    machine, and has no setting for it: so once more."""
    for attempt in range(1, START_ATTEMPTS + 1):
        before = tree.descendants()
        try:
            return _init(
                address="local",
                include_dashboard=False,
                object_store_memory=None if num_gpus else OBJECT_STORE_BYTES,
                num_gpus=None if num_gpus else 0,
            )
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
