"""What a weight update costs an engine that is full of groups, and when it is proved:

    alphadrive data synth --out /tmp/scenes --num 64
    python benchmarks/weight_update.py /tmp/scenes [--by gloo]

One engine with the shipped model, 64 sequences decoding and more groups waiting all the time. Every update
is the learner's: pause, caches cleared, transfer, digest, resume, canaries. Seconds, over the updates:

    paused     the engine draws nothing at all
    standstill from the last token of a training group before the update to the first one after
    proved     from the start of the update to the last canary: the learner compares next
    lost       training tokens not drawn within `WINDOW_S` of the start, at the pace just before it
"""

import argparse
import asyncio
import itertools
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from alphadrive.config import RolloutConfig
from alphadrive.data.parquet import DrivingDataset
from alphadrive.model_folder import resolve_model
from alphadrive.types import WeightsFile, WeightsStream, WeightVersion
from alphadrive.weight_layout import TensorMeta, WeightLayout
from alphadrive.weights import file_sha256
from cluster.proof import canary_queries, canary_sampling
from rollout.engine import RolloutEngine
from rollout.settings import EngineSettings, Sampling

WINDOW_S = 1.0
GROUPS_AT_ONCE = 12


def main() -> None:
    """Measure and print the medians."""
    parser = argparse.ArgumentParser(description="the cost of weight updates under load")
    parser.add_argument("data", type=Path)
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--by", choices=["file", "gloo"], default="file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        asyncio.run(measure(args.data, args.updates, args.max_new_tokens, args.by, Path(folder)))


async def measure(data: Path, num_updates: int, max_new_tokens: int, by: str, folder: Path) -> None:
    """Start an engine, keep it full, update it again and again."""
    model = resolve_model("tiny")
    settings = EngineSettings(
        model_folder=str(model),
        datasets={"train": str(data)},
        max_pixels=25088,
        max_num_seqs=64,
        max_model_len=512,
        weight_transfer=by,
    )
    engine = await RolloutEngine.start(settings, "engine-0")
    dataset = DrivingDataset(data)
    drawn = Drawn(engine)
    load = [
        asyncio.create_task(keep_drawing(engine, dataset, seed, max_new_tokens))
        for seed in range(GROUPS_AT_ONCE)
    ]
    queries = canary_queries(dataset.query, len(dataset), 2)
    sampling = canary_sampling(1.0)
    update = Stream(model) if by == "gloo" else File(model, folder)
    figures: dict[str, list[float]] = {"paused": [], "standstill": [], "proved": [], "lost": []}
    for step in range(num_updates + 1):
        await asyncio.sleep(2.0 + random.random())
        started_s, receipt = await update.take(engine, WeightVersion(0, step), queries, sampling)
        proved_s = time.monotonic() - started_s
        await asyncio.sleep(WINDOW_S + 0.2)
        if step == 0:
            continue
        figures["paused"].append(receipt.paused_s)
        figures["standstill"].append(drawn.standstill_s(started_s))
        figures["proved"].append(proved_s)
        figures["lost"].append(drawn.lost_s(started_s))
    for name, values in figures.items():
        middle, largest = statistics.median(values), max(values)
        print(f"{name:11} median {middle * 1e3:6.0f} ms   most {largest * 1e3:6.0f} ms")
    for task in load:
        task.cancel()
    await asyncio.gather(*load, return_exceptions=True)
    await engine.close()


class File:
    """Updates by way of a file, as the learner writes it."""

    def __init__(self, model: Path, folder: Path) -> None:
        self._source, self._path = model / "model.safetensors", folder / "weights.safetensors"

    async def take(self, engine: RolloutEngine, version: WeightVersion, *canary: Any) -> tuple[float, Any]:
        """One update; when it began, and the engine's receipt."""
        path = self._path
        path.write_bytes(self._source.read_bytes())
        size = path.stat().st_size
        weights = WeightsFile(path=str(path), version=version, sha256=file_sha256(path), num_bytes=size)
        started_s = time.monotonic()
        receipt, _ = await engine.update_and_draw(weights, *canary)
        return started_s, receipt


class Stream:
    """Updates by gloo; the learner's end is in this process, on a thread."""

    def __init__(self, model: Path) -> None:
        from safetensors.torch import load_file

        from rollout.weight_sender import WeightSender

        self._tensors = load_file(model / "model.safetensors")
        self._sender = WeightSender("gloo", "127.0.0.1", 60.0)

    async def take(self, engine: RolloutEngine, version: WeightVersion, *canary: Any) -> tuple[float, Any]:
        """One update; when it began, and the engine's receipt."""
        metas = tuple(
            TensorMeta(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in sorted(self._tensors.items())
        )
        layout = WeightLayout(version, metas, RolloutConfig.weight_bucket_bytes)
        buckets = [[self._tensors[slot.tensor.name] for slot in bucket] for bucket in layout.buckets]
        started_s = time.monotonic()
        stream = WeightsStream(offer=self._sender.offer(layout), member="engine-0", timeout_s=60.0)
        await engine.see_offer(stream)
        sending = asyncio.to_thread(self._sender.send, ["engine-0"], ["engine-0"], buckets)
        _, (receipt, _) = await asyncio.gather(sending, engine.update_and_draw(stream, *canary))
        return started_s, receipt


async def keep_drawing(engine: RolloutEngine, dataset: DrivingDataset, seed: int, length: int) -> None:
    """Draw groups one after another, for ever."""
    numbers = random.Random(seed)
    for ticket in range(seed, 1 << 30, GROUPS_AT_ONCE):
        query = dataset.query(numbers.randrange(len(dataset)))
        sampling = Sampling(num_samples=8, max_new_tokens=length, seed=ticket * 8)
        await engine.generate(ticket, query, sampling)


class Drawn:
    """When an engine drew how many tokens of training groups."""

    def __init__(self, engine: RolloutEngine) -> None:
        self._tokens: list[tuple[float, int]] = []
        core = engine._llm.engine_core
        receive = core.get_output_async

        async def receive_and_note() -> Any:
            received = await receive()
            outputs = [one for one in received.outputs if "canary" not in one.request_id]
            if number := sum(len(one.new_token_ids) for one in outputs):
                self._tokens.append((time.monotonic(), number))
            return received

        core.get_output_async = receive_and_note

    def standstill_s(self, started_s: float) -> float:
        """From the last token before to the first after; the longest gap around the start."""
        times = [at_s for at_s, _ in self._tokens if started_s - 0.5 < at_s < started_s + WINDOW_S]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def lost_s(self, started_s: float) -> float:
        """Tokens missing in the window, as seconds at the pace of the second before."""
        before = sum(number for at_s, number in self._tokens if started_s - 1.0 < at_s <= started_s)
        window = sum(number for at_s, number in self._tokens if started_s < at_s <= started_s + WINDOW_S)
        return WINDOW_S - window / before


if __name__ == "__main__":
    main()
