"""What the learner loses around its arithmetic: `python benchmarks/learner_efficiency.py RUN`.

Replays the rollouts of a finished GRPO run from disk, so that nothing else runs, through two learners:

    system   `LearnerRank.step`: images read, packed, forward, loss, backward, DeepSpeed, metrics, checks
    bare     the same packs, made beforehand: forward, loss, backward, clip, torch's AdamW

Both train the run's starting model on the same groups, in one process on one rank; their steps alternate.
`learner_efficiency` is the median time of a bare step divided by that of a system step.
"""

import argparse
import json
import socket
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

sys.path.pop(0)  # learner.py beside this file would hide the package

from alphadrive.config import Config, load_config
from alphadrive.model_source import model_folder_of
from alphadrive.types import (
    Completion,
    RewardBreakdown,
    RolloutGroup,
    ScoredGroup,
    VersionSpan,
    WeightVersion,
)
from learner.batch import TrainBatch
from learner.group_batches import TrainGroup, group_batches
from learner.objective import LossInputs, grpo_loss, loss_settings, step_normaliser
from learner.policy import Policy
from learner.rank import LearnerRank
from learner.rows import RowReader

START = WeightVersion(0, 0)


def replayed_groups(folder: Path, reader: RowReader, number: int) -> list[ScoredGroup]:
    """The first groups of a run that had a signal, as if drawn at version 0.0."""
    groups: list[ScoredGroup] = []
    for part in sorted(folder.glob("*.parquet")):
        for row in pq.read_table(part).to_pylist():
            if any(row["advantages"]) and len(groups) < number:
                groups.append(_group(row, reader))
    if len(groups) < number:
        raise SystemExit(f"{folder}: {len(groups)} groups with a signal, expected {number}; lower --steps")
    return groups


def _group(row: dict[str, Any], reader: RowReader) -> ScoredGroup:
    query, processor = reader.dataset.query(row["row"]), reader.processor
    _, grid = processor.pixels(processor.fit(reader.dataset.image(row["row"])))
    completions = tuple(
        Completion(
            text=text,
            token_ids=tuple(token_ids),
            rollout_logprobs=tuple(logprobs),
            finish_reason=reason,
            weight_versions=(VersionSpan(version=START, start=0, end=len(token_ids)),),
        )
        for text, token_ids, logprobs, reason in zip(
            row["texts"], row["token_ids"], row["rollout_logprobs"], row["finish_reasons"], strict=True
        )
    )
    group = RolloutGroup(
        ticket=row["ticket"],
        query=query,
        prompt_token_ids=tuple(processor.expanded_ids(processor.prompt_ids(query), grid)),
        completions=completions,
        engine_id=row["engine_id"],
    )
    rewards = tuple(RewardBreakdown(terms={}, total=total) for total in row["rewards"])
    return ScoredGroup(group=group, rewards=rewards, advantages=tuple(row["advantages"]))


def at_version(groups: list[ScoredGroup], version: WeightVersion) -> list[ScoredGroup]:
    """The groups as if drawn at the learner's present version."""

    def moved(completion: Completion) -> Completion:
        return replace(
            completion,
            weight_versions=tuple(replace(span, version=version) for span in completion.weight_versions),
        )

    return [
        replace(
            each,
            group=replace(
                each.group, completions=tuple(moved(completion) for completion in each.group.completions)
            ),
        )
        for each in groups
    ]


class BareLoop:
    """Forward, loss, backward, clip and AdamW on packs that are there already."""

    def __init__(self, config: Config, policy: Policy) -> None:
        self._config, self._policy = config, policy
        self._settings = loss_settings(config.grpo)
        self._trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trained,
            lr=config.grpo.learning_rate,
            betas=(0.9, config.learner.adam_beta2),
            weight_decay=config.learner.weight_decay,
        )

    def step(self, batches: list[TrainBatch]) -> None:
        """One optimizer step."""
        num_tokens = sum(len(batch.tokens.target_ids_T) for batch in batches)
        divisor = step_normaliser(
            self._settings, num_tokens, sum(batch.tokens.num_sequences for batch in batches)
        )
        for batch in batches:
            logprobs_T, entropy_T = self._policy(batch.tokens)
            inputs = LossInputs(
                policy_logprobs_T=logprobs_T,
                rollout_logprobs_T=batch.rollout_logprobs_T,
                advantages_T=batch.advantages_T,
                entropy_T=entropy_T,
                loss_mask_T=batch.tokens.loss_mask_T,
                sequence_T=batch.tokens.sequence_T,
                num_sequences=batch.tokens.num_sequences,
            )
            grpo_loss(self._settings, inputs, divisor).loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, self._config.learner.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


def start_learner(config: Config) -> LearnerRank:
    """The run's learner as one rank in this process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return LearnerRank(
        config,
        rank=0,
        world_size=1,
        meeting_point=f"tcp://127.0.0.1:{port}",
        model_folder=model_folder_of(config.model.path, config.model.revision),
        dataset_folder=Path(config.data.train),
    )


def measure(run: Path, steps: int, warmup: int, threads: int) -> dict[str, Any]:
    """Alternate steps of both; the first `warmup` are not counted."""
    overrides = [f"learner.cpus_per_rank={threads}", "learner.num_ranks=1", "grpo.kl_coef=0.0"]
    config = load_config(str(run / "config.yaml"), overrides)
    learner = start_learner(config)
    trainer = learner._trainer
    bare_policy = trainer.load_policy(config.grpo.temperature).train()
    if config.learner.freeze_vision:
        bare_policy.freeze_vision()
    bare = BareLoop(config, bare_policy)
    per_step = config.grpo.groups_per_step
    groups = replayed_groups(run / "rollouts", trainer.reader, per_step * (steps + warmup))
    times: dict[str, list[float]] = {"system": [], "bare": []}
    for step in range(steps + warmup):
        own = groups[step * per_step : (step + 1) * per_step]
        batches = list(group_batches(trainer, [TrainGroup(each) for each in own]))
        started = time.perf_counter()
        bare.step(batches)
        between = time.perf_counter()
        learner.step(at_version(own, learner.weight_version))
        ended = time.perf_counter()
        if step >= warmup:
            times["bare"].append(between - started)
            times["system"].append(ended - between)
    bare_s, system_s = (statistics.median(times[side]) for side in ("bare", "system"))
    samples = per_step * config.grpo.group_size
    return {
        "learner_efficiency": bare_s / system_s,
        "system_samples_per_s": samples / system_s,
        "bare_samples_per_s": samples / bare_s,
        "steps": steps,
        "groups_per_step": per_step,
        "group_size": config.grpo.group_size,
        "threads": threads,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a finished GRPO run, for example runs/demo")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a sentence")
    args = parser.parse_args()
    result = measure(args.run, args.steps, args.warmup, args.threads)
    if args.json:
        print(json.dumps(result, indent=1))
        return
    print(
        f"learner_efficiency {result['learner_efficiency']:.3f}: {result['system_samples_per_s']:.1f} "
        f"samples/s in the learner, {result['bare_samples_per_s']:.1f} in the bare loop ({args.steps} steps)"
    )


if __name__ == "__main__":
    main()
