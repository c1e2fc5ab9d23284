"""One distillation from start to end: which rows are asked for, the workers, and how it may stop.

    rows ──▶ N workers ──▶ RowJudge ──▶ Outcome ──▶ DistillFolder
                 ▲
                 └── StopSignal: Ctrl-C, the cap, a refused key, low acceptance

Called by `alphadrive.teacher.command`.
"""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from alphadrive.data.parquet import DrivingDataset
from alphadrive.data.validate import iter_problems, raise_problems
from alphadrive.data.verdicts import recall_verdict, remember_verdict, verdict_key
from alphadrive.errors import AlphaDriveError, DataError, RunFolderError, TeacherError
from alphadrive.teacher.api_key import ApiKey
from alphadrive.teacher.endpoint import CAPPED, Endpoint, UnansweredError
from alphadrive.teacher.folder import DistillFolder
from alphadrive.teacher.outcome import Outcome, Status
from alphadrive.teacher.progress import DistillProgress
from alphadrive.teacher.rows import RowJudge
from alphadrive.teacher.settings import MIN_ACCEPTANCE, DistillSettings
from alphadrive.teacher.stopping import StoppedError, StopSignal


def distill(settings: DistillSettings, key: ApiKey) -> dict[str, Any]:
    """Explain the rows of a dataset that have no reasoning and write those that pass; returns the summary.

    Raises DataError for a bad dataset or one with nothing to ask, RunFolderError when another process
    writes `out`, TeacherError when the endpoint fails or fewer than half of its rows pass,
    KeyboardInterrupt after Ctrl-C. Every answer that arrived is kept by then; the same call goes on.
    """
    dataset, rows = rows_to_ask(settings)
    with DistillFolder(settings) as folder:
        outcome = Outcome(num_to_ask=len(rows))
        with DistillProgress(outcome) as progress:
            if folder.cache.num_cut_bytes:
                progress.say(f"{folder.answers_path}: cut off an incomplete last line")
            if key and settings.is_open_to_listeners:
                progress.say(f"{settings.base_url}: the key in {key.variable} travels there unencrypted")
            try:
                run = asyncio.run(_ask_all(settings, key, dataset, rows, folder, outcome, progress))
            except asyncio.CancelledError:
                raise KeyboardInterrupt from None
        return _finish(folder, dataset, outcome, *run)


def rows_to_ask(settings: DistillSettings) -> tuple[DrivingDataset, list[int]]:
    """The dataset, checked, and the rows of it to explain. Raises DataError for a bad dataset or one with
    nothing to ask."""
    dataset = _valid_dataset(settings)
    rows = [row for row in range(len(dataset)) if settings.replace or dataset.query(row).reasoning is None]
    if not rows:
        raise DataError(
            f"{settings.data}: every row has a reasoning already, so there is nothing to ask; "
            "--replace asks for new ones"
        )
    return dataset, rows


def _valid_dataset(settings: DistillSettings) -> DrivingDataset:
    """The dataset, every row of it checked; not again while its files stay as they are."""
    dataset = DrivingDataset(settings.data, settings.num_rows)
    verdict = verdict_key(settings.data, ["rows", f"num_rows={settings.num_rows}"])
    if recall_verdict(verdict) is None:
        raise_problems(iter_problems(settings.data, num_rows=settings.num_rows), str(settings.data))
        remember_verdict(verdict, {"num_rows": len(dataset)})
    return dataset


async def _ask_all(
    settings: DistillSettings,
    key: ApiKey,
    dataset: DrivingDataset,
    rows: list[int],
    folder: DistillFolder,
    outcome: Outcome,
    progress: DistillProgress,
) -> tuple[StopSignal, int]:
    """Judge the rows until all are done or the run shall end. Gives the signal and how many requests
    were sent."""
    stop = StopSignal()
    remaining = iter(rows)
    async with Endpoint(settings, key, folder.cache, stop, progress.say) as endpoint:
        judge = RowJudge(settings, endpoint.answer)

        async def work() -> None:
            for row in remaining:
                try:
                    stop.check()
                    # Rows answered from the cache wait for nothing; Ctrl-C needs a turn of the loop.
                    await asyncio.sleep(0)
                    outcome.add(await judge.judge(row, dataset.record(row)))
                except StoppedError:
                    return
                except UnansweredError as error:
                    outcome.unanswered[row] = (dataset.query(row).query_id, str(error))
                except AlphaDriveError as error:
                    stop.set("failed", error)
                    return
                if outcome.is_acceptance_low():
                    stop.set("low_acceptance")
                progress.show(folder.cache.num_tokens)

        with _interruptible(stop, progress):
            async with asyncio.TaskGroup() as workers:
                for _ in range(min(settings.concurrency, len(rows))):
                    workers.create_task(work())
    progress.show(folder.cache.num_tokens, is_last=True)
    return stop, endpoint.num_sent


@contextmanager
def _interruptible(stop: StopSignal, progress: DistillProgress) -> Iterator[None]:
    """The first Ctrl-C waits for the answers on the way, which are paid for; the second does not."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def on_interrupt() -> None:
        if stop.is_set:
            task.cancel()
            return
        progress.say("stopping: waiting for the answers on the way; Ctrl-C again drops them")
        stop.set("interrupted")

    loop.add_signal_handler(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _finish(
    folder: DistillFolder, dataset: DrivingDataset, outcome: Outcome, stop: StopSignal, num_sent: int
) -> dict[str, Any]:
    """Write what there is to write, then raise what ended the run."""
    status = _status(outcome, stop)
    num_kept = len(dataset) - outcome.num_to_ask
    num_written = 0
    try:
        if status in ("complete", "partial", CAPPED) and num_kept + len(outcome.reasoning):
            num_written = folder.write_dataset(dataset, outcome)
        folder.write_rejected(outcome)
        summary = folder.write_summary(status, outcome, num_kept, num_written, num_sent)
    except OSError as error:
        raise RunFolderError(
            f"{folder.path}: cannot write the result: {error}; make room and run the same command again: "
            "nothing is asked twice"
        ) from error
    if status == "interrupted":
        raise KeyboardInterrupt
    if stop.error is not None:
        raise stop.error
    if status == "low_acceptance":
        raise TeacherError(_low_acceptance(folder, outcome))
    if not num_written:
        why = (
            "--max-tokens-total is reached and no row has passed yet"
            if status == CAPPED
            else "no answer came"
        )
        raise TeacherError(f"{folder.path}: {why}, so no dataset was written; see {folder.rejected_path}")
    return summary


def _status(outcome: Outcome, stop: StopSignal) -> Status:
    if stop.reason is not None:
        return cast(Status, stop.reason)
    if outcome.is_acceptance_low(at_end=True):
        return "low_acceptance"
    return "partial" if outcome.unanswered else "complete"


def _low_acceptance(folder: DistillFolder, outcome: Outcome) -> str:
    reasons = ", ".join(f"{name} {count}" for name, count in outcome.refused_answers.most_common())
    return (
        f"{len(outcome.reasoning)} of {outcome.num_judged} rows passed the checks, expected at least "
        f"{100 * MIN_ACCEPTANCE:.0f} %; refused answers: {reasons}. Look at {folder.rejected_path} and try "
        f"another model; what was paid for is kept in {folder.answers_path}"
    )
