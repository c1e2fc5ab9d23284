"""That every node sees the files which its workers open: asked of each before anything is placed.

    driver: fingerprints, a new file in the run's folder ──▶ a task on every other node ──▶ what differs
            data at an address ──▶ a task on every node that reads it ──▶ its copy is there

A fingerprint is names, sizes and the first and last part of every file, where safetensors and Parquet list
what is in them; of data at an address, what the store lists. A node that joins later is not asked: a worker
that cannot start there says so itself.
"""

import hashlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from alphadrive.config import Config
from alphadrive.data.fetching import access_problem, local_folder, num_bytes_here, place_for_others
from alphadrive.data.schema import shard_paths
from alphadrive.errors import AlphaDriveError, NodeError
from alphadrive.object_store import is_address
from alphadrive.pools import parse_pool
from alphadrive.resources import put_our_packages_first
from cluster.inventory import node_text
from cluster.packing import Ask, Node, most_ranks
from cluster.placement import Placement

# Here, because a worker imports this module before anything else of ours that a user's folder may hide.
put_our_packages_first()

logger = logging.getLogger(__name__)

ANSWER_S = 45.0
"""A node has so long to start a process and look."""
LOOKS = 10
"""A shared file system may show a new file a few seconds later: so many looks, one a second."""
COPY_NEWS_S = 60.0
"""How often a log line tells how many nodes have copied."""
EDGE_BYTES = 1 << 16
MODEL = "model.path"


class Seen(NamedTuple):
    """A folder that workers read: the key that names it, and what tells it from another one: a fingerprint of
    every file by name."""

    key: str
    folder: Path
    files: dict[str, str]


def check_nodes(
    config: Config,
    stage: str,
    placement: Placement,
    model_folder: Path,
    run_folder: Path,
    nodes: Sequence[Node],
    note_progress: Callable[[], None] = lambda: None,
) -> None:
    """Have every other node that may get workers compare what it sees with what the driver does, then copy
    what data is at an address: a worker that starts has no time for that. `note_progress` is called now and
    then while copies grow.

    Raises NodeError with every difference. With one node there is nothing to ask.
    """
    here = ray.get_runtime_context().get_node_id()
    readers, writers = _users(config, stage, placement, [node for node in nodes if node.id != here])
    if not writers:
        return
    paths = {MODEL: str(model_folder), "data.train": config.data.train}
    if stage == "grpo":
        paths["data.eval"] = config.data.eval
    local = {key: Path(path).resolve() for key, path in paths.items() if path and not is_address(path)}
    remote = {key: place_for_others(path) for key, path in paths.items() if path and is_address(path)}
    seen = [Seen(key, folder, fingerprints(key, folder)) for key, folder in local.items()]
    mark = run_folder.resolve() / f".seen-{uuid.uuid4().hex}"
    mark.write_text(mark.name)
    try:
        asked = [(node, (seen, remote) if node in readers else ([], {})) for node in writers]
        _raise_all(_answers(_start(differences, [(node, (*what, mark)) for node, what in asked])))
    finally:
        mark.unlink(missing_ok=True)
    logger.info("%d nodes see the run's folder, %d of them its data and model", len(writers), len(readers))
    if remote and readers:
        _bring_all(sorted(remote.values()), readers, note_progress)


def _bring_all(places: Sequence[str], nodes: Sequence[Node], note_progress: Callable[[], None]) -> None:
    tasks = _start(bring, [(node, (places,)) for node in nodes])
    waiting, before = list(tasks), -1
    while waiting:
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=COPY_NEWS_S)
        num_bytes = sum(map(_number, _start(num_bytes_copied, [(node, (places,)) for node in nodes])))
        done = len(tasks) - len(waiting)
        logger.info("%d of %d nodes have the data, %.2f GB copied", done, len(tasks), num_bytes / 1e9)
        if num_bytes != before:
            note_progress()
        before = num_bytes
    _raise_all(_answers(tasks))


def bring(places: Sequence[str]) -> list[str]:
    """Copy data at addresses, as `place_for_others` gives them, to this node; runs on the node, returns no
    problem. Raises DataError."""
    for place in places:
        local_folder(place)
    return []


def num_bytes_copied(places: Sequence[str]) -> int:
    """Bytes of that data that are on this node; runs on the node."""
    return sum(map(num_bytes_here, places))


def _number(task: Any) -> int:
    try:
        return int(ray.get(task, timeout=ANSWER_S))
    except RayError:  # `bring` tells of a node that is gone
        return 0


def _start(
    function: Callable[..., object], arguments: Sequence[tuple[Node, tuple[Any, ...]]]
) -> dict[Any, Node]:
    """A task on each of these nodes; returns the nodes by task."""
    task, tasks = ray.remote(function), {}
    for node, asked in arguments:
        on_it = NodeAffinitySchedulingStrategy(node.id, soft=False)
        tasks[task.options(num_cpus=0, max_retries=0, scheduling_strategy=on_it).remote(*asked)] = node
    return tasks


