"""Faults of the program itself: edits of the shipped source, each of which must make some seed fail.

An edit replaces a piece of one function's source that must be there exactly once, and the function is
compiled again in its module. So a mutant is always the shipped code but for the edit; when the code is
rewritten so that the piece is gone, the mutant says so. The seed of each is only where to look first: any
that fails will do. `python -m simulation --mutants` tells them anew.
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
    """What is taken away, the edits that do it, and a seed that fails then."""

    name: str
    seed: int
    edits: tuple[Edit, ...]


def applied(mutant: Mutant) -> AbstractContextManager[None]:
    """The mutant in the place of the shipped code, for all that call it, while in the block."""
    sources: dict[str, str] = {}
    for edit in mutant.edits:
        source = sources.get(edit.target) or textwrap.dedent(inspect.getsource(_shipped(edit.target)[1]))
        num = source.count(edit.old)
        if num != 1:
            raise ValueError(
                f"mutant {mutant.name!r}: {edit.old!r} is {num} times in {edit.target}, expected once: the "
                "code was rewritten, rewrite the mutant"
            )
        sources[edit.target] = source.replace(edit.old, edit.new)
    return replaced([_recompiled(target, source) for target, source in sources.items()])


def _shipped(target: str) -> tuple[Any, Any]:
    """The module and the function."""
    module_name, _, path = target.partition(":")
    module = importlib.import_module(module_name)
    owner: Any = module
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    return module, vars(owner)[name]


def _recompiled(target: str, source: str) -> tuple[Any, str, Any]:
    module, function = _shipped(target)
    made: dict[str, Any] = {}
    exec(compile(source, f"<mutant of {target}>", "exec"), vars(module), made)
    return function, "__code__", made[function.__name__].__code__


TRAIN, ROLL_OUT, RUN = "cluster.loop:_train", "cluster.loop:_roll_out", "cluster.grpo:train_on_ray"
BUFFER, LEDGER = "cluster.buffer:SlotBuffer", "cluster.queries:QueryLedger"
POOL, DISPATCHER = "cluster.rollout_pool:RolloutPool", "cluster.dispatch:Dispatcher"
LINE = "cluster.exchange:Line"
SYNC, STORE = "cluster.weight_sync:WeightSync", "alphadrive.checkpoints:CheckpointStore"
SETTLE = "parts.queries.settle(header.ticket, Outcome.TRAINED, has_signal=header.has_signal)"
TWICE = f"[{SETTLE} for _ in range(2)]"


NEXT_VERSIONS = Edit(
    "cluster.headers:check_receipt",
    "not first <= oldest <= newest <= last",
    "not (first <= oldest <= newest and newest.step <= last.step + 3)",
)
"""What is drawn with weights that are not proved yet passes for what it is."""


def one(name: str, seed: int, target: str, old: str, new: str) -> Mutant:
    """A mutant of one edit."""
    return Mutant(name, seed, (Edit(target, old, new),))


LOOP_MUTANTS = (
    one(
        "one slot too many",
        0,
        f"{BUFFER}._hand_out",
        "self.num_held < self.num_slots",
        "self.num_held <= self.num_slots",
    ),
    Mutant(
        "groups are taken as they come, not by ticket",
        2,
        (
            Edit(f"{BUFFER}.take", "self._num_settled - self._num_taken", "self.num_ready"),
            Edit(
                f"{BUFFER}.take",
                "list(islice(self._pending.values(), num_groups))",
                "list(islice((each for each in self._pending.values() if each is not None), num_groups))",
            ),
        ),
    ),
    one("a void ticket is not given back", 0, f"{BUFFER}.void", "self._tickets_left += 1", "pass"),
    Mutant(
        "slots are released before the weights are published",
        0,
        (
            Edit(TRAIN, "        buffer.release(headers)\n", ""),
            Edit(TRAIN, "        is_eval_due = ", "        buffer.release(headers)\n        is_eval_due = "),
        ),
    ),
    one("the last weights are not published", 8, TRAIN, "if published != learner.version:", "if False:"),
    one("a step that was not applied counts as trained", 0, TRAIN, "if result.was_updated:", "if True:"),
    one(
        "groups without signal are trained",
        0,
        ROLL_OUT,
        "header.has_signal or not schedule.skips_flat_groups",
        "True",
    ),
    one(
        "a dead letter keeps its slot",
        8,
        ROLL_OUT,
        "queries.settle(ticket, Outcome.DEAD_LETTERED, error=error)\n            buffer.void(ticket)",
        "queries.settle(ticket, Outcome.DEAD_LETTERED, error=error)",
    ),
    Mutant(
        "the learner is told of groups in any order",
        2,
        (
            Edit(
                f"{BUFFER}._settle",
                "self._unsettled[0]",
                "next((each for each in self._unsettled if self._pending.get(each)), self._unsettled[0])",
            ),
            Edit(f"{BUFFER}._settle", "self._unsettled.popleft()", "self._unsettled.remove(ticket)"),
        ),
    ),
)

LEDGER_MUTANTS = (
    one("a group is settled twice", 0, TRAIN, SETTLE, TWICE),
    Mutant(
        "a group is settled twice and the ledger does not look",
        0,
        (
            Edit(TRAIN, SETTLE, TWICE),
            Edit(f"{LEDGER}._close", "self._open.pop(ticket)", "self._open[ticket]"),
            Edit(
                f"{LEDGER}.settle",
                "if draw.epoch in self._closed_epochs or draw.number in ended:",
                "if False:",
            ),
        ),
    ),
    one(
        "a query whose step was not applied is forgotten",
        82,
        f"{LEDGER}.give_back",
        "self._given_back.append(issue.draw)",
        "pass",
    ),
    one(
        "a query whose step was not applied is asked for ever",
        82,
        f"{LEDGER}.give_back",
        "issue.tries == MAX_TRIES or",
        "",
    ),
    one(
        "a resumed ledger asks again for what had ended",
        9,
        f"{LEDGER}._draws",
        "if number not in ended:",
        "if True:",
    ),
    one(
        "the seed of a query follows from its ticket",
        9,
        f"{LEDGER}.take",
        "sampling_seed(self._seed, draw.epoch, query.query_id, turn, tries)",
        "ticket",
    ),
    one(
        "the ledger is not resumed",
        9,
        "cluster.grpo:_make_ledger",
        'attempt.saved.get("queries")',
        "None",
    ),
    one(
        "tickets start anew after a resume",
        9,
        "cluster.grpo:drive",
        "num_groups, ledger.next_ticket)",
        "num_groups, 0)",
    ),
    one(
        "an attempt takes the number of the one before",
        5,
        "cluster.resuming:_next_attempt",
        "max(before, default=-1) + 1",
        "max(before, default=0)",
    ),
)

ENGINE_MUTANTS = (
    one(
        "engines draw while they are updated",
        15,
        f"{POOL}.begin_sync",
        "engine.enter(WorkerState.STALE)",
        "pass",
    ),
    Mutant(
        "no version fence: groups do not wait for the proof",
        5,
        (Edit(f"{POOL}.begin_sync", "engine.settled.clear()", "pass"), NEXT_VERSIONS),
    ),
    Mutant(
        "no version fence: what a fenced engine drew is accepted",
        54,
        (Edit(f"{DISPATCHER}._is_accepted", "if engine.was_fenced:", "if False:"), NEXT_VERSIONS),
    ),
    one(
        "a restarted engine serves without the weights",
        4,
        f"{POOL}._bring_weights",
        "await self.catch_up(engine)",
        "self.admit(engine)",
    ),
    one(
        "groups wait for ever for a lost engine",
        55,
        "cluster.engine_handle:Engine.enter",
        "self.settled.set()",
        "pass",
    ),
    one(
        "groups go to engines that are not proved",
        15,
        "cluster.load_index:is_open",
        "engine.state is WorkerState.SERVING",
        "engine.is_up",
    ),
    one(
        "what an engine returns is not checked",
        40,
        "cluster.headers:check_receipt",
        "if problem is not None:",
        "if False:",
    ),
    one(
        "engines are admitted without the canary",
        54,
        f"{SYNC}._prove_in_turn",
        "self._limit.check(engine.id, version, difference)",
        "pass",
    ),
    one(
        "the digest is not compared",
        105,
        f"{SYNC}._update",
        "check_digest(engine.id, weights, receipt.sha256, version)",
        "pass",
    ),
    one(
        "an engine catches up while the learner steps",
        17,
        f"{SYNC}.catch_up",
        "async with self._learner.lock:",
        "if True:",
    ),
    one(
        "a node that leaves keeps its engines",
        40,
        f"{POOL}.drain_node",
        "self._fleet.drain_node(node_id, deadline_s)",
        "pass",
    ),
    one(
        "what was ordered is sent after an engine stopped serving",
        31,
        "cluster.engine_handle:Engine.enter",
        "self.line.flush()",
        "pass",
    ),
    one(
        "what comes back for an order that was given up is taken for another one's",
        11,
        f"{LINE}._hear",
        "answer, _ = self._awaited.pop(number, (None, 0.0))",
        "answer, _ = self._awaited.pop(min(self._awaited, default=number), (None, 0.0))",
    ),
    one(
        "groups of one reply are mixed up",
        5,
        f"{LINE}._hear",
        "BatchItem(groups, index)",
        "BatchItem(groups, 0)",
    ),
    one(
        "headers of one reply are mixed up",
        5,
        "cluster.reward_pool:_deliver",
        "BatchItem(scored, index)",
        "BatchItem(scored, 0)",
    ),
    one(
        "a reward that failed is zero",
        4,
        "cluster.reward_pool:RewardPool.score",
        'raise RewardError(f"failed {len(failures)} times: {failures[-1]}")',
        "drawn = await group\n"
        "    zero = dict(reward_mean=0.0, reward_std=0.0, reward_min=0.0, reward_max=0.0)\n"
        "    return GroupHeader(ticket=drawn.ticket, query_id='', row=drawn.query.row, num_tokens=0,\n"
        "        scored=None, weight_version=drawn.oldest_version, term_means={}, term_stds={}, **zero)",
    ),
)

RECOVERY_MUTANTS = (
    one(
        "a restarted learner keeps its attempt",
        33,
        "cluster.launch:Attempt.begin_again",
        "max(start.version.attempt, self.version.attempt + 1)",
        "self.version.attempt",
    ),
    one(
        "engines keep the weights of the learner that was lost",
        0,
        "cluster.grpo:_train",
        "await sync.publish(learner.version)",
        "if not sync.seconds: await sync.publish(learner.version)",
    ),
    one(
        "a worker that is killed for its memory ends the run",
        0,
        "cluster.remote:fetch",
        "except DEATHS as error:",
        "except RayActorError as error:",
    ),
    one(
        "a restarted learner begins with the starting model",
        18,
        "cluster.recovery:_go_back",
        "checkpoint.path if checkpoint else None",
        "None",
    ),
    one(
        "the end of a run writes no checkpoint",
        0,
        "cluster.grpo:_to_the_end",
        "if step != recorder.last_checkpoint_step:",
        "if False:",
    ),
    one(
        "old checkpoints go before the new one is there",
        136,
        f"{STORE}.begin",
        "temporary = self._temporary(step)",
        "[shutil.rmtree(old.path) for old in self.all()[: len(self.all()) - self.keep_last + 1]]\n"
        "    temporary = self._temporary(step)",
    ),
    one("files of a checkpoint are not synced", 27, "alphadrive.manifest:seal", "fsync_path(file)", "pass"),
    one("the rename of a checkpoint is not synced", 37, f"{STORE}.commit", "fsync_path(self.folder)", "pass"),
    one("checkpoints are not verified", 75, f"{STORE}.latest", "verify(checkpoint.path)", "pass"),
    one(
        "a full disk ends the run",
        87,
        "cluster.checkpointing:CheckpointWriter.write",
        "except (OSError, CheckpointWriteError) as error:",
        "except ZeroDivisionError as error:",
    ),
    # Once shipped, found by the simulation.
    one(
        "a learner that was up before the others is left",
        3,
        RUN,
        "learner = attempt.watched.learner = await _start_learner(attempt, placement, place)",
        "started = await _start_learner(attempt, placement, place)\n        await pool.start()\n"
        "        learner = attempt.watched.learner = started",
    ),
    one(
        "weights of an export that was cut off are left",
        173,
        RUN,
        "            remove_leftover_weights(attempt.run)\n",
        "",
    ),
)

MUTANTS = (*LOOP_MUTANTS, *LEDGER_MUTANTS, *ENGINE_MUTANTS, *RECOVERY_MUTANTS)
