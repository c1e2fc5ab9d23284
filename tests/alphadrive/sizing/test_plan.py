"""Plans of the shipped configurations, and advice where one does not fit."""

import json
from pathlib import Path

import pytest

from alphadrive.capacity import GIB
from alphadrive.config import load_config
from alphadrive.sizing.advice import Advice, advise
from alphadrive.sizing.gpus import GPUS
from alphadrive.sizing.plan import Plan, make_plan
from alphadrive.sizing.text import duration, plan_text

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = sorted(file.stem for file in (ROOT / "configs").glob("*.yaml"))
NUM_GPUS = {
    "qwen2vl_2b_1gpu": 1,
    "comma2k19_2b_1gpu": 1,
    "qwen2vl_2b_8gpu": 8,
    "qwen2vl_7b_lora_8gpu": 8,
    "qwen2_5vl_3b_8gpu": 8,
    "nuscenes_2b_8gpu": 8,
    "qwen2vl_2b_paper": 16,
    "qwen2vl_2b_64gpu": 64,
}


def planned(name: str, *overrides: str, stage: str = "grpo", gpu: str = "H100", **options: int) -> Plan:
    return make_plan(load_config(name, list(overrides)), stage, GPUS[gpu], **options)


@pytest.mark.parametrize("stage", ["grpo", "sft"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_configuration_fits(name: str, stage: str) -> None:
    plan = planned(name, stage=stage)
    assert plan.fits, plan_text(plan, [])
    assert plan.num_gpus == NUM_GPUS.get(name, 0) or stage == "sft"
    assert (plan.throughput is None) == (plan.num_gpus == 0)
    assert "It fits." in plan_text(plan, [])


@pytest.mark.parametrize("name", NUM_GPUS)
def test_configurations_for_80_gb_fit_any_gpu_that_large(name: str) -> None:
    assert all(planned(name, gpu=gpu).fits for gpu in ("A100-80", "A800", "H100", "H200"))


@pytest.mark.parametrize("name", NUM_GPUS)
def test_the_documented_table_is_the_planners(name: str) -> None:
    plan = planned(name)
    device, batch, throughput = plan.devices[0], plan.batch, plan.throughput
    assert throughput is not None
    row = (
        f"| `{name}` | {plan.num_gpus:g} | {device.needed_bytes / GIB:.0f} GiB | {batch.groups} x "
        f"{batch.group_size} | {throughput.samples_per_s:,.0f} |"
    )
    assert row in (ROOT / "docs" / "planning.md").read_text().splitlines()


def test_the_split_of_eight_gpus_is_the_fastest_that_the_planner_knows() -> None:
    groups = load_config("qwen2vl_2b_8gpu").grpo.groups_per_step
    splits = {
        ranks: planned(
            "qwen2vl_2b_8gpu",
            f"learner.num_ranks={ranks}",
            f"rollout.num_workers={8 - ranks}",
            f"grpo.groups_per_step={-(-groups // ranks) * ranks}",
        )
        for ranks in range(1, 8)
    }
    rates = {ranks: plan.throughput.samples_per_s for ranks, plan in splits.items() if plan.throughput}
    assert max(rates, key=lambda ranks: rates[ranks]) == load_config("qwen2vl_2b_8gpu").learner.num_ranks


def test_batch_arithmetic_of_the_papers_setting() -> None:
    batch = planned("qwen2vl_2b_paper", rows=110_000).batch
    assert (batch.groups, batch.group_size, batch.samples) == (32, 2, 64)
    assert batch.groups_per_rank == 4 and batch.groups_in_flight == 32
    assert batch.steps_per_epoch == 3438 == batch.steps
    # An engine draws 4 prompts of 2 answers; a pack holds 4 of 702 + 2 x 80 tokens, 3 of 702 + 2 x 256.
    assert batch.sequences_per_engine == 8 and batch.microbatches == (1, 2)


def test_minibatches_epochs_and_sft_are_counted() -> None:
    keys = ["grpo.minibatches=2", "grpo.epochs=3", "grpo.max_policy_lag=3"]
    batch = planned("qwen2vl_2b_8gpu", *keys, rows=1000).batch
    assert batch.optimizer_steps == 6 and batch.groups_per_optimizer_step == 48
    assert batch.groups_in_flight == 4 * 96 and batch.steps_per_epoch == 11
    sft = planned("qwen2vl_2b_8gpu", stage="sft", rows=1000).batch
    assert (sft.samples, sft.groups_per_rank, sft.steps, sft.steps_per_epoch) == (96, 16, 1000, 11)
    assert planned("qwen2vl_2b_8gpu").batch.steps_per_epoch is None


DAMAGES = [
    ("GPU of 45 GB", "L40S", ()),
    ("GPU of 40 GB", "A100-40", ()),
    ("large budget", "H100", ("learner.max_tokens_per_microbatch=65536", "grpo.groups_per_step=192")),
    ("no sharding", "H100", ("learner.zero_stage=0", "learner.activation_checkpointing=false")),
    ("budget below a group", "H100", ("learner.max_tokens_per_microbatch=1024",)),
    ("short context", "H100", ("rollout.max_model_len=512",)),
    ("small share", "H100", ("rollout.gpu_memory_utilization=0.06",)),
    ("whole GPU for the engine", "H100", ("rollout.gpu_memory_utilization=0.95",)),
]


@pytest.mark.parametrize(("gpu", "overrides"), [(g, o) for _, g, o in DAMAGES], ids=[d[0] for d in DAMAGES])
@pytest.mark.parametrize("name", NUM_GPUS)
def test_advice_that_is_followed_gives_a_plan_that_fits(
    name: str, gpu: str, overrides: tuple[str, ...]
) -> None:
    plan = planned(name, *overrides, gpu=gpu)
    if plan.fits:
        return
    advice = advise(plan)
    assert advice, plan_text(plan, [])
    for each in advice:
        # As a user would: on the command line, behind what did not fit.
        assert planned(name, *overrides, *each.overrides, gpu=gpu).fits
        assert all(each.overrides) and " ".join(each.overrides) in plan_text(plan, advice)
    keys = [_keys(each) for each in advice]
    assert not any(keys[a] <= keys[b] for b in range(len(keys)) for a in range(b))


def _keys(advice: Advice) -> set[str]:
    return {override.partition("=")[0] for override in advice.overrides}


def test_the_nearest_setting_changes_as_little_as_it_can() -> None:
    plan = planned("qwen2vl_2b_8gpu", "learner.max_tokens_per_microbatch=8192")
    assert not plan.fits
    first, *others = advise(plan)
    assert first.overrides == ("learner.max_tokens_per_microbatch=6144",)
    assert ("learner.activation_checkpointing=true",) in [each.overrides for each in others]


def test_too_many_engines_for_this_machine_are_fewer_in_the_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alphadrive.sizing.memory.memory_limit_bytes", lambda: 8 << 30)
    plan = planned("debug", "rollout.num_workers=9")
    assert not plan.fits
    assert advise(plan)[0].overrides == ("rollout.num_workers=3",)


def test_of_very_many_engines_too_fewer_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alphadrive.sizing.memory.memory_limit_bytes", lambda: 24 << 30)
    assert advise(planned("debug", "rollout.num_workers=40"))[0].overrides == ("rollout.num_workers=13",)


def test_advice_of_more_gpus_says_how_many_and_never_has_two_ranks_on_one() -> None:
    plan = planned("qwen2vl_2b_8gpu", "learner.max_tokens_per_microbatch=8192")
    more = [each for each in advise(plan) if "learner.num_ranks" in " ".join(each.overrides)]
    assert more and f"({more[0].plan.num_gpus:g} GPUs, " in plan_text(plan, more)
    shared = planned("qwen2vl_2b_1gpu", "model.path=Qwen/Qwen2-VL-7B-Instruct")
    assert not any("num_ranks" in " ".join(each.overrides) for each in advise(shared))


def test_where_nothing_helps_the_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alphadrive.sizing.memory.memory_limit_bytes", lambda: 1 << 30)
    plan = planned("debug")
    assert advise(plan) == [] and "No setting near this one fits" in plan_text(plan, [])


def test_the_json_of_a_plan_keeps_its_keys() -> None:
    found = json.loads(json.dumps(planned("qwen2vl_2b_1gpu", rows=100).as_json()))
    assert found["schema"] == 1 and found["fits"] is True and found["problems"] == []
    assert set(found) == {
        "schema",
        "run",
        "stage",
        "fits",
        "problems",
        "gpu",
        "num_gpus",
        "model",
        "workload",
        "batch",
        "devices",
        "throughput",
        "assumptions",
    }
    assert set(found["gpu"]) == {"name", "memory_bytes", "flops", "bytes_per_s", "link_bytes_per_s"}
    assert set(found["model"]) == {
        "path",
        "family",
        "parameters",
        "vision_parameters",
        "adapter_parameters",
    }
    assert set(found["workload"]) == {
        "text_tokens",
        "vision_tokens",
        "prompt_tokens",
        "patches",
        "answer_tokens",
        "rows",
    }
    assert set(found["batch"]) == {
        "groups",
        "group_size",
        "samples",
        "groups_per_rank",
        "optimizer_steps",
        "groups_per_optimizer_step",
        "groups_in_flight",
        "sequences_per_engine",
        "microbatches",
        "steps",
        "steps_per_epoch",
    }
    assert set(found["throughput"]) == {
        "rollout_s",
        "train_s",
        "optimizer_s",
        "sync_s",
        "step_s",
        "bound",
        "samples_per_s",
        "epoch_s",
        "run_s",
    }
    for device in found["devices"]:
        assert set(device) == {
            "label",
            "count",
            "needed_bytes",
            "available_bytes",
            "fits",
            "spare",
            "parts",
        }
        assert device["needed_bytes"] == sum(part["count"] * part["each_bytes"] for part in device["parts"])
    on_cpu = planned("debug").as_json()
    assert on_cpu["gpu"] is None and on_cpu["throughput"] is None and on_cpu["assumptions"] == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0421, "0.0421 s"), (59.0, "59 s"), (150.0, "2.5 min"), (7200.0, "2 h"), (400_000.0, "4.63 days")],
)
def test_durations_are_for_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words
