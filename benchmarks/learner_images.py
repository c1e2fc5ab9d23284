"""What kept images and vision features save: `python benchmarks/learner_images.py data/demo/train`.

Three learners of the tiny model with a frozen vision tower make the same steps in turn, in one process:

    features   images and vision features kept          (the defaults)
    images     images kept, the tower runs every time    (learner.vision_cache_bytes=0)
    nothing    images decoded, the tower runs every time (learner.image_cache_bytes=0, too)

Each epoch is two steps of `--groups` groups with made-up completions. Prints, for the first epoch and for the
median step of the others, the CPU seconds of the process (all threads) and the wall-clock seconds of a step,
the seconds it waited for microbatches, the share of images that needed no decoding, and the images that went
through the tower by query.
"""

import argparse
import json
import random
import socket
import statistics
import sys
import time
from pathlib import Path

sys.path.pop(0)  # benchmarks/learner.py would hide the package

from alphadrive import metric_names as names
from alphadrive.config import Config
from alphadrive.model_folder import resolve_model
from alphadrive.types import (
    Completion,
    RewardBreakdown,
    RolloutGroup,
    ScoredGroup,
    VersionSpan,
    WeightVersion,
)
from learner.rank import LearnerRank
from learner.rows import RowReader

GROUP_SIZE, COMPLETION_TOKENS = 8, 40
MODES = {
    "features": {},
    "images": {"vision_cache_bytes": 0},
    "nothing": {"vision_cache_bytes": 0, "image_cache_bytes": 0},
}
CPU_S = "process's CPU seconds"
FIGURES = {
    "cpu_s": CPU_S,
    "step_s": names.UPDATE_S,
    "wait_s": names.DATA_WAIT_S,
    "image_hits": names.IMAGE_CACHE_HIT_SHARE,
    "vision_passes": names.VISION_PASSES_PER_QUERY,
}


def make_learner(mode: str, dataset: Path, port: int) -> LearnerRank:
    """A learner as `configs/demo.yaml` has it."""
    config = Config()
    config.model.max_pixels = 25088
    config.grpo.max_policy_lag = 1_000_000
    config.learner.max_tokens_per_microbatch = 4096
    config.learner.freeze_vision = True
    for name, value in MODES[mode].items():
        setattr(config.learner, name, value)
    return LearnerRank(
        config,
        rank=0,
        world_size=1,
        meeting_point=f"tcp://127.0.0.1:{port}",
        model_folder=resolve_model("tiny"),
        dataset_folder=dataset,
    )


def make_group(reader: RowReader, row: int) -> ScoredGroup:
    """Random completions of a row's prompt."""
    dice = random.Random(row)
    span = VersionSpan(version=WeightVersion(0, 0), start=0, end=COMPLETION_TOKENS)
    completions = tuple(
        Completion(
            text="",
            token_ids=tuple(dice.randrange(5, 200) for _ in range(COMPLETION_TOKENS)),
            rollout_logprobs=(-6.0,) * COMPLETION_TOKENS,
            finish_reason="stop",
            weight_versions=(span,),
        )
        for _ in range(GROUP_SIZE)
    )
    query, processor = reader.dataset.query(row), reader.processor
    _, grid = processor.pixels(processor.fit(reader.dataset.image(row)))
    rollout = RolloutGroup(
        ticket=row,
        query=query,
        prompt_token_ids=tuple(processor.expanded_ids(processor.prompt_ids(query), grid)),
        completions=completions,
        engine_id="engine-0",
    )
    advantages = tuple(dice.uniform(-1, 1) for _ in completions)
    rewards = tuple(RewardBreakdown(terms={}, total=advantage) for advantage in advantages)
    return ScoredGroup(group=rollout, rewards=rewards, advantages=advantages)


def main() -> None:
    """Alternate the modes' steps and print their figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--groups", type=int, default=32, help="groups a step")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    learners = {mode: make_learner(mode, options.dataset, port) for mode in MODES}
    reader = learners["nothing"]._trainer.reader
    halves = [[make_group(reader, 2 * index + half) for index in range(options.groups)] for half in (0, 1)]
    steps: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for _ in range(options.epochs):
        for groups in halves:
            for mode, learner in learners.items():
                started_s = time.process_time()
                metrics = learner.step(groups).metrics | {CPU_S: time.process_time() - started_s}
                steps[mode].append({figure: metrics[name] for figure, name in FIGURES.items()})
    results = {
        mode: {
            part: {figure: statistics.median(step[figure] for step in of_part) for figure in FIGURES}
            for part, of_part in (("first", made[:2]), ("later", made[2:]))
        }
        for mode, made in steps.items()
    }
    for learner in learners.values():
        learner.close()
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for mode, parts in results.items():
        for part, figures in parts.items():
            print(f"{mode:9} {part:6}" + "".join(f" {name} {value:.4f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
