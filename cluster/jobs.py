"""What is different in a job given to `ray job submit`: its folder is a copy, its end has a time limit.

Ray runs the command of a submitted job on a node of the cluster, in a copy of the submitted folder that is
thrown away with the job, and says so in environment variables. It ends a job with SIGTERM, and with SIGKILL
after RAY_JOB_STOP_WAIT_TIME_S. Called by `cluster.launch` before anything is started. See docs/submitting.md.
"""

import json
import os
from pathlib import Path
from typing import Any

from alphadrive.config import Config
from alphadrive.errors import ConfigError
from alphadrive.model_folder import TINY
from alphadrive.object_store import is_address

RAY_STOP_WAIT_S = 3
"""Ray's own, where the job's environment does not set RAY_JOB_STOP_WAIT_TIME_S."""
CLOSING_S = 30
"""Enough to close engines, reward workers and ranks after the last checkpoint."""
_AN_ADDRESS = " (or s3://, gs://)"
_OTHERWISE = {
    "data.train": _AN_ADDRESS,
    "data.eval": _AN_ADDRESS,
    "model.path": " (or a hub id, with model.revision)",
}


def check_paths(config: Config) -> None:
    """Check that a submitted job writes to, and reads from, where every node gets and what outlives the job;
    anywhere else than in a submitted job every path is fine.

    Raises ConfigError with all that are not, one a line.
    """
    job = _submitted()
    if job is None:
        return
    copy = Path.cwd() if "working_dir" in job.get("runtime_env", {}) else None
    paths = {"run.root": config.run.root, "data.train": config.data.train}
    if config.data.eval is not None:
        paths["data.eval"] = config.data.eval
    if config.model.path != TINY and config.model.revision is None:
        paths["model.path"] = config.model.path
    folders = {key: path for key, path in paths.items() if not is_address(path)}
    problems = [problem for key, path in folders.items() if (problem := _problem(key, path, copy))]
    if problems:
        raise ConfigError("\n".join(problems))


def cluster_to_join() -> str | None:
    """The address of the cluster that RAY_ADDRESS names; None when there is none, and one is to be started.

    Raises ConfigError for an address that only other commands of Ray take.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if "://" in address:
        raise ConfigError(
            f"RAY_ADDRESS={address}: a run joins a cluster from one of its nodes, by host:6379 or auto; from "
            "elsewhere give it to `ray job submit` (docs/submitting.md), or unset RAY_ADDRESS to start a "
            "cluster here"
        )
    return None if address in ("", "local") else address


def stop_note(stop_grace_s: float) -> str | None:
    """What to tell of a submitted job that Ray gives less time to end than a checkpoint may take."""
    if _submitted() is None:
        return None
    text = os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", "")
    wait_s, needed_s = int(text) if text.isdecimal() else RAY_STOP_WAIT_S, stop_grace_s + CLOSING_S
    if wait_s >= needed_s:
        return None
    setting = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": f"{needed_s:.0f}"}})
    return (
        f"`ray job stop` gives this job {wait_s} s to end, then kills it: the work since the last checkpoint "
        f"may be lost. For checkpoint.stop_grace_s={stop_grace_s:g} and {CLOSING_S} s to close everything, "
        f"submit with --runtime-env-json '{setting}'"
    )


def _submitted() -> dict[str, Any] | None:
    """What Ray says of the submitted job that this process runs in; None when it runs in none."""
    try:
        job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    except ValueError as error:
        raise ConfigError(
            "RAY_JOB_CONFIG_JSON_ENV_VAR: Ray sets it for a submitted job; expected JSON, got what is none: "
            f"{error}; unset it"
        ) from None
    return job if "job_submission_id" in (job.get("metadata") or {}) else None


def _problem(key: str, path: str, copy: Path | None) -> str | None:
    if not Path(path).is_absolute():
        where = "is relative, and a submitted job runs in a copy of its folder that is thrown away with it"
    elif copy is not None and Path(path).resolve().is_relative_to(copy.resolve()):
        where = "is in the job's copy of the submitted folder, which is thrown away with it"
    else:
        return None
    example = f"/shared/{Path(path).name if Path(path).is_absolute() else path.lstrip('./')}"
    return (
        f"{key}={path!r}: {where}; expected an absolute path that every node reaches"
        f"{_OTHERWISE.get(key, '')}, for example {key}={example}"
    )
