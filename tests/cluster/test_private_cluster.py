"""Private clusters: the token's file, the switch to loopback. What then listens is in test_operating.py."""

import os
import socket
import stat
from pathlib import Path

import pytest

from alphadrive.errors import ClusterError

pytest.importorskip("ray")
from ray._private import ray_constants, services

from cluster import private_cluster
from cluster.actors import Meeting
from cluster.meeting import leave, meeting_point, point_on_this_machine
from rollout.environment import ON_LOOPBACK


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
        "RAY_AUTH_MODE",
        *ON_LOOPBACK,
    ):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_token_is_made_that_its_owner_alone_can_read(home):
    private_cluster.keep_token_private()
    path = home / ".ray" / "auth_token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert len(path.read_text()) == 64
    assert [file.name for file in path.parent.iterdir()] == ["auth_token"]


def test_a_token_that_is_there_is_kept_and_closed_to_others(home):
    path = home / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("0123456789" * 4)
    path.chmod(0o644)
    private_cluster.keep_token_private()
    assert path.read_text() == "0123456789" * 4 and stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_from_the_environment_is_used_as_it_is(home, monkeypatch, name):
    monkeypatch.setenv(name, "x" * 40)
    private_cluster.keep_token_private()
    assert not (home / ".ray").exists()


def test_a_home_that_cannot_hold_it_is_told(home):
    (home / ".ray").write_text("no folder")
    with pytest.raises(ClusterError, match=r"auth_token: the token of Ray cannot be kept there"):
        private_cluster.keep_token_private()


def test_the_block_asks_for_a_token_on_loopback_and_leaves_things_as_they_were(home, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")  # for runs on several machines
    several = ray_constants.ENABLE_RAY_CLUSTER
    with private_cluster.closed_to_others():
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
        assert {name: os.environ[name] for name in ON_LOOPBACK} == ON_LOOPBACK
        assert services.get_node_ip_address() == "127.0.0.1"
        assert services.canonicalize_bootstrap_address("127.0.0.1:6379") == "127.0.0.1:6379"
    assert os.environ["RAY_AUTH_MODE"] == "disabled" and os.environ["GLOO_SOCKET_IFNAME"] == "eth0"
    rest = ON_LOOPBACK.keys() - {"GLOO_SOCKET_IFNAME"}
    assert not os.environ.keys() & {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", *rest}
    assert several == ray_constants.ENABLE_RAY_CLUSTER


def test_no_dashboard_is_asked_for():
    options = private_cluster.options(0)
    assert options["include_dashboard"] is False and options["dashboard_host"] == "127.0.0.1"


def test_a_private_cluster_is_told_from_one_that_others_reach(monkeypatch):
    monkeypatch.setattr(services, "get_node_ip_address", lambda: "127.0.0.2")
    with socket.socket() as inside, socket.socket() as outside:
        inside.bind(("127.0.0.1", 0))
        outside.bind(("", 0))
        for server in (inside, outside):
            server.listen()
        assert private_cluster.is_private(f"127.0.0.1:{inside.getsockname()[1]}")
        assert not private_cluster.is_private(f"127.0.0.1:{outside.getsockname()[1]}")
        closed_port = inside.getsockname()[1]
    assert not private_cluster.is_private(f"127.0.0.1:{closed_port}")
    for address in ("auto", "local", "head:6379", "10.0.0.1:6379", "ray://127.0.0.1:10001"):
        assert not private_cluster.is_private(address)


def at(address, port=4321):
    return Meeting(address=address, port=port, node="n", pid=1)


def test_ranks_of_a_private_cluster_meet_in_a_file_of_their_own(tmp_path):
    points = {meeting_point([at("127.0.0.1"), at("127.0.0.1")], tmp_path) for _ in range(2)}
    assert len(points) == 2
    for point in points:
        file = Path(point.removeprefix("file://"))
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        leave(point)
        assert not file.exists()
        leave(point)


@pytest.mark.parametrize(
    ("addresses", "point"),
    [
        (["10.0.0.1", "10.0.0.1"], "tcp://127.0.0.1:4321"),
        (["10.0.0.1", "10.0.0.2"], "tcp://10.0.0.1:4321"),
        (["fd00::1", "fd00::2"], "tcp://[fd00::1]:4321"),
    ],
)
def test_ranks_of_other_clusters_meet_at_a_port_of_the_first(tmp_path, addresses, point):
    assert meeting_point([at(address) for address in addresses], tmp_path) == point
    leave(point)


def test_the_file_goes_with_the_files_of_the_run(tmp_path):
    from cluster.launch import WEIGHTS_FOLDER, scratch_prefix

    point = point_on_this_machine(tmp_path)
    try:
        assert [f"file://{path}" for path in WEIGHTS_FOLDER.glob(f"*{scratch_prefix(tmp_path)}*")] == [point]
    finally:
        leave(point)
