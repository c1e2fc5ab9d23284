"""One learner rank as a process: `python learner_job.py JOB.json RANK`.

Runs the scenarios that the job lists one after another, each on a learner of its own, and writes what
their calls returned. Also makes the groups, so that a reference can train on the same ones.
"""

import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from alphadrive.config import Config
from alphadrive.errors import AlphaDriveError
from alphadrive.types import (
    Completion,
    DrivingQuery,
    RewardBreakdown,
    RolloutGroup,
    ScoredGroup,
    StepResult,
    VersionSpan,
    WeightVersion,
)


def make_groups(
    processor: Any, dataset: Any, step: int, num_groups: int, attempt: int = 0
) -> list[ScoredGroup]:
    """Random answers to the first rows, with made-up sampler log-probabilities and advantages."""
    dice = random.Random(step)
    groups = []
    for row in range(num_groups):
        query: DrivingQuery = dataset.query(row)
        _, grid = processor.pixels(processor.fit(dataset.image(row)))
        completions = []
        for _ in range(3):
            length = dice.randint(2, 7)
            span = VersionSpan(version=WeightVersion(attempt, step), start=0, end=length)
            completions.append(
                Completion(
                    text="",
                    token_ids=tuple(dice.randrange(5, 200) for _ in range(length)),
                    rollout_logprobs=tuple(dice.uniform(-6.8, -6.0) for _ in range(length)),
                    finish_reason="stop",
                    weight_versions=(span,),
                )
            )
        rollout = RolloutGroup(
            ticket=row,
            query=query,
            prompt_token_ids=tuple(processor.expanded_ids(processor.prompt_ids(query), grid)),
            completions=tuple(completions),
            engine_id="engine-0",
        )
        advantages = tuple(dice.uniform(-2, 2) for _ in completions)
        rewards = tuple(RewardBreakdown(terms={}, total=advantage) for advantage in advantages)
        groups.append(ScoredGroup(group=rollout, rewards=rewards, advantages=advantages))
    return groups


def hollowed(scored: ScoredGroup, num_hollow: int) -> ScoredGroup:
    """The group with no token in its first completions."""
    completions = tuple(
        replace(completion, token_ids=(), rollout_logprobs=()) if index < num_hollow else completion
        for index, completion in enumerate(scored.group.completions)
    )
    return replace(scored, group=replace(scored.group, completions=completions))


def scenario_config(scenario: dict[str, Any]) -> Config:
    config = Config()
    for key, value in scenario["config"].items():
        section, name = key.split(".")
        setattr(getattr(config, section), name, value)
    return config


def outcome_of(result: StepResult) -> dict[str, Any]:
    return result.metrics | {"problem": result.problem, "was_updated": result.was_updated}


def poisoned_gradient(learner: Any, groups: list[ScoredGroup], is_hurt: bool) -> dict[str, Any]:
    """A step in which the last rank's gradient is not finite."""
    embeddings = learner._trainer.policy.model.get_input_embeddings()
    factor = float("nan") if is_hurt else 1.0
    weight_hook = embeddings.weight.register_hook(lambda gradient: gradient * factor)
    try:
        return outcome_of(learner.step(groups))
    finally:
        weight_hook.remove()


def poisoned_advantages(learner: Any, groups: list[ScoredGroup], is_hurt: bool) -> dict[str, Any]:
    """A step in which the last rank's loss and gradient are not finite."""
    if is_hurt:
        groups = [replace(each, advantages=(float("nan"),) * 3) for each in groups]
    return outcome_of(learner.step(groups))


def poisoned_loss(learner: Any, groups: list[ScoredGroup], is_hurt: bool) -> dict[str, Any]:
    """A step in which the last rank's loss is not finite, but its gradient is."""
    trainer = learner._trainer
    accumulate = trainer.accumulate
    shift = float("inf") if is_hurt else 0.0
    trainer.accumulate = lambda batches, loss_of: accumulate(batches, lambda batch: loss_of(batch) + shift)
    try:
        return outcome_of(learner.step(groups))
    finally:
        del trainer.accumulate


POISONS = {
    "poisoned_gradient": poisoned_gradient,
    "poisoned_advantages": poisoned_advantages,
    "poisoned_loss": poisoned_loss,
}


