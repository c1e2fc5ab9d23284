"""Teach the tiny model to see: describe rendered scenes, and nothing about planning.

Plain torch: scenes rendered once by worker processes into a memory-mapped file, then a few epochs of
next-token prediction on the description by two single-threaded processes that average their
gradients (on two cores 1.5 times as fast as one process with two threads, the matrices being small).
The prompt is moved a random distance away from the image, and the description from the prompt (their
positions, not their tokens), so that the model looks and reads just as well from behind a long
planning prompt.
"""

import json
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import PreTrainedTokenizerFast, Qwen2VLForConditionalGeneration

from alphadrive.tiny.model import build_model, save_folder
from alphadrive.tiny.tokenizer import build_tokenizer
from alphadrive.world.describe import describe, describe_prompt
from alphadrive.world.kinds import scene_seed
from alphadrive.world.render import HEIGHT, WIDTH, render
from alphadrive.world.sampling import sample_scene

NUM_HELD_OUT = 1000
NUM_RANKS = 2
"""Processes that train together: a constant, so that the result does not depend on the machine's cores."""

PATCH, MERGE = 14, 2
GRID = (1, HEIGHT // PATCH, WIDTH // PATCH)
NUM_VISION_TOKENS = GRID[1] * GRID[2] // MERGE**2
LONGEST_GAP_AFTER_IMAGE, LONGEST_GAP_AFTER_PROMPT = 40, 160
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32) * 255
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32) * 255

FIELDS = [
    "speed",
    "route",
    "bend",
    "lanes",
    "junction",
    "light",
    "vehicle",
    "person",
    "obstacle",
    "left_lane",
    "right_lane",
    "weather",
    "daylight",
]


def build(
    out: Path, *, num_scenes: int, steps: int, batch_size: int, learning_rate: float, seed: int
) -> dict[str, object]:
    """Make the tiny model in `out` and return the figures it reached, which are also written to
    `out/figures.json`: share of held-out scenes in which each field of the description is right."""
    started = time.monotonic()
    tokenizer = build_tokenizer()
    with TemporaryDirectory() as scratch:
        images, samples = _render_all(num_scenes, seed, "base", Path(scratch))
        job = _Job(
            images=Path(scratch) / "base.raw",
            samples=samples,
            meeting_point=f"file://{scratch}/ranks",
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            out=out,
        )
        mp.spawn(_train_rank, (job,), nprocs=NUM_RANKS)
        model = Qwen2VLForConditionalGeneration.from_pretrained(out, dtype=torch.float32)
        images, samples = _render_all(NUM_HELD_OUT, seed, "base-held-out", Path(scratch))
        accuracy = field_accuracy(model, tokenizer, images, samples)
    figures: dict[str, object] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "num_scenes": num_scenes,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "field_accuracy": {name: round(value, 3) for name, value in accuracy.items()},
    }
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    return figures


@dataclass(frozen=True, slots=True)
class Sample:
    """What the model is asked about a scene, and the description it should give."""

    prompt: str
    description: str


def _scene_arrays(task: tuple[int, int, str, int]) -> tuple[np.ndarray, list[Sample]]:
    start, stop, split, seed = task
    scenes = [sample_scene(scene_seed(seed, split, index))[0] for index in range(start, stop)]
    samples = [Sample(describe_prompt(scene), describe(scene)) for scene in scenes]
    return np.stack([np.asarray(render(scene)) for scene in scenes]), samples


def _render_all(num: int, seed: int, split: str, scratch: Path) -> tuple[np.ndarray, list[Sample]]:
    images: np.ndarray = np.memmap(
        scratch / f"{split}.raw", mode="w+", dtype=np.uint8, shape=(num, HEIGHT, WIDTH, 3)
    )
    samples: list[Sample] = []
    tasks = [(start, min(start + 250, num), split, seed) for start in range(0, num, 250)]
    with ProcessPoolExecutor(os.cpu_count()) as workers:
        results = workers.map(_scene_arrays, tasks)
        for (start, stop, *_), (pixels, described) in zip(tasks, results, strict=True):
            images[start:stop] = pixels
            samples += described
    return images, samples


def patches(images: np.ndarray) -> torch.Tensor:
    """uint8 images [N, H, W, 3] -> pixel_values [N * patches, 3 * 2 * 14 * 14] as Qwen2-VL's image
    processor lays them out: merge blocks together, then channel, (repeated) frame, row, column."""
    count = len(images)
    scaled = (images.astype(np.float32) - MEAN) / STD
    rows, columns = GRID[1] // MERGE, GRID[2] // MERGE
    split = scaled.reshape(count, rows, MERGE, PATCH, columns, MERGE, PATCH, 3)
    ordered = split.transpose(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, 3, 1, PATCH * PATCH)
    return torch.from_numpy(np.repeat(ordered, 2, axis=2).reshape(len(ordered), -1))


