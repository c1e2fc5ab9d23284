"""Whether to show a token to a cluster that is joined."""

import logging
import os
from pathlib import Path

from ray._private import services
from ray._private.grpc_utils import init_grpc_channel
from ray._raylet import Config
from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

from cluster.private_cluster import reaching

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 5


def choose_authentication(address: str, mode: str | None = None) -> None:
    """Use a token as the cluster at `address` does; Ray by itself never does for an address.

    Where the cluster's RAY_AUTH_MODE (`mode`) is not known: if this user has a token, and the cluster does
    not answer without. A driver that asks for a token is not reached by a cluster without one, which then
    takes it for dead and ends all that it starts.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    if mode is None and _has_token():
        mode = "" if _answers_without_token(address) else "token"
    if mode:
        os.environ["RAY_AUTH_MODE"] = mode
        Config.initialize("")


def _has_token() -> bool:
    return (
        "RAY_AUTH_TOKEN" in os.environ
        or "RAY_AUTH_TOKEN_PATH" in os.environ
        or (Path.home() / ".ray" / "auth_token").is_file()
    )


def _answers_without_token(address: str) -> bool:
    """Whether the head at `address` answers anybody; never for a Ray client's (`ray://`)."""
    if "://" in address:
        return False
    try:
        with reaching(address):
            found = services.canonicalize_bootstrap_address_or_die(address)
        with init_grpc_channel(found) as channel:
            head = NodeInfoGcsServiceStub(channel)
            head.GetClusterId(GetClusterIdRequest(), timeout=PROBE_TIMEOUT_S)
    except Exception as error:  # Ray raises bare errors here
        logger.debug("%s does not answer without a token: %s", address, error)
        return False
    return True