def _raise_all(problems: list[str]) -> None:
    if problems:
        raise NodeError(
            "every node must see the same files, on a volume that all mount or as copies at the same place:\n"
            + "\n".join(f"  {line}" for line in problems)
        )


def differences(seen: Sequence[Seen], remote: Mapping[str, str], mark: Path) -> list[str]:
    """What this node does not see as the driver does, in lines; runs on the node. `remote` is data at
    addresses, by key, as `place_for_others` gives it."""
    problems = [f"{key}: {problem}" for key, place in remote.items() if (problem := access_problem(place))]
    for key, folder, expected in seen:
        found = fingerprints(key, folder)
        differing = sorted(name for name in expected | found if found.get(name) != expected.get(name))
        if not folder.is_dir():
            problems.append(f"{key}: {folder} is missing")
        elif differing:
            what = _what(expected.get(differing[0]), found.get(differing[0]))
            others = f", and {len(differing) - 1} other files differ" if differing[1:] else ""
            problems.append(f"{key}: {folder / differing[0]} {what}{others}")
    return problems + _until_fine(lambda: _run_folder_problem(mark))


def fingerprints(key: str, folder: Path) -> dict[str, str]:
    """The files of a folder that workers read, by name: size and hash of both ends. Quick for files of any
    size; what cannot be read is left out."""
    files = shard_paths(folder)
    if key == MODEL:
        files = [file for file in folder.glob("[!.]*") if file.suffix != ".md" and file.is_file()]
    found = {}
    for file in files:
        with suppress(OSError), file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            digest = hashlib.sha256(stream.read(EDGE_BYTES))
            stream.seek(max(0, size - EDGE_BYTES))
            digest.update(stream.read())
            found[file.name] = f"{size}-{digest.hexdigest()}"
    return found


def _what(expected: str | None, found: str | None) -> str:
    if found is None:
        return "is missing or cannot be read"
    return "is there and not for the driver" if expected is None else "is another file than the driver's"


def _run_folder_problem(mark: Path) -> list[str]:
    """Whether this node reads what the driver wrote into the run's folder, and can write there."""
    try:
        if mark.read_text() != mark.name:
            return [f"run.root: {mark.parent} is another folder than the driver's"]
    except FileNotFoundError:
        what = "is another folder than the driver's" if mark.parent.is_dir() else "is missing"
        return [f"run.root: {mark.parent} {what}"]
    except OSError as error:
        return [f"run.root: {mark.parent} cannot be read: {error}"]
    own = mark.with_name(f"{mark.name}-{uuid.uuid4().hex[:8]}")
    try:
        own.write_text("")
        own.unlink()
    except OSError as error:
        return [f"run.root: {mark.parent} cannot be written: {error}"]
    return []


def _until_fine(look: Callable[[], list[str]]) -> list[str]:
    for _ in range(LOOKS):
        if not (problems := look()):
            break
        time.sleep(1.0)
    return problems


def _users(
    config: Config, stage: str, placement: Placement, nodes: Sequence[Node]
) -> tuple[list[Node], list[Node]]:
    """Nodes that may get engines or ranks, which read data and model, and those that may get anything."""
    ranks = Ask(
        count=1,
        cpus=placement.cpus_per_rank,
        gpus=placement.gpus_per_rank,
        pool=placement.learner_pool,
    )
    engines = Ask(
        count=1,
        cpus=placement.cpus_per_engine,
        gpus=placement.gpus_per_engine,
        pool=placement.rollout_pool,
    )
    kinds = [ranks, engines] if stage == "grpo" else [ranks]
    rewards = parse_pool("cluster.reward_pool", config.cluster.reward_pool)
    readers = [node for node in nodes if any(most_ranks([node], kind) for kind in kinds)]
    writers = [node for node in nodes if node in readers or (stage == "grpo" and node.is_in(rewards))]
    return readers, writers


def _answers(tasks: dict[Any, Node]) -> list[str]:
    """Wait for all nodes; their problems, in the order of nodes."""
    done, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=ANSWER_S)
    answered = set(done)
    problems = []
    for task, node in tasks.items():
        if task not in answered:
            ray.cancel(task, force=True)
            lines = [f"did not answer in {ANSWER_S:.0f} s"]
        else:
            try:
                lines = ray.get(task)
            except RayTaskError as error:
                cause = error.cause or error
                is_ours = isinstance(cause, AlphaDriveError)
                lines = [str(cause) if is_ours else f"cannot run this project's code: {cause}"]
            except RayError as error:
                lines = [f"cannot be asked: {error}"]
        problems += [f"{node_text(node)}: {line}" for line in lines]
    return problems
