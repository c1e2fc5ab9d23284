"""TRL's side of `benchmarks/peer_trl.py`: GRPOTrainer on the same model, prompts, images and reward.

Runs in TRL's own environment, one process a rank. After every `steps_per_block` optimizer steps it stops
itself (SIGSTOP), so that nothing of it runs while the other side is timed; whoever started it sends SIGCONT.
Rank 0 writes one JSON line a step: the seconds of the step and of its parts, and the completions' lengths.
"""

import argparse
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from alphadrive.data.parquet import DrivingDataset
from alphadrive.processing import PromptProcessor
from alphadrive.prompts import planning_messages
from rewards.score import variant_terms


def main() -> None:
    """Train until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", type=Path)
    settings = json.loads(parser.parse_args().settings.read_text())
    torch.set_num_threads(settings["threads"])
    timer = Timer()
    trainer = make_trainer(settings, timer)
    trainer.train()


class Timer:
    """Seconds spent in named methods since the last `take`, and what else is worth a number."""

    def __init__(self) -> None:
        self._numbers: dict[str, float] = {}

    def around(self, owner: Any, method: str, name: str) -> None:
        """Count the seconds of a method of an object under `name`."""
        call: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started_s = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._numbers[name] = self._numbers.get(name, 0.0) + time.perf_counter() - started_s

        setattr(owner, method, timed)

    def note_lengths(self, owner: Any, method: str) -> None:
        """Note the mean number of prompt and completion tokens in what a method of an object returns."""
        call: Callable[..., Any] = getattr(owner, method)

        def noting(*args: Any, **kwargs: Any) -> Any:
            batch = call(*args, **kwargs)
            for name in ("prompt", "completion"):
                self._numbers[f"{name}_tokens"] = batch[f"{name}_mask"].sum(1).float().mean().item()
            return batch

        setattr(owner, method, noting)

    def take(self) -> dict[str, float]:
        """What was counted and noted; starts anew."""
        numbers, self._numbers = self._numbers, {}
        return numbers


class BlockEnd(TrainerCallback):
    """Writes a line a step; stops this process at the end of every block."""

    def __init__(self, timer: Timer, log: Path, steps_per_block: int) -> None:
        self._timer, self._log, self._steps_per_block = timer, log, steps_per_block
        self._started_s = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One optimizer step is done."""
        line = {"step": state.global_step, "step_s": time.perf_counter() - self._started_s}
        if state.is_world_process_zero:
            with self._log.open("a") as file:
                file.write(json.dumps(line | self._timer.take()) + "\n")
        if state.global_step % self._steps_per_block == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        self._started_s = time.perf_counter()


def make_trainer(settings: dict[str, Any], timer: Timer) -> GRPOTrainer:
    """The trainer for these settings, timed."""
    folder = Path(settings["model"])
    prompts = PromptProcessor(folder, settings["max_pixels"])
    group_size = settings["group_size"]

    def reward(completions: list[Any], query_id: list[str], plans: list[list[str]], **_: Any) -> list[float]:
        texts = [message[0]["content"] for message in completions]
        values: list[float] = []
        for first in range(0, len(texts), group_size):
            group = texts[first : first + group_size]
            key = f"0/{query_id[first]}/{time.monotonic_ns()}"
            terms = variant_terms(group, plans[first], query_id[first], settings["reward_variant"], key)
            values += [sum(one.values()) for one in terms]
        return values

    trainer = GRPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32),
        processing_class=AutoProcessor.from_pretrained(folder, padding_side="left"),
        reward_funcs=reward,
        train_dataset=rows(Path(settings["data"]), prompts),
        args=trainer_settings(settings, list(prompts.vision_token_ids)),
        callbacks=[BlockEnd(timer, Path(settings["log"]), settings["steps_per_block"])],
    )
    timer.around(trainer, "_generate", "generation_s")
    timer.around(trainer, "_calculate_rewards", "reward_s")
    timer.around(trainer, "_generate_and_score_completions", "rollout_s")
    timer.note_lengths(trainer, "_generate_and_score_completions")
    return trainer


def trainer_settings(settings: dict[str, Any], vision_token_ids: list[int]) -> GRPOConfig:
    """What `benchmarks/peer_trl.py` asks for, in TRL's words.

    `min_new_tokens` forbids the end token until the length is reached; vision tokens are suppressed, as the
    model cannot take one back in without an image behind it.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    batch = settings["microbatch"]
    return GRPOConfig(
        output_dir=settings["output"],
        use_cpu=True,
        bf16=False,
        ddp_find_unused_parameters=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=settings["samples_per_step"] // (batch * world_size),
        num_generations=settings["group_size"],
        max_completion_length=settings["completion_tokens"],
        generation_kwargs={
            "min_new_tokens": settings["completion_tokens"],
            "suppress_tokens": vision_token_ids,
        },
        temperature=1.0,
        beta=0.0,
        loss_type="dapo",
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        max_steps=1_000_000,
        logging_steps=1_000_000,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )


def rows(folder: Path, prompts: PromptProcessor) -> Dataset:
    """The dataset's rows as TRL wants them: the chat messages, the encoded image, what the reward needs."""
    source = DrivingDataset(folder)
    found = []
    for index in range(len(source)):
        query, record = source.query(index), source.record(index)
        found.append(
            {
                "prompt": planning_messages(query.speed_mps, query.navigation),
                "image": {"bytes": record.images[0].data, "path": None},
                "query_id": query.query_id,
                "plans": list(query.plans),
            }
        )
    return Dataset.from_list(found).cast_column("image", Image())


if __name__ == "__main__":
    main()
