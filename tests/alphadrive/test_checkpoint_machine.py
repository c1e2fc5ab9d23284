"""The checkpoint store under random saves, crashes, damage and rollbacks, against a model of it."""

import os
import shutil
import tempfile
from pathlib import Path

from file_faults import Killed, fault_at
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from alphadrive.checkpoints import CheckpointStore
from alphadrive.errors import CheckpointError
from alphadrive.manifest import MANIFEST, read_manifest

SCORES = st.none() | st.sampled_from([0.1, 0.5, 0.5, 0.9])


class StoreMachine(RuleBasedStateMachine):
    """`there` is what must be on disk: content and score by step; `damaged` which of it was damaged."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp()) / "checkpoints"
        self.there: dict[int, tuple[bytes, float | None]] = {}
        self.damaged: set[int] = set()
        self.step = 0
        self.num_saves = 0

    @initialize(keep_last=st.integers(1, 3), keep_best=st.integers(0, 2))
    def open(self, keep_last: int, keep_best: int) -> None:
        self.keep_last, self.keep_best = keep_last, keep_best
        self.restart()

    def teardown(self) -> None:
        shutil.rmtree(self.folder.parent)

    @rule()
    def restart(self) -> None:
        """A new process."""
        self.store = CheckpointStore(self.folder, self.keep_last, self.keep_best)

    @rule()
    def crash_while_writing(self) -> None:
        (self.store.begin(self.step + 1) / "half").write_text("x")
        self.restart()

    @rule(steps=st.integers(0, 2), score=SCORES)
    def save(self, steps: int, score: float | None) -> None:
        """Train on and save; after 0 steps the same step again."""
        step, content = self.next(steps)
        kept = self.kept(step, content, score)
        self.write(step, content, score)
        self.there = kept
        self.step = step
        self.forget_damage(step)
        link = self.folder / "best"
        best = self.store.best() if self.keep_best else None
        assert link.is_symlink() == (best is not None)
        assert best is None or os.readlink(link) == best[0].path.name

    @rule(steps=st.integers(0, 2), score=SCORES, operation=st.integers(0, 60))
    def killed_while_saving(self, steps: int, score: float | None, operation: int) -> None:
        """The process ends at any operation: before the rename nothing has happened, after it all counts."""
        step, content = self.next(steps)
        before, after = dict(self.there), self.kept(step, content, score)
        try:
            with fault_at(operation):
                self.write(step, content, score)
        except Killed:
            self.restart()
        present = {checkpoint.step: checkpoint.path for checkpoint in self.store.all()}
        is_committed = step in present and self.content(present[step]) == content
        assert set(after if is_committed else before) <= set(present)
        known = before | after if is_committed else before
        self.there = {each: known[each] for each in sorted(present)}
        if is_committed:
            self.step = step
            self.forget_damage(step)
        self.damaged &= set(self.there)

    @precondition(lambda self: set(self.there) - self.damaged)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from(sorted(set(self.there) - self.damaged)))
        files = [MANIFEST, "ledger.json", "model/model.safetensors"]
        path = self.path(step) / data.draw(st.sampled_from(files))
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[place] ^= 4
        else:
            content = content[:place]
        path.write_bytes(content)
        self.damaged.add(step)

    @rule()
    def roll_back(self) -> None:
        """What a resume does: the newest undamaged one is found, later ones are put aside."""
        sound = [step for step in self.there if step not in self.damaged]
        if self.there and not sound:
            try:
                self.store.latest()
            except CheckpointError:
                return
            raise AssertionError("every checkpoint is damaged, and latest() said nothing")
        found = self.store.latest()
        if not sound:
            assert found is None
            return
        assert found is not None and found.step == max(sound)
        assert self.content(found.path) == self.there[found.step][0]
        self.store.abandon_later(found.step)
        self.there = {step: kept for step, kept in self.there.items() if step <= found.step}
        self.damaged &= set(self.there)
        self.step = found.step

    @invariant()
    def what_is_there_is_what_must_be(self) -> None:
        assert sorted(self.there) == [checkpoint.step for checkpoint in self.store.all()]

    @invariant()
    def the_link_names_a_checkpoint(self) -> None:
        link = self.folder / "best"
        assert not link.is_symlink() or link.is_dir()

    def next(self, steps: int) -> tuple[int, bytes]:
        self.num_saves += 1
        return max(1, self.step + steps), b"save %04d " % self.num_saves * 3

    def write(self, step: int, content: bytes, score: float | None) -> None:
        folder = self.store.begin(step)
        (folder / "model").mkdir()
        (folder / "model" / "model.safetensors").write_bytes(content)
        (folder / "ledger.json").write_text("{}")
        self.store.commit(step, score)

    def kept(self, step: int, content: bytes, score: float | None) -> dict[int, tuple[bytes, float | None]]:
        """What is left after a save that was pruned."""
        saved = {each: kept for each, kept in self.there.items() if each < step} | {step: (content, score)}
        readable = {
            each: score
            for each, (_, score) in saved.items()
            if score is not None and (each == step or self.is_manifest_sound(each))
        }
        ranked = sorted(readable, key=lambda each: (readable[each], each), reverse=True)
        keep = {*sorted(saved)[-self.keep_last :], *ranked[: self.keep_best]}
        return {each: kept for each, kept in saved.items() if each in keep}

    def is_manifest_sound(self, step: int) -> bool:
        try:
            read_manifest(self.path(step))
        except CheckpointError:
            return False
        return True

    def forget_damage(self, step: int) -> None:
        self.damaged = {each for each in self.damaged if each in self.there and each != step}

    def path(self, step: int) -> Path:
        return next(checkpoint.path for checkpoint in self.store.all() if checkpoint.step == step)

    @staticmethod
    def content(path: Path) -> bytes:
        return (path / "model" / "model.safetensors").read_bytes()


StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestStore = StoreMachine.TestCase
