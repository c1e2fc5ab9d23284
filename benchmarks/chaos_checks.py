"""What must hold of a run when it has ended, whatever was done to it.

    ledger       every draw of an epoch ended once: trained, or skipped without variance; none was given up
    learner      it trained on as many groups as its steps take, and the ledger counts the same
    metrics      one line a step, no step left out; no group older than the bound
    rollouts     no group twice, no query oftener than the ledger says it ended

Rollouts may lack groups: a reward worker that is killed takes those with it that it has not written yet
(docs/architecture.md). They are counted, not held against the run. Groups that were under way at the end are
no repetition: they are taken back when the run goes on.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from chaos_run import NUM_ROWS

from alphadrive import metric_names as names
from alphadrive.checkpoints import Checkpoint, CheckpointStore
from alphadrive.config import Config
from alphadrive.rewind import EndedTickets
from alphadrive.run_folder import LEDGER_FILE, read_metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What became of the groups, and what is wrong with that."""

    steps: int
    trained: int
    skipped: int
    lost: int
    """Draws that were given up, or that did not end in an epoch that is over."""
    repeated: int
    """Groups that ended or were written twice, beyond what the ledger says."""
    not_on_disk: int
    problems: tuple[str, ...]


def account_of(run: Path, config: Config) -> Account:
    """Read the newest checkpoint's ledger and the records of a run that has ended."""
    checkpoint = CheckpointStore(run / "checkpoints").latest()
    if checkpoint is None:
        return Account(
            steps=0, trained=0, skipped=0, lost=0, repeated=0, not_on_disk=0, problems=("no checkpoint",)
        )
    ledger = json.loads((checkpoint.path / LEDGER_FILE).read_text())
    queries = ledger["queries"]
    ended = ended_of(queries)
    over = EndedTickets(ledger["next_ticket"], frozenset(ledger["open_tickets"]))
    rows = [(ticket, row) for ticket, row in rollout_rows(run) if ticket in over]
    lost = len(queries["dead_letters"]) + sum(
        abs(NUM_ROWS - sum(counts.values())) for counts in queries["closed_epochs"].values()
    )
    repeated = sum(count - 1 for count in Counter(ticket for ticket, _ in rows).values())
    drawn = Counter(row for _, row in set(rows))
    ended_by_row = ended_rows(queries)
    repeated += sum((drawn - ended_by_row).values())
    problems = [
        *ledger_problems(queries, ended),
        *step_problems(run, config, checkpoint, ended),
        *([f"{lost} groups were lost"] if lost else []),
        *([f"{repeated} groups were repeated"] if repeated else []),
    ]
    return Account(
        steps=checkpoint.step,
        trained=ended["trained"],
        skipped=ended["skipped"],
        lost=lost,
        repeated=repeated,
        not_on_disk=sum((ended_by_row - drawn).values()),
        problems=tuple(problems),
    )


def ended_of(queries: dict[str, Any]) -> Counter[str]:
    """How many draws ended how."""
    ended = Counter(outcome for draws in queries["open_epochs"].values() for outcome in draws.values())
    for counts in queries["closed_epochs"].values():
        ended.update(counts)
    return ended


def ended_rows(queries: dict[str, Any]) -> Counter[int]:
    """How often each row of the dataset has ended."""
    rows = Counter({row: len(queries["closed_epochs"]) for row in range(NUM_ROWS)})
    rows.update(int(number) % NUM_ROWS for draws in queries["open_epochs"].values() for number in draws)
    return rows


def rollout_rows(run: Path) -> list[tuple[int, int]]:
    """Ticket and row of every group on disk."""
    table = pq.read_table(run / "rollouts", columns=["ticket", "row"])
    return list(zip(table["ticket"].to_pylist(), table["row"].to_pylist(), strict=True))


def ledger_problems(queries: dict[str, Any], ended: Counter[str]) -> Iterator[str]:
    """What is wrong in the ledger by itself."""
    issued = sum(queries["issued"].values())
    accounted = ended.total() + len(queries["failed"]) + len(queries["under_way"])
    if issued != accounted:
        yield f"{issued} draws were issued, {accounted} ended or are under way"
    if unknown := set(ended) - {"trained", "skipped"}:
        yield f"draws ended as {sorted(unknown)}"
    for letter in queries["dead_letters"]:
        yield f"dead letter: {letter}"


def step_problems(run: Path, config: Config, checkpoint: Checkpoint, ended: Counter[str]) -> Iterator[str]:
    """Whether ledger, steps and metrics tell the same."""
    grpo = config.grpo
    if ended["trained"] != checkpoint.step * grpo.groups_per_step:
        yield (
            f"{ended['trained']} groups were trained in {checkpoint.step} steps of {grpo.groups_per_step}, "
            "by the ledger"
        )
    path = run / "metrics.jsonl"
    steps = [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]
    if steps != list(range(1, checkpoint.step + 1)):
        yield f"metrics: {len(steps)} lines, expected one for each of {checkpoint.step} steps, in order"
    oldest = max(line[names.POLICY_LAG_MAX] or 0 for line in read_metrics(path))
    bound = grpo.max_policy_lag + grpo.sync_every - 1
    if oldest > bound:
        yield f"a group was {oldest} versions old, at most {bound} are allowed"