def write_gradient(learner: Any, path: Path) -> None:
    """Write the whole gradient of the first step, from AdamW's first moments."""
    from deepspeed.utils import safe_get_full_optimizer_state
    from safetensors.torch import save_file

    engine = learner._trainer.engine
    optimizer = engine._engine.optimizer
    if engine.zero_stage in (1, 2):
        # DeepSpeed links the states of all groups when only the first group has any.
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()

    def first_moment(parameter: Any) -> Any:
        if not engine.zero_stage:
            return optimizer.state[parameter]["exp_avg"]
        return safe_get_full_optimizer_state(parameter, "exp_avg")

    gradients = {
        name: first_moment(parameter) / (1 - 0.9)
        for name, parameter in learner._trainer.policy.named_parameters()
        if parameter.requires_grad
    }
    if learner._trainer.rank == 0:
        save_file({name: gradient.contiguous() for name, gradient in gradients.items()}, path)


def optimizer_dtypes(learner: Any, _: None) -> list[str]:
    """What the optimizer's weights are."""
    param_groups = learner._trainer.engine._engine.optimizer.param_groups
    return sorted({str(each.dtype) for group in param_groups for each in group["params"]})


def held_bytes(learner: Any, _: None) -> dict[str, int]:
    """Bytes that this rank holds: weights, and what the optimizer has of its own (masters and moments)."""
    engine = learner._trainer.engine
    weights = [getattr(weight, "ds_tensor", weight) for weight in engine.module.parameters()]
    theirs = {weight.untyped_storage().data_ptr() for weight in weights}
    basic = engine._engine.basic_optimizer
    masters = [each for group in basic.param_groups for each in group["params"]]
    # ZeRO-3 lends its masters to the optimizer for the time of a step only.
    masters += getattr(engine._engine.optimizer, "fp32_partitioned_groups_flat", [])
    moments = [each for state in basic.state.values() for each in state.values() if each.numel() > 1]
    own = [each for each in masters + moments if each.untyped_storage().data_ptr() not in theirs]
    return {
        "weights": sum(each.numel() * each.element_size() for each in weights),
        "optimizer": sum(each.numel() * each.element_size() for each in own),
    }


def count_layer_forwards(learner: Any, _: None) -> list[int]:
    """Begin to count how often the first layers of language model and vision tower are computed."""
    base = learner._trainer.policy.model.base_model
    counts = [0, 0]

    def count(place: int) -> Any:
        def hook(module: Any, args: Any) -> None:
            counts[place] += 1

        return hook

    base.language_model.layers[0].mlp.register_forward_pre_hook(count(0))
    base.visual.blocks[0].mlp.register_forward_pre_hook(count(1))
    return counts


def stream_weights(learner: Any, bucket_bytes: int) -> dict[str, Any]:
    """The weights as they are sent to engines: their digest, the largest bucket, and how much more of the
    model this rank held meanwhile than before, in bytes."""
    import torch

    from alphadrive.weights import WeightDigest, dtype_name

    def held() -> int:
        return sum(each.data.nbytes for each in learner._trainer.policy.parameters())

    layout, digest = learner.weight_layout(bucket_bytes), WeightDigest()
    before = most = held()
    num_tensors = 0
    for bucket, tensors in zip(layout.buckets, learner.weight_buckets(layout), strict=True):
        most = max(most, held())
        num_tensors += len(tensors)
        for slot, tensor in zip(bucket, tensors, strict=learner.is_first):
            data = tensor.flatten().view(torch.uint8).numpy()
            digest.add(slot.tensor.name, dtype_name(tensor.dtype), tuple(tensor.shape), data)
    return {
        "sha256": digest.hexdigest(),
        "version": list(layout.version),
        "num_tensors": num_tensors,
        "num_bytes": layout.num_bytes,
        "num_buckets": len(layout.buckets),
        "largest": max(bucket[-1].end for bucket in layout.buckets),
        "grown": most - before,
        "after": held() - before,
    }


MEASUREMENTS = {
    "stream_weights": stream_weights,
    "gradient": write_gradient,
    "optimizer_dtypes": optimizer_dtypes,
    "count_layer_forwards": count_layer_forwards,
    "held_bytes": held_bytes,
}


def reference_logprobs(learner: Any, groups: list[ScoredGroup]) -> dict[str, Any]:
    """The KL reference's log-probabilities of every group, and how many of its weights this rank holds."""
    trainer = learner._trainer
    batch = trainer.token_batch([trainer.reader.rollout_row(scored.group) for scored in groups])
    parameters = list(learner._reference.policy.parameters())
    return {
        "logprobs": learner._reference_logprobs(batch).tolist(),
        "held": sum(getattr(parameter, "ds_tensor", parameter).numel() for parameter in parameters),
    }


