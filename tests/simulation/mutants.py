"""Faults of the program itself: edits of the shipped source, each of which must make some seed fail.

An edit replaces a piece of one function's source that must be there exactly once, and the function is
compiled again in its module. So a mutant is always the shipped code but for the edit; when the code is rewritten
so that the piece is gone, the mutant says so.
"""

import importlib
import inspect
import textwrap
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from simulation.replacing import replaced


@dataclass(frozen=True, slots=True)
class Edit:
    """In the source of `target` (`module:Class.method` or `module:function`), `old` becomes `new`."""

    target: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """What is taken away, and the edits that do it."""

    name: str
    edits: tuple[Edit, ...]


def applied(mutant: Mutant) -> AbstractContextManager[None]:
    """The mutant in the place of the shipped code, while in the block."""
    sources: dict[str, str] = {}
    for edit in mutant.edits:
        source = sources.get(edit.target) or textwrap.dedent(inspect.getsource(_shipped(edit.target)[2]))
        num = source.count(edit.old)
        if num != 1:
            raise ValueError(
                f"mutant {mutant.name!r}: {edit.old!r} is {num} times in {edit.target}, expected once: the code "
                "was rewritten, rewrite the mutant"
            )
        sources[edit.target] = source.replace(edit.old, edit.new)
    return replaced([_recompiled(target, source) for target, source in sources.items()])


def _shipped(target: str) -> tuple[Any, Any, Any]:
    """The module, the owner (class or module) and the function."""
    module_name, _, path = target.partition(":")
    module = importlib.import_module(module_name)
    owner: Any = module
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    return module, owner, vars(owner)[name]


def _recompiled(target: str, source: str) -> tuple[Any, str, Any]:
    module, owner, function = _shipped(target)
    made: dict[str, Any] = {}
    exec(compile(source, f"<mutant of {target}>", "exec"), vars(module), made)
    return owner, function.__name__, made[function.__name__]


LOOP, BUFFER, LEDGER = "cluster.loop:_train", "cluster.buffer:SlotBuffer", "cluster.queries:QueryLedger"
POOL, SYNC, STORE = (
    "cluster.rollout_pool:RolloutPool",
    "cluster.weight_sync:WeightSync",
    "alphadrive.checkpoints:CheckpointStore",
)
SETTLE = """for header in headers:
            parts.queries.settle(header.ticket, outcome, has_signal=header.has_signal)
"""


def one(name: str, target: str, old: str, new: str) -> Mutant:
    """A mutant of one edit."""
    return Mutant(name, (Edit(target, old, new),))


