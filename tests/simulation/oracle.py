"""What must hold, checked while it happens against the truth that only the simulation knows.

    I1  every (epoch, draw) ends exactly once over the attempts that count, in the order of the draws, with
        the same seed whoever asks; the summary says how many ended how
    I2  a trained group was drawn under the versions its tokens claim, by an engine that had proved exactly
        those weights, in this attempt, within the lag bound; no group goes to an engine that is fenced, has
        not proved its weights or is behind what was published; no reply of a fenced engine is accepted; the
        engines end with the last weights; a version never names two policies
    I3  groups are complete
    I4  only a committed, undamaged checkpoint is loaded, the newest there is; learner and ledger agree in it
    I5  rewards are what the reward function gives; a query that failed has no reward
    I6  slots are never exceeded, tickets are trained in order, nothing is trained twice; every rank is told
        beforehand what it will train on
    I7  no group goes to a node that leaves, nothing waits for ever

`simulation.watching` calls it from the shipped classes, `simulation.parts` from the fakes.
"""

import itertools
import json
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulation.actors import ActorProcess, Call
from simulation.history import Draw, History, Saved, draws_of
from simulation.parts import drawn_by, rewards_of
from simulation.settings import Setting

from alphadrive.types import DrivingQuery, GroupHeader, RolloutGroup, ScoredGroup, WeightVersion
from cluster.loop import Outcome

if TYPE_CHECKING:
    from simulation.ranks import Gang

WEDGE_S = 1500.0
"""Longer than any single wait that the configuration or the code allows."""
TOLD = {"start", "generate", "update_weights", "step", "save", "load", "export_weights"}
"""Calls that the trace shows."""