def save_on_full_disk(learner: Any, target: Path, is_hurt: bool) -> str:
    """A save in which the last rank's first file cannot be written; then one that works."""
    import errno

    import torch

    save = torch.save

    def full(*args: Any, **kwargs: Any) -> None:
        torch.save = save
        raise OSError(errno.ENOSPC, "No space left on device")

    torch.save = full if is_hurt else save
    try:
        learner.save_checkpoint(target)
    except AlphaDriveError as error:
        learner.save_checkpoint(target)
        return f"{type(error).__name__}: {error}"
    finally:
        torch.save = save
    return "saved"


def load_what_others_may_write(learner: Any, source: Path, is_first: bool) -> None:
    """A load of a checkpoint one of whose files is open to all."""
    import torch

    path = min((source / "learner").glob("*_model_states.pt"))
    if is_first:
        path.chmod(0o666)
    torch.distributed.barrier()
    learner.load_checkpoint(source)


def run_call(learner: Any, call: str, argument: Any, rank: int, world_size: int, folder: Path) -> Any:
    """One call on this rank: its result, in JSON's terms. Paths are within the scenario's folder."""
    reader = learner._trainer.reader

    def groups(step: int, number: int) -> list[ScoredGroup]:
        return make_groups(reader.processor, reader.dataset, step, number, learner.attempt)

    if call == "step":
        return learner.step(groups(*argument)[rank::world_size]).metrics
    if call == "flat_step":
        return learner.step([replace(each, advantages=(0.0,) * 3) for each in groups(*argument)]).metrics
    if call == "hollow_step":
        step, number, num_hollow = argument
        return learner.step([hollowed(each, num_hollow) for each in groups(step, number)]).metrics
    if call == "step_of_shares":
        step, shares = argument
        start = sum(shares[:rank])
        return learner.step(groups(step, sum(shares))[start : start + shares[rank]]).metrics
    if call in POISONS:
        return POISONS[call](learner, groups(*argument)[rank::world_size], is_hurt=rank == world_size - 1)
    if call in MEASUREMENTS:
        return MEASUREMENTS[call](learner, folder / argument if isinstance(argument, str) else argument)
    if call == "save_on_full_disk":
        return save_on_full_disk(learner, folder / argument, is_hurt=rank == world_size - 1)
    if call == "load_what_others_may_write":
        return load_what_others_may_write(learner, folder / argument, is_first=not rank)
    if call == "reference":
        return reference_logprobs(learner, groups(*argument))
    if call == "sft":
        return learner.step(argument[rank::world_size]).metrics
    if call == "score":
        return learner.score([scored.group for scored in groups(0, argument)[rank:]])
    if call == "export_weights":
        written = learner.export_weights(folder / argument)
        return written and [written.sha256, list(written.version)]
    return getattr(learner, call)(folder / argument)


def split_small() -> None:
    """Have ZeRO-3 split tensors however small in the next learner, which it would leave whole."""
    import learner.engine as module

    original = module.deepspeed_config

    def config(*args: Any) -> dict[str, Any]:
        module.deepspeed_config = original
        made = original(*args)
        made["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return made

    module.deepspeed_config = config


def run_scenario(job: dict[str, Any], scenario: dict[str, Any], rank: int) -> list[Any]:
    """All calls of a scenario on a learner of its own. An error is a result like any other."""
    from learner.rank import LearnerRank
    from learner.sft import SftRank

    folder = Path(job["folder"]) / scenario["name"]
    folder.mkdir(exist_ok=True)
    learner_type: Any = {"grpo": LearnerRank, "sft": SftRank}[scenario["stage"]]
    if scenario["splits_small"]:
        split_small()
    learner = learner_type(
        scenario_config(scenario),
        rank=rank,
        world_size=job["world_size"],
        meeting_point=job["meeting_point"],
        model_folder=folder / scenario["model"] if scenario["model"] else Path(job["model"]),
        dataset_folder=Path(job["dataset"]),
        attempt=scenario["attempt"],
    )
    results = []
    for call, argument in scenario["calls"]:
        try:
            results.append(run_call(learner, call, argument, rank, job["world_size"], folder))
        except AlphaDriveError as error:
            results.append({"error": f"{type(error).__name__}: {error}"})
    learner.close()
    return results


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    outcome = {each["name"]: run_scenario(job, each, int(sys.argv[2])) for each in job["scenarios"]}
    Path(f"{sys.argv[1]}.rank{sys.argv[2]}").write_text(json.dumps(outcome))
