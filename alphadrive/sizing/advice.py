"""The nearest setting that fits, by the plan's own estimate.

Every lever is a key with values ever farther from the configured one, each with a price: what it costs in
speed, or in what is trained. Combinations are tried from the cheapest on.
"""

import copy
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from alphadrive.config import Config
from alphadrive.config_checks import check_config, get_key
from alphadrive.errors import ConfigError
from alphadrive.sizing.plan import Plan, make_plan

MAX_TRIALS = 4000
MAX_ADVICE = 3


@dataclass(frozen=True, slots=True)
class Lever:
    """A key and the values to try, the configured one first, with the price of each."""

    key: str
    choices: tuple[tuple[Any, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Overrides with which a run fits, and their plan."""

    overrides: tuple[str, ...]
    plan: Plan


def advise(plan: Plan) -> list[Advice]:
    """Settings with which a plan that does not fit does, the nearest first; none found is an empty list.

    Those after the first change other keys than the ones before them.
    """
    found: list[tuple[frozenset[str], Advice]] = []
    for changes in _by_price(_levers(plan), MAX_TRIALS):
        keys = frozenset(changes)
        if not keys or any(others <= keys for others, _ in found):
            continue
        changed = _changed(plan, changes)
        if changed is not None and changed.fits:
            overrides = tuple(f"{key}={_text(value)}" for key, value in changes.items())
            found.append((keys, Advice(overrides=overrides, plan=changed)))
            if len(found) == MAX_ADVICE:
                break
    return [advice for _, advice in found]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _changed(plan: Plan, changes: dict[str, Any]) -> Plan | None:
    config = copy.deepcopy(plan.config)
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        setattr(get_key(config, section), name, value)
    try:
        check_config(config)
        return make_plan(
            config,
            plan.stage,
            plan.gpu,
            rows=plan.workload.rows,
            text_tokens=plan.workload.text_tokens,
            answer_tokens=plan.workload.answer_tokens,
        )
    except ConfigError:
        return None


def _by_price(levers: list[Lever], limit: int) -> Iterator[dict[str, Any]]:
    """Changes of one or more keys, the cheapest first."""
    start = (0,) * len(levers)
    queue, seen = [(0.0, start)], {start}
    for _ in range(limit):
        if not queue:
            return
        _, positions = heapq.heappop(queue)
        chosen = [(lever, lever.choices[at]) for lever, at in zip(levers, positions, strict=True)]
        yield {lever.key: value for (lever, (value, _)), at in zip(chosen, positions, strict=True) if at}
        for index, lever in enumerate(levers):
            following = (*positions[:index], positions[index] + 1, *positions[index + 1 :])
            if following[index] < len(lever.choices) and following not in seen:
                seen.add(following)
                price = sum(each.choices[at][1] for each, at in zip(levers, following, strict=True))
                heapq.heappush(queue, (price, following))


def _levers(plan: Plan) -> list[Lever]:
    """What may help: only levers of what does not fit, as the others would just be more to try."""
    tight = [device.label for device in plan.devices if not device.fits]
    levers: list[Lever] = []
    if plan.problems:
        levers += _length_levers(plan)
    is_budget_short = any("learner.max_tokens_per_microbatch" in words for words in plan.problems)
    if is_budget_short or any("learner" in label or "machine" in label for label in tight):
        levers += _learner_levers(plan)
    if any("engine" in label or "machine" in label for label in tight):
        levers += _engine_levers(plan)
    return [lever for lever in levers if len(lever.choices) > 1]


def _lever(config: Config, key: str, values: list[Any], price: float, first: float | None = None) -> Lever:
    """The configured value is free, the next costs `first` (or `price`), each further one `price` more."""
    start = price if first is None else first
    farther = ((value, start + price * index) for index, value in enumerate(values))
    return Lever(key, ((get_key(config, key), 0.0), *farther))


def _group_tokens(plan: Plan, max_new_tokens: int) -> int:
    size = 1 if plan.stage == "sft" else plan.config.grpo.group_size
    return plan.workload.prompt_tokens + size * max_new_tokens


def _halved(value: int, least: int) -> list[int]:
    values = []
    while value // 2 >= least:
        value //= 2
        values.append(value)
    return values


def _rounded(value: int, multiple: int = 256) -> int:
    return -(-value // multiple) * multiple


def _length_levers(plan: Plan) -> list[Lever]:
    config, positions = plan.config, plan.architecture.text.max_positions
    needed = _rounded(plan.workload.prompt_tokens + config.grpo.max_new_tokens)
    limit = config.rollout.max_model_len
    lengths = [needed] if needed > limit else []
    if positions is not None and limit > positions:
        lengths.append(positions)
    return [
        _lever(config, "rollout.max_model_len", lengths, 0.5),
        _lever(config, "grpo.max_new_tokens", _halved(config.grpo.max_new_tokens, 32), 5),
        _lever(config, "model.max_pixels", _halved(config.model.max_pixels, 50_000), 5),
    ]


def _learner_levers(plan: Plan) -> list[Lever]:
    config, learner = plan.config, plan.config.learner
    budget, least = learner.max_tokens_per_microbatch, _group_tokens(plan, config.grpo.max_new_tokens)
    shares = [budget * share // 4 >> halvings for halvings in range(8) for share in (3, 2)]
    budgets = [share for share in shares if share >= least]
    if budget < least or (budgets and budgets[-1] > _rounded(least)):
        budgets.append(_rounded(least))
    ranks = 1 if plan.stage == "debug" else learner.num_ranks
    stages = [stage for stage in (1, 2, 3) if stage > learner.zero_stage] if ranks > 1 else []
    levers = [
        _lever(config, "learner.max_tokens_per_microbatch", budgets, 0.5),
        _lever(
            config,
            "learner.activation_checkpointing",
            [] if learner.activation_checkpointing else [True],
            1.5,
        ),
        _lever(config, "learner.zero_stage", stages, 1.0),
        _lever(
            config, "grpo.group_size", _halved(config.grpo.group_size, 2) if plan.stage != "sft" else [], 6
        ),
        _lever(config, "learner.freeze_vision", [] if learner.freeze_vision else [True], 6),
        _lever(config, "learner.lora_rank", [] if learner.lora_rank else [16], 8),
    ]
    if learner.gpus_per_rank:
        # Two ranks must not come to share a GPU.
        more = [ranks * 2, ranks * 4, ranks * 8] if learner.gpus_per_rank > 0.5 else []
        levers.append(_lever(config, "learner.num_ranks", more, 4))
        offload = [] if learner.offload_optimizer or not learner.zero_stage else [True]
        levers.append(_lever(config, "learner.offload_optimizer", offload, 5))
    else:
        levers.append(_lever(config, "learner.num_ranks", _halved(ranks, 1), 2))
    return levers


def _engine_levers(plan: Plan) -> list[Lever]:
    config, rollout = plan.config, plan.config.rollout
    levers = [_lever(config, "rollout.max_num_seqs", _halved(rollout.max_num_seqs, 4), 1)]
    if rollout.gpus_per_worker:
        shares = [share / 100 for share in range(20, 95, 5)]
        now = rollout.gpu_memory_utilization
        others = sorted((each for each in shares if abs(each - now) > 0.01), key=lambda each: abs(each - now))
        levers.append(_lever(config, "rollout.gpu_memory_utilization", others, 0.3, first=0.5))
    else:
        key = "rollout.autoscale.max" if rollout.autoscale.max else "rollout.num_workers"
        workers = get_key(config, key)
        fewer = list(range(workers - 1, 0, -max(1, workers // 16)))
        levers.append(_lever(config, key, fewer, min(1.0, 8 / workers)))
        levers.append(_lever(config, "rollout.kv_cache_bytes", _halved(rollout.kv_cache_bytes, 16 << 20), 2))
    return levers
