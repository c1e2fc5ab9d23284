"""A plan in words, for a terminal."""

from alphadrive.capacity import checkpoint_bytes, gib, most_checkpoints
from alphadrive.sizing.advice import Advice
from alphadrive.sizing.memory import Device
from alphadrive.sizing.plan import Plan


def plan_text(plan: Plan, advice: list[Advice]) -> str:
    """The whole plan; `advice` is what `advise` gave where it does not fit."""
    blocks = [_head(plan), _batch(plan), *(_device(device) for device in plan.devices), _time(plan)]
    lines = [line for block in blocks if block for line in (*block, "")]
    lines += _verdict(plan, advice)
    if plan.assumptions:
        lines += ["", "Assumed", *(f"  - {words}" for words in plan.assumptions)]
    return "\n".join(lines)


def answers_text(
    who: str, num_rows: int, num_answers: int, longest_prompt: int, devices: list[Device]
) -> str:
    """What an engine needs that only answers."""
    head = [
        f"{who}: {num_rows:,} rows, {num_answers:,} answers; the longest prompt has {longest_prompt} tokens"
    ]
    lines = [line for block in (head, *map(_device, devices)) for line in (*block, "")]
    fits = all(device.fits for device in devices)
    remedy = "fewer answers at once (--max-num-seqs), a smaller model, or a larger GPU"
    return "\n".join([*lines, "It fits." if fits else f"It does NOT fit: use {remedy}."])


def duration(seconds: float) -> str:
    """Seconds for people: `0.42 s`, `35 min`, `7.2 h`, `3.1 days`."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size * (2 if unit == "days" else 1):
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _head(plan: Plan) -> list[str]:
    model, work = plan.architecture, plan.workload
    adapter = model.adapter_parameters(plan.config.learner)
    trained = f", {adapter:,} of LoRA are trained" if adapter else ""
    where = f"{plan.num_gpus:g} {plan.gpu.name}" if plan.num_gpus else "CPU"
    rows = "not here, an epoch of unknown length (--rows N)" if work.rows is None else f"{work.rows:,} rows"
    disk = checkpoint_bytes(plan.config, model.parameters, adapter)
    return [
        f"{plan.config.run.name}: {plan.stage} on {where}",
        f"  model      {plan.config.model.path}: {model.parameters:,} parameters "
        f"({model.vision_parameters:,} vision){trained}, {plan.config.model.dtype}",
        f"  data       {plan.config.data.train}: {rows}",
        f"  prompt     {work.text_tokens} text + {work.vision_tokens} vision tokens; answers of "
        f"{work.answer_tokens}, at most {plan.config.grpo.max_new_tokens}",
        f"  checkpoint {gib(disk)} on disk, up to {most_checkpoints(plan.config)} at once",
    ]


def _batch(plan: Plan) -> list[str]:
    batch, grpo = plan.batch, plan.config.grpo
    typical, most = batch.microbatches
    packs = f"{typical}" if typical == most else f"{typical} to {most}"
    epoch = "" if batch.steps_per_epoch is None else f", {batch.steps_per_epoch:,} an epoch"
    if plan.stage == "sft":
        return [
            "Batch",
            f"  a step     {batch.groups} samples; {batch.groups_per_rank} a rank, in {packs} microbatches",
            f"  steps      {batch.steps:,}{epoch}",
        ]
    return [
        "Batch",
        f"  a step     {batch.groups} prompts x G={batch.group_size} = {batch.samples} samples; "
        f"{batch.groups_per_rank} prompts a rank",
        f"  optimizer  {_steps(batch.optimizer_steps)} of {batch.groups_per_optimizer_step} prompts "
        f"({batch.groups_per_optimizer_step * batch.group_size} samples), a rank's in {packs} microbatches",
        f"  in flight  {batch.groups_in_flight} prompts (lag {grpo.max_policy_lag}), "
        f"{batch.sequences_per_engine} sequences an engine; weights sent every {_steps(grpo.sync_every)}",
        f"  steps      {batch.steps:,}{epoch}",
    ]


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _device(device: Device) -> list[str]:
    parts = [part for part in device.parts if part.total_bytes]
    lines = [
        f"Memory: {device.label} (x {device.count:g})" if device.count != 1 else f"Memory: {device.label}"
    ]
    for part in parts:
        times = f"   {part.count} x {gib(part.each_bytes)}" if part.count > 1 else ""
        lines.append(f"  {part.label:<48} {gib(part.total_bytes):>10}{times}")
    available = "" if device.available_bytes is None else f" of {gib(device.available_bytes)}"
    verdict = "" if device.fits else "   DOES NOT FIT"
    lines.append(f"  {'needed':<48} {gib(device.needed_bytes):>10}{available}{verdict}")
    return lines + ([f"  {device.spare}"] if device.spare else [])


def _time(plan: Plan) -> list[str]:
    time = plan.throughput
    if time is None:
        return ["Time", "  no estimate without GPUs: run a few steps and look at perf/throughput"]
    shares = f"training {duration(time.train_s)}, optimizer {duration(time.optimizer_s)}"
    if plan.stage != "sft":
        shares = f"rollouts {duration(time.rollout_s)}, {shares}, weight sync {duration(time.sync_s)}"
        shares += f"; it waits for the {time.bound}"
    lines = [
        f"Time on {plan.gpu.name}",
        f"  a step     {duration(time.step_s)}: {shares}",
        f"  speed      {_rate(time.samples_per_s)}",
        f"  the run    {duration(time.run_s)} for {plan.batch.steps:,} steps",
    ]
    if time.epoch_s is not None:
        lines.append(f"  an epoch   {duration(time.epoch_s)}")
    return lines


def _rate(samples_per_s: float) -> str:
    digits = f"{samples_per_s:,.0f}" if samples_per_s >= 100 else f"{samples_per_s:.3g}"
    return f"{digits} samples/s"


def _verdict(plan: Plan, advice: list[Advice]) -> list[str]:
    if plan.fits:
        return ["It fits."]
    tight = [
        f"{device.label}: {gib(device.needed_bytes)} of {gib(device.available_bytes or 0)}"
        for device in plan.devices
        if not device.fits
    ]
    lines = ["It does NOT fit:", *(f"  - {words}" for words in (*plan.problems, *tight))]
    if not advice:
        remedy = "more or larger GPUs, or LoRA" if plan.num_gpus else "more memory, or GPUs"
        return [*lines, f"No setting near this one fits: use a smaller model, {remedy}."]
    lines.append("Nearest settings that would:")
    return [*lines, *(f"  {' '.join(each.overrides)}{_effect(plan, each.plan)}" for each in advice)]


def _effect(plan: Plan, changed: Plan) -> str:
    """Speed, and GPUs where there are more of them, in brackets."""
    if changed.throughput is None:
        return ""
    gpus = f"{changed.num_gpus:g} GPUs, " if changed.num_gpus != plan.num_gpus else ""
    return f"   ({gpus}{_rate(changed.throughput.samples_per_s)})"