class _Batches:
    """Token and position tensors of samples. Legend: N samples, L positions."""

    def __init__(self, model: Qwen2VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.end_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.pad_id = tokenizer.pad_token_id
        self.image_id = model.config.image_token_id

    def prompt_ids(self, prompt: str) -> list[int]:
        """The chat prompt without its system turn, one placeholder for each vision token."""
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        text = text[text.index("<|im_start|>user") :]
        expanded = text.replace("<|image_pad|>", "<|image_pad|>" * NUM_VISION_TOKENS)
        return list(self.tokenizer(expanded).input_ids)

    def make(self, samples: list[Sample], rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Model inputs and `labels_NL` (-100 where nothing is to be learnt), padded on the right."""
        prompts = [self.prompt_ids(sample.prompt) for sample in samples]
        answers = [[*self.tokenizer(sample.description).input_ids, self.end_id] for sample in samples]
        longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
        ids_NL = torch.full((len(samples), longest), self.pad_id)
        labels_NL = torch.full_like(ids_NL, -100)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            ids_NL[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            labels_NL[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
        kinds_NL = (ids_NL == self.image_id).int()
        grid = torch.tensor([GRID] * len(samples))
        positions_3NL = self.model.model.get_rope_index(ids_NL, kinds_NL, grid)[0]
        after_image = len(prompts[0]) - prompts[0][::-1].index(self.image_id)
        for row, prompt in enumerate(prompts):
            positions_3NL[:, row, after_image:] += int(rng.integers(LONGEST_GAP_AFTER_IMAGE))
            positions_3NL[:, row, len(prompt) :] += int(rng.integers(LONGEST_GAP_AFTER_PROMPT))
        return {
            "input_ids": ids_NL,
            "labels": labels_NL,
            "position_ids": positions_3NL,
            "mm_token_type_ids": kinds_NL,
            "image_grid_thw": grid,
        }


def _indices(num: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    while True:
        order = rng.permutation(num)
        for start in range(0, num - batch_size + 1, batch_size):
            yield np.sort(order[start : start + batch_size])


def _optimizers(model: Qwen2VLForConditionalGeneration, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, patches and vectors."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.02),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What every training process is told. `batch_size` is that of all ranks together."""

    images: Path
    samples: list[Sample]
    meeting_point: str
    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    out: Path


def _train_rank(rank: int, job: _Job) -> None:
    """Train as one of `NUM_RANKS` processes; rank 0 writes the model to `job.out`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=job.meeting_point, rank=rank, world_size=NUM_RANKS)
    num_scenes = len(job.samples)
    images: np.ndarray = np.memmap(job.images, mode="r", dtype=np.uint8, shape=(num_scenes, HEIGHT, WIDTH, 3))
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, job.seed)
    batches = _Batches(model, tokenizer)
    optimizers = _optimizers(model, job.learning_rate)
    warmup = max(1, job.steps // 50)

    def share(step: int) -> float:
        return min((step + 1) / warmup, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / job.steps)))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, share) for optimizer in optimizers]
    order = _indices(num_scenes, job.batch_size, np.random.default_rng(job.seed))
    rng = np.random.default_rng([job.seed, rank])
    started, running = time.monotonic(), 0.0
    model.train()
    for step, batch_indices in zip(range(1, job.steps + 1), order, strict=False):
        chosen = batch_indices[rank::NUM_RANKS]
        batch = batches.make([job.samples[index] for index in chosen], rng)
        labels = batch.pop("labels")
        jitter = rng.uniform(0.9, 1.1, (len(chosen), 1, 1, 1)).astype(np.float32)
        pixels = np.clip(images[chosen] * jitter, 0, 255)
        hidden = model.model(**batch, pixel_values=patches(pixels)).last_hidden_state
        wanted = labels[:, 1:] != -100
        logits = model.lm_head(hidden[:, :-1][wanted])
        loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:][wanted])
        model.zero_grad(set_to_none=True)
        loss.backward()
        _average_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        if rank == 0 and (step % 50 == 0 or step == job.steps):
            rate = step * job.batch_size / (time.monotonic() - started)
            print(f"step {step}/{job.steps}  loss {running:.4f}  {rate:.0f} samples/s", flush=True)
    if rank == 0:
        save_folder(model, tokenizer, job.out)
    dist.destroy_process_group()


def _average_gradients(model: torch.nn.Module) -> None:
    """Replace each gradient by its mean over the ranks, in one message."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= NUM_RANKS
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def field_accuracy(
    model: Qwen2VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    images: np.ndarray,
    samples: list[Sample],
) -> dict[str, float]:
    """Share of scenes in which each field of the greedy description is exactly right, and `all`."""
    right = dict.fromkeys((*FIELDS, "all"), 0)
    batches = _Batches(model, tokenizer)
    for start in range(0, len(images), 50):
        chunk, asked = images[start : start + 50], samples[start : start + 50]
        prompts = [batches.prompt_ids(sample.prompt) for sample in asked]
        longest = max(map(len, prompts))
        ids_NL = torch.tensor([[batches.pad_id] * (longest - len(prompt)) + prompt for prompt in prompts])
        output = model.generate(
            input_ids=ids_NL,
            attention_mask=(ids_NL != batches.pad_id).int(),
            mm_token_type_ids=(ids_NL == batches.image_id).int(),
            pixel_values=patches(chunk),
            image_grid_thw=torch.tensor([GRID] * len(chunk)),
            do_sample=False,
            max_new_tokens=80,
        )
        for tokens, sample in zip(output[:, longest:], asked, strict=True):
            told = tokenizer.decode(tokens, skip_special_tokens=True).split(", ")
            wanted = sample.description.split(", ")
            for index, name in enumerate(FIELDS):
                right[name] += told[index : index + 1] == [wanted[index]]
            right["all"] += told == wanted
    return {name: count / len(images) for name, count in right.items()}
