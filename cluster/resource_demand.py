"""How many workers wait for room in the cluster: the demand by which Ray's autoscaler adds nodes.

Read with a call of Ray's autoscaler that is not public, so Ray's version is pinned; nothing public tells an
actor that waits for a node from one whose process is starting.
"""

from collections.abc import Mapping

from ray._private.worker import global_worker
from ray.autoscaler.v2.sdk import get_cluster_resource_state


def num_waiting(needs: Mapping[str, float]) -> int:
    """How many requests for exactly these resources no node has room for. One call to Ray (some ms); a
    request shows up in it within about a second."""
    state = get_cluster_resource_state(global_worker.gcs_client)
    return sum(
        pending.count
        for pending in state.pending_resource_requests
        if dict(pending.request.resources_bundle) == dict(needs)
    )
