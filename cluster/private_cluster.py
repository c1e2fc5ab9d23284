"""A Ray cluster of this machine alone, for the length of one command: no dashboard, and

    token      RAY_AUTH_MODE=token whatever the environment says; a token is made where the user has none,
               in a file that only the user can read
    loopback   Ray, engines and ranks listen on 127.0.0.1 only, so that nothing in the network reaches them

Whoever reaches a port of Ray runs code as its user; a token alone does not hide what is sent. Ray has no
setting for loopback on Linux: it takes 127.0.0.1 for "the address that others reach", unless clusters of
several machines are switched off, as they are on macOS. What still listens is in SECURITY.md.
"""

import logging
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from ray._private import ray_constants, services
from ray._raylet import AuthenticationTokenLoader, Config

from alphadrive.capacity import OBJECT_STORE_BYTES
from alphadrive.errors import ClusterError
from rollout.environment import LOOPBACK, ON_LOOPBACK, stay_on_loopback

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 1.0

_AUTH_MODE = "RAY_AUTH_MODE"
_TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_SEVERAL_MACHINES = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR


def options(num_gpus: float) -> dict[str, Any]:
    """Arguments of `ray.init` for a private cluster."""
    return {
        "address": "local",
        "include_dashboard": False,
        "dashboard_host": "127.0.0.1",
        "object_store_memory": None if num_gpus else OBJECT_STORE_BYTES,
        "num_gpus": None if num_gpus else 0,
    }


@contextmanager
def closed_to_others() -> Iterator[None]:
    """What starts in the block, and its children, asks for the token and stays on loopback.

    Raises ClusterError when the token's file is another user's, or cannot be written.
    """
    before = {name: os.environ.get(name) for name in (_AUTH_MODE, _SEVERAL_MACHINES, *ON_LOOPBACK)}
    try:
        ask_for_token()
        os.environ[_SEVERAL_MACHINES] = "0"
        stay_on_loopback()
        with on_loopback():
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        Config.initialize("")


def ask_for_token() -> None:
    """Have every cluster that this process starts from now on ask for a token. Raises ClusterError."""
    mode = os.environ.get(_AUTH_MODE, "token")
    if mode != "token":
        logger.warning("RAY_AUTH_MODE=%s is set; a cluster that is started here asks for a token", mode)
    keep_token_private()
    os.environ[_AUTH_MODE] = "token"
    Config.initialize("")


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """Connect to a cluster at this address in the block, a private one of another command too."""
    with on_loopback() if is_private(address) else nullcontext():
        yield


@contextmanager
def on_loopback() -> Iterator[None]:
    """Ray takes 127.0.0.1 as it is given, in this process."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def is_private(address: str) -> bool:
    """Whether a Ray address, host:port, is that of a private cluster: on loopback it answers, and at the
    address that others reach this machine under it does not."""
    host, _, port = address.rpartition(":")
    if host.strip("[]") not in (*LOOPBACK, "localhost") or not port.isdigit():
        return False
    return not _answers(services.get_node_ip_address(), int(port)) and _answers(host.strip("[]"), int(port))


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def keep_token_private() -> None:
    """See that there is a token, and that no other user of this machine can read it.

    Ray makes one by itself, but readable by all. A token that the environment gives is left as it is.
    Raises ClusterError.
    """
    if any(os.environ.get(name) for name in _TOKEN_VARIABLES):
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            _write_once(path, secrets.token_hex(32))
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid():
                raise ClusterError(
                    f"{path}: belongs to user {status.st_uid}, this process runs as {os.geteuid()}; remove "
                    "it or set RAY_AUTH_TOKEN_PATH to a file of your own"
                )
            if stat.S_IMODE(status.st_mode) & 0o077:
                logger.warning("%s could be read by others; it is now yours alone", path)
                os.fchmod(file.fileno(), 0o600)
    except OSError as error:
        raise ClusterError(
            f"{path}: the token of Ray cannot be kept there: {error}; set HOME or RAY_AUTH_TOKEN_PATH"
        ) from error
    AuthenticationTokenLoader.instance().reset_cache()


def _write_once(path: Path, token: str) -> None:
    """Write the file whole or not at all; raises FileExistsError where another command was quicker."""
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    handle = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(token)
        os.link(new, path)
    finally:
        new.unlink()
