"""Does a Ray cluster answer? Asked by `alphadrive doctor` in a process of its own, given up after 10 s.

    python -m cluster.reachability ADDRESS   prints one JSON object

At Ray's own port only the head is asked, as `ray health-check` does, so that this works on a machine that is
no node of the cluster; through `ray://` a client connects and leaves again.
"""

import json
import platform
import sys
from typing import Any

import ray
from ray._common.usage.usage_lib import get_cluster_metadata
from ray._raylet import GcsClient

from cluster.authentication import choose_authentication


def main() -> None:
    """Print what was found."""
    choose_authentication(sys.argv[1])
    print(json.dumps(probe(sys.argv[1])))


def probe(address: str) -> dict[str, Any]:
    """`found` in words, or `problem` with a `remedy`."""
    if address.startswith("ray://"):
        ray.init(address, logging_level="ERROR", log_to_driver=False)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        ray.shutdown()
        return {"found": f"{len(nodes)} nodes, through a client"}
    client = GcsClient(address=address)
    told = get_cluster_metadata(client) or {}
    theirs = {"ray": told.get("ray_version"), "Python": told.get("python_version")}
    ours = {"ray": ray.__version__, "Python": platform.python_version()}
    words = ", ".join(f"{name} {version}" for name, version in theirs.items() if version)
    if different := [name for name, version in theirs.items() if version not in (None, ours[name])]:
        here = ", ".join(f"{name} {ours[name]}" for name in different)
        remedy = "use the same Python and Ray here and on every node of the cluster"
        return {"problem": f"it runs {words}, this is {here}", "remedy": remedy}
    nodes = [node for node in client.get_all_node_info(timeout=5).values() if node.state == 0]
    return {"found": f"{len(nodes)} nodes, {words}"}


if __name__ == "__main__":
    main()
