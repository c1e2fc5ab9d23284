"""Which cluster a run works in."""

import pytest

from alphadrive.errors import ConfigError

pytest.importorskip("ray")


@pytest.mark.parametrize(
    ("address", "joined"),
    [
        (None, None),
        ("", None),
        ("local", None),
        ("auto", "auto"),
        ("10.0.0.1:6379", "10.0.0.1:6379"),
    ],
)
def test_a_run_joins_the_cluster_that_ray_address_names_and_starts_its_own_otherwise(
    monkeypatch, address, joined
):
    from cluster.jobs import cluster_to_join

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster_to_join() == joined


@pytest.mark.parametrize("address", ["http://head:8265", "ray://head:10001"])
def test_an_address_for_other_commands_is_refused_with_what_to_do(monkeypatch, address):
    from cluster.jobs import cluster_to_join

    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS={address}.*ray job submit.*unset"):
        cluster_to_join()
