"""What an ablation takes away, from the option to the prompt."""

import pytest

from alphadrive.ablations import Ablation, parse_ablations
from alphadrive.data.parquet import DrivingDataset, write_records
from alphadrive.data.records import ImageRecord
from alphadrive.engine_arguments import EngineOptions
from alphadrive.engine_evaluation import EvalOptions, check_ablated_lengths
from alphadrive.errors import ConfigError
from alphadrive.processing import PromptProcessor
from alphadrive.prompts import planning_prompt
from alphadrive.types import DrivingQuery

QUERY = DrivingQuery(query_id="q", row=3, speed_mps=8.3, navigation="turn left", plans=("KEEP, STRAIGHT",))


def test_option_lists_ablations_once_each_and_in_order():
    found = parse_ablations(["image=blank|shuffle, navigation=none", "speed=none,image=blank"])
    assert [str(ablation) for ablation in found] == [
        "image=blank",
        "image=shuffle",
        "navigation=none",
        "speed=none",
    ]
    assert parse_ablations([]) == ()


@pytest.mark.parametrize(
    "text", ["image=grey", "image", "sound=none", "", "image=blank,,speed=none", "speed=0"]
)
def test_unknown_ablation_is_refused_with_what_there_is(text):
    with pytest.raises(ConfigError, match=r"--ablate .*image=blank\|shuffle,navigation=none,speed=none"):
        parse_ablations([text])


def test_prompt_without_a_value_says_unknown_and_changes_nothing_else():
    whole = planning_prompt(8.3, "turn left")
    assert "Your current speed is 8.3m/s, the navigation command is 'turn left'," in whole
    assert planning_prompt(None, "turn left") == whole.replace("8.3m/s", "unknown")
    assert planning_prompt(8.3, None) == whole.replace("turn left", "no navigation")


def test_withheld_value_is_not_in_the_tokens(model_folder):
    processor = PromptProcessor(model_folder, 100_000)

    def text(query):
        return processor.tokenizer.decode(processor.prompt_ids(query))

    assert "8.3m/s" in text(QUERY) and "'turn left'" in text(QUERY)
    without_speed = text(Ablation("speed", "none").of(QUERY))
    assert (
        "8.3" not in without_speed and "speed is unknown," in without_speed and "turn left" in without_speed
    )
    without_navigation = text(Ablation("navigation", "none").of(QUERY))
    assert "turn left" not in without_navigation and "command is 'no navigation'" in without_navigation
    assert Ablation("image", "blank").of(QUERY) == QUERY


def test_larger_image_of_another_row_is_counted_before_the_engine_starts(
    tmp_path, make_record, picture, model_folder
):
    large = ImageRecord(camera="front", dt_s=0.0, data=picture(560, 280), width=560, height=280)
    write_records([make_record(0, navigation="x" * 200), make_record(1, images=(large,))], tmp_path)
    dataset = DrivingDataset(tmp_path)
    processor = PromptProcessor(model_folder, EngineOptions(model="m").max_pixels)
    long_text = len(processor.prompt_ids(dataset.query(0))) - 1
    needed = long_text + 200 + 5  # 560 x 280 pixels are 20 x 10 tokens of 28 x 28

    def check(limit, *names):
        engine = EngineOptions(model="m", max_model_len=limit, max_new_tokens=5)
        ablations = parse_ablations(list(names))
        check_ablated_lengths(
            EvalOptions(engine=engine, data=tmp_path, ablations=ablations), model_folder, dataset
        )

    check(needed, "image=shuffle")
    check(needed - 1, "image=blank")
    with pytest.raises(ConfigError, match=rf"image=shuffle: .*row 0: .* = {needed}, more than"):
        check(needed - 1, "image=shuffle")


def test_longer_words_for_what_is_withheld_are_counted_too(tmp_path, make_record, model_folder):
    write_records([make_record(0, navigation="go")], tmp_path)
    dataset = DrivingDataset(tmp_path)
    query = dataset.query(0)
    processor = PromptProcessor(model_folder, EngineOptions(model="m").max_pixels)
    ablation = Ablation("navigation", "none")
    longer = len(processor.prompt_ids(ablation.of(query))) - len(processor.prompt_ids(query))
    assert longer > 0
    total = len(processor.prompt_ids(query)) - 1 + processor.num_image_tokens(56, 28) + 5
    engine = EngineOptions(model="m", max_model_len=total, max_new_tokens=5)
    with pytest.raises(ConfigError, match=f"navigation=none: .* = {total + longer}, more than"):
        options = EvalOptions(engine=engine, data=tmp_path, ablations=(ablation,))
        check_ablated_lengths(options, model_folder, dataset)
