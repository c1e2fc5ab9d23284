"""The folder a distillation writes: the lock, the answers, the dataset and what is told about them.

OUT/
  part-00000.parquet ...  the rows that passed, in the order of DATA, and those kept as they were
  rejected.jsonl          one line a row that did not
  distill.json            the last run in figures
  answers.jsonl           every answer paid for, see `alphadrive.teacher.answer_cache`
  .lock                   held by the process that writes
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from alphadrive.atomic import fsync_path, write_json, write_text
from alphadrive.data.parquet import DrivingDataset, write_records
from alphadrive.data.records import DrivingRecord
from alphadrive.data.schema import shard_paths
from alphadrive.errors import DataError, RunFolderError
from alphadrive.locks import take_lock
from alphadrive.teacher.answer_cache import ANSWERS_FILE, AnswerCache
from alphadrive.teacher.outcome import Outcome, Status
from alphadrive.teacher.settings import REJECTED_FILE, DistillSettings

SUMMARY_FILE = "distill.json"
UNANSWERED = "unanswered"


class DistillFolder:
    """One run's hold on its folder. Use as a context manager."""

    def __init__(self, settings: DistillSettings) -> None:
        """Take the lock and read the answers there are.

        Raises RunFolderError when another process holds the folder, DataError when it holds a dataset
        that this command did not make from the same DATA.
        """
        self.path = settings.out
        self._settings = settings
        self._lock = take_lock(
            self.path,
            "another process is distilling into this folder; wait for it, stop it, or choose another --out",
        )
        try:
            _check_content(settings)
            self.cache = AnswerCache(self.path / ANSWERS_FILE)
        except OSError as error:
            self._lock.close()
            raise RunFolderError(f"{self.path}: cannot use the folder: {error}") from error
        except BaseException:
            self._lock.close()
            raise
        self._tokens_before = self.cache.num_tokens

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cache.close()
        self._lock.close()

    @property
    def rejected_path(self) -> Path:
        return self.path / REJECTED_FILE

    @property
    def answers_path(self) -> Path:
        return self.path / ANSWERS_FILE

    def write_dataset(self, dataset: DrivingDataset, outcome: Outcome) -> int:
        """Write the rows that passed and those kept, in place of an earlier run's; returns how many."""
        # From the first on: a folder without part-00000 is refused by every reader, one without its
        # last shards would look whole.
        for shard in shard_paths(self.path):
            shard.unlink()
        fsync_path(self.path)
        return write_records(_records(dataset, outcome, self._settings.replace), self.path)

    def write_rejected(self, outcome: Outcome) -> None:
        """Write `rejected.jsonl`, in the order of the rows."""
        lines: dict[int, dict[str, Any]] = {}
        for verdict in outcome.rejected:
            last = verdict.refusals[-1]
            lines[verdict.row] = {
                "row": verdict.row,
                "query_id": verdict.query_id,
                "plan": str(verdict.plan),
                "reason": last.check,
                "problem": last.problem,
                "text": verdict.text,
                "earlier_reasons": [refusal.check for refusal in verdict.refusals[:-1]],
            }
        for row, (query_id, problem) in outcome.unanswered.items():
            lines[row] = {"row": row, "query_id": query_id, "reason": UNANSWERED, "problem": problem}
        text = "".join(json.dumps(lines[row], ensure_ascii=False) + "\n" for row in sorted(lines))
        write_text(self.rejected_path, text)

    def write_summary(
        self, status: Status, outcome: Outcome, num_kept: int, num_written: int, num_sent: int
    ) -> dict[str, Any]:
        """Write `distill.json` and return what is in it."""
        settings = self._settings
        summary = {
            "status": status,
            "data": str(settings.data.resolve()),
            "model": settings.model,
            "base_url": settings.base_url,
            "num_written": num_written,
            "num_kept": num_kept,
            "num_to_ask": outcome.num_to_ask,
            "num_accepted": len(outcome.reasoning),
            "num_rejected": len(outcome.rejected),
            "num_unanswered": len(outcome.unanswered),
            "num_left": outcome.num_to_ask - outcome.num_done,
            "acceptance": outcome.acceptance,
            "rejected_rows": dict(Counter(verdict.refusals[-1].check for verdict in outcome.rejected)),
            "refused_answers": dict(outcome.refused_answers),
            "answers_kept": len(self.cache),
            "requests_sent": num_sent,
            "tokens_this_run": self.cache.num_tokens - self._tokens_before,
            "prompt_tokens": self.cache.prompt_tokens,
            "completion_tokens": self.cache.completion_tokens,
        }
        write_json(self.path / SUMMARY_FILE, summary)
        return summary


def _records(dataset: DrivingDataset, outcome: Outcome, replace: bool) -> Iterator[DrivingRecord]:
    for row in range(len(dataset)):
        reasoning = outcome.reasoning.get(row)
        if reasoning is not None:
            # It explains the recorded plan; what another teacher decided on no longer goes with it.
            yield dataclasses.replace(dataset.record(row), reasoning=reasoning, teacher_plan=None)
        elif not replace and dataset.query(row).reasoning is not None:
            yield dataset.record(row)


def _check_content(settings: DistillSettings) -> None:
    """Refuse to replace a dataset that is not this command's own, from the same rows."""
    if not shard_paths(settings.out):
        return
    try:
        data = json.loads((settings.out / SUMMARY_FILE).read_text(encoding="utf-8"))["data"]
    except (OSError, ValueError, KeyError, TypeError):
        data = None
    if data != str(settings.data.resolve()):
        origin = f"distilled from {data}" if data else "that `alphadrive distill` did not write"
        raise DataError(f"{settings.out}: holds a dataset {origin}; choose another --out")
