"""Node pools: the labels that a node must have to be given a kind of worker.

    cluster.learner_pool: "pool=learner"             nodes started with `ray start --labels pool=learner`
    cluster.rollout_pool: "pool=rollout,gpu=h100"    both labels
    cluster.reward_pool: ""                          any node

Pure; read by `alphadrive.config_checks` and by `cluster`.
"""

import re
from collections.abc import Mapping

from alphadrive.errors import ConfigError

POOL_KEYS = ("cluster.learner_pool", "cluster.rollout_pool", "cluster.reward_pool")

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LABEL = re.compile(rf"((?:[A-Za-z0-9.-]{{1,253}}/)?{_NAME})=({_NAME})")
"""As Ray takes them, which are Kubernetes' rules."""


def parse_pool(key: str, text: str) -> dict[str, str]:
    """The labels that `text`, the value of `key`, asks for; none when it is empty. Raises ConfigError.

    >>> parse_pool("cluster.learner_pool", "pool=learner, zone=a")
    {'pool': 'learner', 'zone': 'a'}
    """
    labels: dict[str, str] = {}
    for part in text.split(",") if text.strip() else ():
        match = _LABEL.fullmatch(part.strip())
        if match is None or match[1] in labels:
            raise ConfigError(
                f"{key}={text!r}: expected labels of nodes, each once, such as pool=learner or "
                "pool=learner,zone=a, or nothing for any node"
            )
        labels[match[1]] = match[2]
    return labels


def pool_text(labels: Mapping[str, str]) -> str:
    """Labels as a user writes them; `any node` for none."""
    return ",".join(f"{name}={value}" for name, value in labels.items()) or "any node"
