"""Fixtures of the cluster tests: a small Ray for those that need it; the fakes are in `fake_actors`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def small_ray() -> Iterator[None]:
    """Ray with fakes that its workers can unpickle without importing the tests."""
    import fake_actors
    import ray

    from cluster.processes import ProcessTree
    from cluster.ray_session import ray_session

    with ProcessTree() as tree, ray_session(0, tree):
        ray.cloudpickle.register_pickle_by_value(fake_actors)
        yield
        ray.cloudpickle.unregister_pickle_by_value(fake_actors)
