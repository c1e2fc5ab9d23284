"""What a GRPO run writes and shows while it trains: metrics, evaluations, checkpoints, its summary.

Sits behind the loop's Recorder protocol, on Ray and in one process alike: it is given functions, not actors.
"""

import asyncio
import dataclasses
import logging
import math
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alphadrive import metric_names as names
from alphadrive.config import Config
from alphadrive.data.fetching import local_folder
from alphadrive.data.parquet import DrivingDataset
from alphadrive.errors import EngineDiedError, RolloutError
from alphadrive.evaluation import evaluate
from alphadrive.run_folder import RunFolder
from alphadrive.types import DrivingQuery, GroupHeader, StepResult
from cluster.checkpointing import CheckpointWriter
from cluster.nonfinite import NonFiniteSteps
from cluster.progress import RunProgress
from cluster.queries import QueryLedger
from cluster.status import RunStatus

logger = logging.getLogger(__name__)


def _nothing() -> None: ...


class GrpoRecorder:
    """Records one attempt of a GRPO run.

    `answer` is asked in evaluations, `save` writes the learner into a folder, `sync_seconds`,
    `canary_differences` and `paused_seconds` are the growing lists of the weight sync, `sync_parts` the
    metrics of its latest publish. `saved` is what the
    checkpoint's ledger file holds, `data_sha256` what later attempts know the data by. `waited_s` tells for
    how long the learner has waited for groups in all, `worker_metrics` what belongs to a step's metrics
    about the workers, `wants_checkpoint` whether the learner must move after one; then `checkpointed` is
    called.
    """

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        ledger: QueryLedger,
        progress: RunProgress,
        status: RunStatus,
        *,
        answer: Callable[[DrivingQuery], Awaitable[str]],
        save: Callable[[Path], Awaitable[None]],
        sync_seconds: list[float],
        canary_differences: list[float],
        paused_seconds: Sequence[float] = (),
        sync_parts: Mapping[str, float] | None = None,
        saved: Mapping[str, Any] | None = None,
        data_sha256: str = "",
        waited_s: Callable[[], float] = float,
        worker_metrics: Callable[[], dict[str, float]] = dict,
        wants_checkpoint: Callable[[], bool] = bool,
        checkpointed: Callable[[], None] = _nothing,
    ) -> None:
        self.num_events = 0
        """Grows with every group scored, step, answer of an evaluation and checkpoint."""
        saved = saved or {}
        self.last_evaluation: dict[str, float] = saved.get("evaluation", {})
        self._evaluated_step: int | None = saved.get("evaluated_step")
        self._config, self._run, self._ledger = config, run, ledger
        self._progress, self._status = progress, status
        self._answer, self._save, self._data_sha256 = answer, save, data_sha256
        self._checkpoints = CheckpointWriter(run, status)
        self._sync_seconds, self._canary_differences = sync_seconds, canary_differences
        self._paused_seconds, self._sync_parts = paused_seconds, sync_parts
        self._waited_s, self._worker_metrics = waited_s, worker_metrics
        self._wants_checkpoint, self._checkpointed = wants_checkpoint, checkpointed
        self._step_waited_s = 0.0
        self._eval_task: asyncio.Task[Any] | None = None
        self._is_stopped = False
        self._started_s = self._step_started_s = time.monotonic()
        self._ended_s: float | None = None
        self._excluded_s = 0.0
        self._skips_flat_groups = config.grpo.kl_coef == 0
        self._num_trained = self._num_skipped = self._num_tokens = 0
        self._num_step_skipped = self._num_step_tokens = 0
        self._max_lag = 0
        self._step_scored: list[GroupHeader] = []
        self._nonfinite = NonFiniteSteps(run.path, saved.get("nonfinite"))

    def start(self) -> None:
        """Start the clock: everything is up, the loop begins."""
        self._started_s = self._step_started_s = time.monotonic()

    def end(self) -> None:
        """Stop the clock: the loop is over."""
        self._ended_s = time.monotonic()

    def scored(self, header: GroupHeader) -> None:
        """Count a scored group."""
        self.num_events += 1
        self._num_step_skipped += self._skips_flat_groups and not header.has_signal
        self._num_step_tokens += header.num_tokens
        if self._skips_flat_groups and not header.has_signal:
            # Without the reference, which would keep groups that were skipped in the object store.
            header = dataclasses.replace(header, scored=None)
        self._step_scored.append(header)

    def stepped(self, result: StepResult, headers: Sequence[GroupHeader], lags: Sequence[int]) -> None:
        """Write and show one step. Raises NonFiniteError at the third in a row that was not finite."""
        self.num_events += 1
        now_s = time.monotonic()
        step_s = now_s - self._step_started_s
        self._step_started_s = now_s
        waited_s = self._waited_s()
        self._max_lag = max(self._max_lag, *lags)
        num_trained = len(headers) if result.was_updated else 0
        self._num_trained += num_trained
        num_groups = len(headers) + self._num_step_skipped
        metrics = result.metrics | {
            names.STEP_S: step_s,
            names.TIME_PER_STEP: step_s,
            names.SYNC_S: self._sync_seconds[-1],
            names.CANARY_DIFF: self._canary_differences[-1],
            names.END_TO_END_SAMPLES_PER_S: (num_trained + self._num_step_skipped)
            * self._config.grpo.group_size
            / step_s,
            names.ROLLOUT_TOKENS_PER_S: self._num_step_tokens / step_s,
            names.SKIPPED_SHARE: self._num_step_skipped / num_groups,
            names.DEAD_LETTERS: float(len(self._ledger.dead_letters)),
            names.CHECKPOINTS_FAILED: float(self._checkpoints.num_failed),
            names.LEARNER_IDLE_SHARE: (waited_s - self._step_waited_s) / step_s,
        }
        self._step_waited_s = waited_s
        if self._paused_seconds:
            metrics[names.ENGINE_PAUSED_S] = self._paused_seconds[-1]
        metrics |= self._sync_parts or {}
        metrics |= self._worker_metrics()
        metrics[names.POLICY_LAG_MAX] = float(max(lags))
        metrics |= {names.groups_at_lag(lag): float(number) for lag, number in sorted(Counter(lags).items())}
        metrics[names.REWARD_MEAN] = statistics.fmean(header.reward_mean for header in headers)
        drawn, self._step_scored = self._step_scored or list(headers), []
        metrics |= drawn_metrics(drawn)
        self._add_up()
        self._run.write_metrics(result.step, metrics)
        figures = {
            "reward": f"{metrics[names.SCORE_MEAN]:.3f}",
            "samples/s": f"{metrics[names.END_TO_END_SAMPLES_PER_S]:.1f}",
            "lag": f"{max(lags)}",
            "sync": f"{self._sync_seconds[-1]:.2f} s",
            "skipped": f"{metrics[names.SKIPPED_SHARE]:.0%}",
        }
        if self.last_evaluation:
            figures["val accuracy"] = f"{self.last_evaluation['val/planning_accuracy']:.1%}"
        self._progress.step(result.step, figures)
        self._status.write(
            step=result.step,
            epochs=self._ledger.counts(),
            weight_version=str(result.weight_version),
            dead_letters=len(self._ledger.dead_letters),
            throughput={
                "samples_per_s": metrics[names.END_TO_END_SAMPLES_PER_S],
                "tokens_per_s": metrics[names.ROLLOUT_TOKENS_PER_S],
                "learner_idle_share": metrics[names.LEARNER_IDLE_SHARE],
                "loop_s": now_s - self._started_s - self._excluded_s,
                "learner_waited_s": waited_s,
            },
        )
        self._nonfinite.note(result, map(_identity, headers))
        self._nonfinite.raise_if_too_many()

    async def evaluate(self, step: int) -> None:
        """Evaluate on `data.eval`; nothing where there is none. Not counted in samples/s."""
        if self._config.data.eval is None or self._is_stopped:
            return
        started_s = time.monotonic()
        dataset = DrivingDataset(local_folder(self._config.data.eval), self._config.eval.num_rows)
        self._eval_task = asyncio.ensure_future(evaluate(self._counted_answer, dataset))
        try:
            result = await self._eval_task
        except asyncio.CancelledError:
            if not self._is_stopped:
                raise
            return
        except EngineDiedError:
            raise
        except RolloutError as error:
            # No figure is better than one of fewer scenes, or of an error that counts as a wrong answer.
            logger.error("the evaluation of step %d is given up: %s", step, error)
            self._status.note(validation_problem=f"step {step}: {error}")
            return
        finally:
            self._eval_task = None
            self._leave_out(time.monotonic() - started_s)
        self.last_evaluation, self._evaluated_step = result.as_step_metrics(), step
        self._run.write_metrics(step, self.last_evaluation)
        self._status.note(validation={"step": step, **self.last_evaluation}, validation_problem=None)
        self._progress.say(
            f"step {step}: planning accuracy {result.metrics.planning_accuracy:.1%} on {len(dataset)} scenes"
        )

    @property
    def last_checkpoint_step(self) -> int | None:
        """The step of the last checkpoint that this attempt has written."""
        return self._checkpoints.last_step

    @property
    def wants_checkpoint(self) -> bool:
        """Whether the learner must move, and one is due before that."""
        return self._wants_checkpoint()

    async def checkpoint(self, step: int, *, is_last: bool = False) -> None:
        """Write and commit a checkpoint: learner, model and ledger. Raises CheckpointWriteError."""
        is_evaluated = self._evaluated_step == step
        score = self.last_evaluation.get(names.VAL_PLANNING_ACCURACY) if is_evaluated else None
        committed = await self._checkpoints.write(
            step, self._save, lambda: self._ledger_file(step), score=score, is_last=is_last
        )
        self.num_events += 1
        if committed is not None and not is_last:
            self._checkpointed()

    async def end_checkpoints(self) -> None:
        """Wait until the last checkpoint is copied, where there is a mirror. Raises CheckpointWriteError."""
        await self._checkpoints.end()

    def progress(self) -> object:
        """Something that changes as long as anything is done, half a checkpoint included."""
        return self.num_events, self._checkpoints.progress()

    def _ledger_file(self, step: int) -> dict[str, object]:
        return {
            "stage": "grpo",
            "step": step,
            "attempt": self._status.attempt,
            "data_sha256": self._data_sha256,
            "next_ticket": self._ledger.next_ticket,
            "open_tickets": self._ledger.open_tickets,
            "queries": self._ledger.state(),
            "evaluation": self.last_evaluation,
            "evaluated_step": self._evaluated_step,
            "nonfinite": self._nonfinite.state(),
            "summary": self.summary(step),
        }

    def stop(self) -> None:
        """Give up an evaluation under way and start no other."""
        self._is_stopped = True
        if self._eval_task is not None:
            self._eval_task.cancel()

    def summary(self, step: int) -> dict[str, Any]:
        """This part's figures of `summary.json`."""
        ended_s = self._ended_s or time.monotonic()
        wall_s = max(ended_s - self._started_s - self._excluded_s, 1e-9)
        num_skipped = self._num_skipped + self._num_step_skipped
        num_tokens = self._num_tokens + self._num_step_tokens
        num_groups = self._num_trained + num_skipped
        grpo: dict[str, Any] = {
            "steps": step,
            "samples_per_s": num_groups * self._config.grpo.group_size / wall_s,
            "rollout_tokens_per_s": num_tokens / wall_s,
            "samples": num_groups * self._config.grpo.group_size,
            "skipped_share": num_skipped / max(1, num_groups),
            "max_policy_lag": self._max_lag,
            "dead_letters": self._ledger.dead_letters,
            "nonfinite_steps": self._nonfinite.count,
            "epochs": {str(epoch): counts for epoch, counts in self._ledger.counts().items()},
            "loop_seconds": wall_s,
        }
        summary: dict[str, Any] = {"grpo": grpo}
        if self._sync_seconds:
            summary["weight_sync"] = {
                "median_s": statistics.median(self._sync_seconds),
                "count": len(self._sync_seconds),
            }
        if self._canary_differences:
            summary["canary"] = {"max_abs_diff": max(self._canary_differences)}
        if self.last_evaluation:
            summary["val"] = {
                name.removeprefix("val/"): value for name, value in self.last_evaluation.items()
            }
        return summary

    async def _counted_answer(self, query: DrivingQuery) -> str:
        answer = await self._answer(query)
        self.num_events += 1
        return answer

    def _add_up(self) -> None:
        self._num_skipped += self._num_step_skipped
        self._num_tokens += self._num_step_tokens
        self._num_step_skipped = self._num_step_tokens = 0

    def _leave_out(self, seconds: float) -> None:
        if self._ended_s is None:
            self._excluded_s += seconds
            self._step_started_s += seconds


def drawn_metrics(drawn: Sequence[GroupHeader]) -> dict[str, float]:
    """Rewards over all completions of the groups (all of one size), from their headers."""
    metrics = {
        names.ZERO_VARIANCE_SHARE: statistics.fmean(not header.has_signal for header in drawn),
        names.SCORE_MEAN: statistics.fmean(header.reward_mean for header in drawn),
        names.SCORE_MAX: max(header.reward_max for header in drawn),
        names.SCORE_MIN: min(header.reward_min for header in drawn),
    }
    for term in drawn[0].term_means:
        means = [header.term_means[term] for header in drawn]
        within = statistics.fmean(header.term_stds[term] ** 2 for header in drawn)
        metrics[names.reward_term_mean(term)] = statistics.fmean(means)
        metrics[names.reward_term_std(term)] = math.sqrt(within + statistics.pvariance(means))
    return metrics


def _identity(header: GroupHeader) -> dict[str, object]:
    """What finds a group in the rollouts, for people."""
    return {
        "ticket": header.ticket,
        "query_id": header.query_id,
        "oldest_weight_version": str(header.weight_version),
        "num_tokens": header.num_tokens,
        "reward_mean": header.reward_mean,
        "reward_std": header.reward_std,
    }