MUTANTS = (
    one(
        "one slot too many",
        f"{BUFFER}._hand_out",
        "self.num_held < self.num_slots",
        "self.num_held <= self.num_slots",
    ),
    one(
        "groups are taken as they come, not by ticket",
        f"{BUFFER}.take",
        "list(islice(self._pending.values(), num_groups))",
        "list(islice((each for each in self._pending.values() if each is not None), num_groups))",
    ),
    one("a void ticket is not given back", f"{BUFFER}.void", "self._tickets_left += 1", "pass"),
    Mutant(
        "slots are released before the weights are published",
        (
            Edit(LOOP, "        buffer.release(headers)\n", ""),
            Edit(LOOP, "        is_eval_due = ", "        buffer.release(headers)\n        is_eval_due = "),
        ),
    ),
    one("the last weights are not published", LOOP, "if published != learner.version:", "if False:"),
    one(
        "a step that was not finite counts as trained",
        LOOP,
        "Outcome.TRAINED if result.was_updated else Outcome.NON_FINITE",
        "Outcome.TRAINED",
    ),
    one(
        "groups without signal are trained",
        "cluster.loop:_roll_out",
        "header.has_signal or not schedule.skips_flat_groups",
        "True",
    ),
    one(
        "a dead letter keeps its slot",
        "cluster.loop:_roll_out",
        "queries.settle(ticket, Outcome.DEAD_LETTERED, error=error)\n            buffer.void(ticket)",
        "queries.settle(ticket, Outcome.DEAD_LETTERED, error=error)",
    ),
    one("a group is settled twice", LOOP, SETTLE, SETTLE + "        " + SETTLE),
    Mutant(
        "a group is settled twice and the ledger does not look",
        (
            Edit(LOOP, SETTLE, SETTLE + "        " + SETTLE),
            Edit(f"{LEDGER}.settle", "self._open.pop(ticket)", "self._open[ticket]"),
            Edit(f"{LEDGER}.settle", "if draw in ended:", "if False:"),
        ),
    ),
    one(
        "a resumed ledger asks again for what had ended",
        f"{LEDGER}._draws",
        "if draw not in ended:",
        "if True:",
    ),
    one("the ledger is not resumed", "cluster.grpo:drive", 'state=saved.get("queries")', "state=None"),
    one("tickets start anew after a resume", "cluster.grpo:drive", 'saved.get("next_ticket", 0)', "0"),
    one(
        "an attempt takes the number of the one before",
        "cluster.launch:_next_attempt",
        "max(before, default=-1) + 1",
        "max(before, default=0)",
    ),
    one(
        "engines draw while they are updated",
        f"{POOL}.begin_sync",
        "engine.state = EngineState.SYNCING",
        "pass",
    ),
    one("groups do not wait for the proof", f"{POOL}.begin_sync", "engine.settled.clear()", "pass"),
    one(
        "replies of a fenced engine are accepted",
        f"{POOL}._attempts",
        "if engine.state is not EngineState.LOST:",
        "if True:",
    ),
    one(
        "a restarted engine serves without the weights",
        f"{POOL}._restart",
        "await self.catch_up(engine)",
        "pass",
    ),
    one("groups wait for ever for a lost engine", f"{POOL}.lose", "engine.settled.set()", "pass"),
    one(
        "groups go to engines in any state",
        f"{POOL}._least_loaded",
        "if engine.state is EngineState.SERVING",
        "if engine.state is not EngineState.LOST",
    ),
    one(
        "engines are admitted without the canary",
        f"{SYNC}._bring",
        "self._limit.check(engine.engine_id, version, difference)",
        "pass",
    ),
    one(
        "the digest is not compared",
        f"{SYNC}._update",
        "check_digest(engine.engine_id, weights, received, version)",
        "pass",
    ),
    one(
        "an engine catches up while the learner steps",
        f"{SYNC}.catch_up",
        "async with self._learner.lock:",
        "if True:",
    ),
    one(
        "a reward that failed is zero",
        "cluster.reward_pool:RewardPool.score",
        "raise RewardError(\n"
        '        f"failed {MAX_ATTEMPTS} times: {_words(failure, self._config.timeout_s)}"\n'
        "    ) from failure",
        "drawn = await group\n"
        "    zero = dict(reward_mean=0.0, reward_std=0.0, reward_min=0.0, reward_max=0.0)\n"
        "    return GroupHeader(ticket=drawn.ticket, query_id='', row=drawn.query.row, num_tokens=0, scored=None,\n"
        "        weight_version=drawn.oldest_version, term_means={}, term_stds={}, **zero)",
    ),
    one(
        "old checkpoints go before the new one is there",
        f"{STORE}.begin",
        "temporary = self._temporary(step)",
        "[shutil.rmtree(old.path) for old in self.all()[: len(self.all()) - self.keep_last + 1]]\n"
        "    temporary = self._temporary(step)",
    ),
    one("files of a checkpoint are not synced", f"{STORE}.commit", "for file in files:", "for file in []:"),
    one("the rename of a checkpoint is not synced", f"{STORE}.commit", "fsync_path(self.folder)", "pass"),
    one("checkpoints are not verified", f"{STORE}.latest", "verify(checkpoint.path)", "pass"),
)
