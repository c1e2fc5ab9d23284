"""Every scored group, on disk, as Parquet: one row a group.

A reward worker holds one `RolloutWriter`. It collects groups and writes them as complete small files
(`rollouts/w0-00003.parquet`), each renamed into place, so whatever stops the run costs at most the
groups of the part not yet written, and every file there is can be read. A part that a full disk does not
take is tried again later.
"""

import logging
import os
import time
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from alphadrive.types import ScoredGroup

SCHEMA = pa.schema(
    [
        ("ticket", pa.int64()),
        ("query_id", pa.string()),
        ("row", pa.int64()),
        ("speed_mps", pa.float32()),
        ("navigation", pa.string()),
        ("plans", pa.list_(pa.string())),
        ("engine_id", pa.string()),
        ("weight_version", pa.string()),
        ("time_s", pa.float64()),
        ("generate_started_s", pa.float64()),
        ("generate_s", pa.float64()),
        ("score_s", pa.float64()),
        ("texts", pa.list_(pa.string())),
        ("finish_reasons", pa.list_(pa.string())),
        ("num_tokens", pa.list_(pa.int32())),
        ("reward_terms", pa.map_(pa.string(), pa.list_(pa.float64()))),
        ("rewards", pa.list_(pa.float64())),
        ("advantages", pa.list_(pa.float64())),
        ("versions", pa.list_(pa.string())),
        ("token_ids", pa.list_(pa.list_(pa.int32()))),
        ("rollout_logprobs", pa.list_(pa.list_(pa.float32()))),
    ],
    metadata={"alphadrive_rollouts_version": "1"},
)
"""`weight_version` is that of the oldest token of the group, `versions` the same for each completion;
`reward_terms` maps a term's name to its value for each completion. `time_s` is when the group was scored,
`generate_started_s`, `generate_s` and `score_s` are as in `alphadrive.types`."""


log = logging.getLogger(__name__)


class RolloutWriter:
    """Writes the groups of one worker. `writer_id` must be unique among the workers of a run.

    A part is written after `groups_per_part` groups, or with the first group that comes later than
    `max_wait_s` after the part's first one, and by `flush` and `close`.
    """

    def __init__(
        self, folder: Path, writer_id: str, groups_per_part: int = 64, max_wait_s: float = 30.0
    ) -> None:
        self._folder = folder
        self._writer_id = writer_id
        self._groups_per_part = groups_per_part
        self._max_wait_s = max_wait_s
        self._rows: list[dict[str, object]] = []
        self._oldest_s = 0.0
        self._has_failed = False
        folder.mkdir(parents=True, exist_ok=True)
        parts = [int(path.stem.rpartition("-")[2]) for path in folder.glob(f"{writer_id}-*.parquet")]
        self._next_part = max(parts, default=-1) + 1

    def write(self, scored: ScoredGroup) -> None:
        """Take one group; it reaches the disk with its part."""
        now = time.monotonic()
        if not self._rows:
            self._oldest_s = now
        self._rows.append(_row(scored))
        is_full = len(self._rows) >= self._groups_per_part and not self._has_failed
        if is_full or now - self._oldest_s > self._max_wait_s:
            self.flush()

    def flush(self) -> None:
        """Write the groups taken so far as a complete file; what cannot be written is kept for later."""
        if not self._rows:
            return
        path = self._folder / f"{self._writer_id}-{self._next_part:05d}.parquet"
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            pq.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA), temporary, compression="zstd")
            temporary.replace(path)
        except OSError as error:
            log.error("%s: %d groups wait to be written: %s", path, len(self._rows), error)
            self._has_failed, self._oldest_s = True, time.monotonic()
            return
        finally:
            temporary.unlink(missing_ok=True)
        self._next_part += 1
        self._rows, self._has_failed = [], False

    def close(self) -> None:
        """Write what is left. Safe to call twice."""
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _row(scored: ScoredGroup) -> dict[str, object]:
    group, query, completions = scored.group, scored.group.query, scored.group.completions
    names = list(dict.fromkeys(name for reward in scored.rewards for name in reward.terms))
    return {
        "ticket": group.ticket,
        "query_id": query.query_id,
        "row": query.row,
        "speed_mps": query.speed_mps,
        "navigation": query.navigation,
        "plans": list(query.plans),
        "engine_id": group.engine_id,
        "weight_version": str(group.oldest_version),
        "time_s": time.time(),
        "generate_started_s": group.generate_started_s,
        "generate_s": group.generate_s,
        "score_s": scored.score_s,
        "texts": [completion.text for completion in completions],
        "finish_reasons": [completion.finish_reason for completion in completions],
        "num_tokens": [len(completion.token_ids) for completion in completions],
        "reward_terms": [(name, [reward.terms.get(name) for reward in scored.rewards]) for name in names],
        "rewards": [reward.total for reward in scored.rewards],
        "advantages": list(scored.advantages),
        "versions": [str(completion.oldest_version) for completion in completions],
        "token_ids": [completion.token_ids for completion in completions],
        "rollout_logprobs": [completion.rollout_logprobs for completion in completions],
    }