class Oracle:
    """Watches one campaign: all lives of a driver over one disk. `violations` says what did not hold."""

    def __init__(self, setting: Setting, say: Callable[[str], None]) -> None:
        config, grpo = setting.config, setting.config.grpo
        self.violations: list[str] = []
        self.history = History()
        self.saved: dict[str, Saved] = {}
        self.kept: list[Saved] = []
        """Checkpoints whose commit returned and that were not pruned, oldest first."""
        self.num_checks = 0
        self._order, self._num_rows = setting.order, setting.num_rows
        self._num_slots, self._lag_bound = config.num_slots, grpo.max_policy_lag + grpo.sync_every - 1
        self._group_size, self._groups_per_step = grpo.group_size, grpo.groups_per_step
        self._skips_flat, self._flat_share = grpo.kl_coef == 0, setting.flat_share
        self._max_attempts, self._keep_last = config.rollout.max_attempts, config.checkpoint.keep_last
        self._say = say
        self._seeds: dict[tuple[int, int, bool], int | None] = {}
        """Of every draw, the first time and the second."""
        self._weights_of: dict[WeightVersion, str] = {}
        self._versions_of: defaultdict[str, set[WeightVersion]] = defaultdict(set)
        self.begin_life()

    def begin_life(self) -> None:
        """The driver starts (again); nothing in memory is left."""
        self.buffer: Any = None
        self.ledger: Any = None
        self.pools: dict[str, Any] = {}
        self.processes: dict[str, ActorProcess] = {}
        self.loaded: Saved | None = None
        """What the ranks have loaded."""
        self.chosen: Saved | None = None
        self.published: WeightVersion | None = None
        self._noted: tuple[str, History] = ("", History())
        self._last_saved = ""
        self._open: dict[int, Draw] = {}
        self._given_back: deque[tuple[Draw, int]] = deque()
        self._stream: Iterator[tuple[Draw, int]] = iter(())
        self._asked: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._accepted: dict[int, RolloutGroup] = {}
        self._proved: defaultdict[str, set[str]] = defaultdict(set)
        self._unproved: set[str] = set()
        self._leaving: set[str] = set()
        self._progress_s: float | None = None
        self.is_wedged = False
        """Whether nothing was done for a long time."""

    def violation(self, text: str) -> None:
        """Something did not hold."""
        self._say(f"VIOLATION {text}")
        self.violations.append(text)

    def check(self, holds: bool, text: str) -> None:
        self.num_checks += 1
        if not holds:
            self.violation(text)

    # The ledger.

    def restored(self, state: dict[str, Any] | None) -> None:
        """A ledger was made from a checkpoint's state, or anew: by a new driver, or for a new learner."""
        if state is None:
            self.check(self.loaded is None, "I4 the learner was loaded, the ledger was not")
            self.history = History()
        else:
            text = json.dumps(state)
            self.check(self.loaded is not None, "I4 the ledger was restored, the learner was not loaded")
            if self.loaded is not None:
                self.check(text == self.loaded.ledger, "I4 ledger and learner are of different checkpoints")
                self.history = self.loaded.history.copy()
        for each in (self._open, self._asked, self._accepted, self._given_back):
            each.clear()
        self._stream = draws_of(self._order, self._num_rows, set(self.history.ended))

    def issued(self, ticket: int, query: DrivingQuery | None) -> None:
        """The ledger gave a query."""
        draw, row = self._given_back.popleft() if self._given_back else next(self._stream)
        self.check(
            query is not None and query.row == row,
            f"I1 ticket {ticket}: row {query and query.row} was issued, draw {draw} is row {row}",
        )
        newest = max([*self.history.trained[-1:], *self.history.without_update[-1:], *self._open, -1])
        self.check(ticket > newest, f"I6 ticket {ticket} was given after {newest}")
        again = (*draw, draw in self.history.failed)
        seed = self._seeds.setdefault(again, query and query.seed)
        self.check(seed == (query and query.seed), f"I1 draw {again} has another seed than before")
        self._open[ticket] = draw
        self._say(f"ticket {ticket} is draw {draw}")

    def settled(self, ticket: int, outcome: Outcome) -> None:
        """The ledger entered how a query ended."""
        self._progress_s = None
        self.check(ticket in self._open, f"I1 ticket {ticket} ends ({outcome}) and is not open")
        draw = self._open.pop(ticket, (-1, -1))
        self.check(
            draw not in self.history.ended,
            f"I1 draw {draw} ends twice: {self.history.ended.get(draw)}, {outcome}",
        )
        self.history.ended[draw] = outcome
        self._say(f"ticket {ticket}, draw {draw}, ends: {outcome}")
        group = self._accepted.get(ticket)
        is_flat = group is not None and len(set(rewards_of(group, self._flat_share))) == 1
        if outcome is Outcome.TRAINED:
            self.check(ticket in self.history.trained, f"I1 ticket {ticket} ended as trained and was not")
            self.history.with_signal |= set() if is_flat else {draw}
        elif outcome is Outcome.SKIPPED:
            self.check(self._skips_flat and is_flat, f"I1 ticket {ticket} was skipped, its rewards differ")
        else:
            asked = self._asked[ticket]
            was_tried = asked["generate"] >= self._max_attempts or asked["score"] >= 2
            failed_twice = draw in self.history.failed and ticket in self.history.without_update
            self.check(was_tried or failed_twice, f"I1 ticket {ticket} was dead-lettered after {dict(asked)}")
        self.history.failed.discard(draw)

    def gave_back(self, ticket: int) -> None:
        """The ledger was told that the step on a query's group was not applied."""
        is_so = ticket in self.history.without_update
        self.check(is_so, f"I1 ticket {ticket} is given back, its step was applied")
        if ticket not in self._open:
            return
        draw = self._open.pop(ticket)
        self.check(draw not in self.history.failed, f"I1 draw {draw} is given back twice")
        self.history.failed.add(draw)
        self._given_back.append((draw, draw[1] % self._num_rows))
        self._say(f"ticket {ticket}, draw {draw}, is given back")

    def noted(self, state: dict[str, Any]) -> None:
        """The ledger told its state (for a checkpoint)."""
        self._noted = (json.dumps(state), self.history.copy())

    # Engines and rewards.

    def submitted(self, process: ActorProcess, call: Call) -> None:
        """The driver calls an actor."""
        self.processes[process.name] = process
        if call.method in TOLD:
            what = call.args[0] if call.method == "generate" else ""
            self._say(f"driver: {call.method} {what} -> {process.name}")
        if (call.method == "start" and process.name.startswith("engine")) or call.method == "update_weights":
            self._unproved.add(process.name)
        elif call.method == "answer":
            self._may_serve(process, "a query of the evaluation")
        elif call.method == "exchange":
            for order in call.args[0]:
                self._ordered(process, order.ticket)
        elif call.method == "score":
            picks, *batches = call.args
            for number, index in picks:
                self._accept(batches[number], index)

    def _ordered(self, process: ActorProcess, ticket: int) -> None:
        self._say(f"driver: ticket {ticket} -> {process.name}")
        self._asked[ticket]["generate"] += 1
        self.check(ticket in self._open, f"I1 ticket {ticket} is drawn and is not open")
        self._may_serve(process, f"ticket {ticket}")

    def proved(self, process: str, weights: str) -> None:
        """The learner found that an engine computes with its weights."""
        self._proved[process].add(weights)
        self._unproved.discard(process)

    def publish_ended(self, version: WeightVersion) -> None:
        """All engines in service hold a version."""
        self._progress_s = None
        self.published = version

    def node_leaves(self, node: str) -> None:
        """The pool was told to empty a node."""
        self._leaving.add(node)

    def _may_serve(self, process: ActorProcess, what: str) -> None:
        name = process.name
        is_staying = process.node not in self._leaving
        self.check(is_staying, f"I7 {what} goes to {name} on {process.node}, which leaves")
        self.check(process.was_killed_s is None, f"I2 {what} goes to {name}, which is fenced")
        self.check(name not in self._unproved, f"I2 {what} goes to {name}, which has not proved its weights")
        if self.published is not None:
            versions = self._versions_of[process.implementation.weights]
            is_new = any(version >= self.published for version in versions)
            self.check(is_new, f"I2 {what} goes to {name}, which is behind {self.published}")

    def _accept(self, ref: Any, index: int) -> None:
        group: RolloutGroup = ref.value[index]
        name, weights = drawn_by(group)
        process = self.processes[name]
        self._asked[group.ticket]["score"] += 1
        self._accepted[group.ticket] = group
        self._say(f"ticket {group.ticket} is accepted from {name}")
        self.check(group.ticket in self._open, f"I1 ticket {group.ticket} is scored and is not open")
        unproved = [held for held in weights if held not in self._proved[name]]
        self.check(not unproved, f"I2 ticket {group.ticket}: {name} had not proved {unproved}")
        is_early = process.was_killed_s is None or ref.resolved_s <= process.was_killed_s
        self.check(is_early, f"I2 ticket {group.ticket}: a reply of {name} was accepted after it was fenced")

    # The learner.

    def gang_begins(self, gang: "Gang") -> None:
        """New ranks have found each other; they hold the starting model."""
        self.loaded = None
        self.learned(gang.version, gang.weights)

    def forget_attempts_after(self, attempt: int) -> None:
        """The disk took nothing of later attempts, not even their numbers: others will have these."""
        self._weights_of = {
            version: weights for version, weights in self._weights_of.items() if version.attempt <= attempt
        }

    def learned(self, version: WeightVersion, weights: str) -> None:
        """The learner holds weights under a version's name."""
        known = self._weights_of.setdefault(version, weights)
        self.check(known == weights, f"I2 version {version} names two policies: {known}, {weights}")
        self._versions_of[weights].add(version)

    def before_step(self, policy: WeightVersion, groups: list[ScoredGroup]) -> None:
        """The learner is about to train on groups."""
        tickets = [scored.group.ticket for scored in groups]
        before = (*self.history.trained[-1:], *self.history.without_update[-1:], -1)
        self.check(
            all(one < other for one, other in itertools.pairwise([max(before), *tickets])),
            f"I6 tickets are trained out of order: {max(before)}, {tickets}",
        )
        is_whole = len(groups) == self._groups_per_step or self.has_no_signal()
        self.check(is_whole, f"I3 a step on {len(groups)} groups: {tickets}")
        for scored in groups:
            self._may_train(policy, scored)

    def stepped(
        self, version: WeightVersion, weights: str, tickets: tuple[int, ...], is_finite: bool
    ) -> None:
        """The learner made a step."""
        self._progress_s = None
        self._say(f"learner: step {version} on {tickets}{'' if is_finite else ', not finite'}")
        if is_finite:
            self.history.trained += tickets
        else:
            self.history.without_update += tickets
        self.learned(version, weights)

    def _may_train(self, policy: WeightVersion, scored: ScoredGroup) -> None:
        group, ticket = scored.group, scored.group.ticket
        name, weights = drawn_by(group)
        self.check(ticket in self._open, f"I1 ticket {ticket} is trained and is not open")
        num = len(group.completions)
        self.check(num == self._group_size, f"I3 ticket {ticket} has {num} completions")
        for completion in group.completions:
            labels = [span.version for span in completion.weight_versions]
            for version, held in zip([labels[0], labels[-1]], weights, strict=True):
                self.check(
                    self._weights_of.get(version) == held,
                    f"I2 ticket {ticket}: drawn with {held}, labelled {version}",
                )
        unproved = [held for held in weights if held not in self._proved[name]]
        self.check(not unproved, f"I2 ticket {ticket}: {name} never proved {unproved}")
        oldest = group.oldest_version
        self.check(oldest.attempt == policy.attempt, f"I2 ticket {ticket}: {oldest} trained at {policy}")
        lag = policy.step - oldest.step
        self.check(lag <= self._lag_bound, f"I2 ticket {ticket}: lag {lag}, bound {self._lag_bound}")
        rewards = rewards_of(group, self._flat_share)
        self.check([reward.total for reward in scored.rewards] == rewards, f"I5 ticket {ticket}: rewards")
        is_flat = len(set(rewards)) == 1
        self.check(not (is_flat and self._skips_flat), f"I1 ticket {ticket} is flat and is trained")

    # Scored groups, as the driver sees them.

    def scored(self, header: GroupHeader) -> None:
        """The driver took a header."""
        self._progress_s = None
        group = self._accepted.get(header.ticket)
        self.check(group is not None, f"I5 ticket {header.ticket} has a reward and was never scored")
        if group is not None:
            rewards = rewards_of(group, self._flat_share)
            is_true = abs(header.reward_mean - sum(rewards) / len(rewards)) < 1e-9
            self.check(is_true, f"I5 ticket {header.ticket}: reward {header.reward_mean}, not {rewards}")

    # Checkpoints.

    def saving(self, gang: "Gang") -> str:
        """All ranks write a checkpoint; its name."""
        nonce = f"{len(self.saved)}"
        self.saved[nonce] = Saved(nonce, gang.trained, gang.weights, gang.version.step)
        self._last_saved = nonce
        return nonce

    def committing(self) -> None:
        """The checkpoint that was last saved is about to be committed."""
        saved = self.saved[self._last_saved]
        saved.ledger, saved.history = self._noted[0], self._noted[1]
        self.check(
            saved.history.trained == saved.trained
            and list(saved.history.ended.values()).count(Outcome.TRAINED) == len(saved.trained),
            f"I4 checkpoint {saved.nonce}: the ledger does not say what the learner was trained on",
        )

    def committed(self) -> None:
        """The commit returned."""
        self._progress_s, saved = None, self.saved[self._last_saved]
        saved.was_committed = True
        earlier = [other for other in self.kept if other.step < saved.step]
        self.kept = [*earlier, saved][-self._keep_last :]
        self._say(f"checkpoint {saved.nonce} of step {saved.step} is committed")

    def loading(self, gang: "Gang", folder: Path, nonces: list[str]) -> None:
        """The ranks loaded a checkpoint."""
        self.check(len(set(nonces)) == 1, f"I4 the ranks loaded different checkpoints: {nonces}")
        saved = self.saved[nonces[0]]
        self._say(f"checkpoint {saved.nonce} of step {saved.step} is loaded")
        self.check(bool(saved.ledger), f"I4 checkpoint {saved.nonce} was never complete")
        self.check(not saved.is_damaged, f"I4 checkpoint {saved.nonce} is damaged and was loaded")
        self.check(folder.name == f"step_{saved.step:06d}", f"I4 step {saved.step} was loaded from {folder}")
        self.loaded = saved
        gang.weights, gang.trained = saved.weights, saved.trained
        gang.version = WeightVersion(gang.version.attempt, saved.step)
        self.learned(gang.version, gang.weights)

    def has_checkpoint_of(self, step: int) -> None:
        """An orderly end leaves a checkpoint of its last step."""
        steps = [saved.step for saved in self.kept]
        self.check(steps[-1:] == [step], f"I4 the run ends at step {step}, with checkpoints of {steps}")

    def resuming(self, chosen: str | None) -> None:
        """The driver has chosen the checkpoint (its name) to go on from: the newest that is whole. Later
        ones are put aside."""
        whole = [saved for saved in self.kept if not saved.is_damaged]
        if whole:
            self.check(
                chosen is not None and int(chosen) >= int(whole[-1].nonce),
                f"I4 checkpoint {whole[-1].nonce} was committed, the run goes on from {chosen}",
            )
        self.chosen = self.saved[chosen] if chosen is not None else None
        if self.chosen is not None:
            self.kept = [saved for saved in self.kept if saved.step <= self.chosen.step]

    def damaged(self, nonce: str) -> None:
        """A file of a checkpoint rots. What a commit that never returned had removed before is not known."""
        self.saved[nonce].is_damaged = True
        if not self.saved[nonce].was_committed:
            self.kept.clear()

    # Always.

    def after_turn(self, now_s: float) -> None:
        """Whenever everything that was ready has run."""
        if self._progress_s is None:
            self._progress_s = now_s
        elif now_s - self._progress_s > WEDGE_S:
            self.is_wedged = True
        if self.buffer is not None and self.buffer.num_held > self._num_slots:
            self.violation(f"I6 {self.buffer.num_held} slots are held of {self._num_slots}")
        if len(self._open) > self._num_slots:
            self.violation(f"I6 {len(self._open)} queries are open, {self._num_slots} slots")

    def at_the_end(self, counts: dict[str, dict[str, int]], step: int) -> None:
        """The run is finished; `counts` and `step` are what its summary says of every epoch, and of all."""
        if self.published is not None:
            has_last = self.published.step == step
            self.check(has_last, f"I2 finished at step {step}, the engines hold {self.published}")
        if self.ledger is not None:
            self.has_checkpoint_of(step)
        elif self.chosen is not None:
            self.history = self.chosen.history.copy()
        self.check(not self._open, f"I1 the run is over and tickets {sorted(self._open)} have not ended")
        for epoch, num in self.history.unfinished_epochs(self._num_rows):
            self.violation(f"I1 epoch {epoch} is over and {num} draws ended")
        ours = self.history.counts()
        self.check(counts == ours, f"I1 the ledger counts {counts}, what happened is {ours}")

    def has_no_signal(self) -> bool:
        """Whether some epoch has ended without one group to learn from."""
        return self.history.has_epoch_without_signal(self._num_rows)
