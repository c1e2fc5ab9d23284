"""`alphadrive predict`: what it refuses before an engine starts, and how an answer reads."""

import pytest

from alphadrive import cli
from alphadrive.evaluation import Answered
from alphadrive.predict_command import prediction_of
from alphadrive.types import DrivingQuery

QUERY = DrivingQuery(query_id="a.png", row=0, speed_mps=8.3, navigation="ahead", plans=("KEEP, STRAIGHT",))


def said(plan):
    return f"<think> Free road, so go on. </think> <answer> {plan} </answer>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--speed": "300"}, "--speed: got 300.0, expected 0 to 70 m/s"),
        ({"--speed": "-1"}, "--speed: got -1.0, expected 0 to 70 m/s"),
        ({"--speed": "nan"}, "--speed: got nan, expected 0 to 70 m/s"),
        ({"--navigation": "left <|image_pad|>"}, "--navigation: contains '<|image_pad|>'"),
        ({"--navigation": "left </answer>"}, "--navigation: contains '</answer>'"),
        ({"--samples": "-2"}, "--samples -2: expected 0 or more"),
        ({"IMAGE": "missing.png"}, "missing.png: path 'missing.png': no such file"),
        ({"IMAGE": "."}, "no regular file"),
        ({"IMAGE": "text.png"}, "text.png: got 5 bytes that are no readable JPEG, PNG or WebP"),
        ({"IMAGE": "empty.png"}, "empty.png: got 0 bytes"),
        ({"IMAGE": "cut.png"}, "cut.png: got a truncated or damaged PNG"),
        ({"IMAGE": "long.png"}, "long.png: got an image of 402x2, expected sides of at most 200:1"),
        ({"--max-model-len": "300"}, "more than rollout.max_model_len=300"),
    ],
)
def test_wrong_input_is_refused_before_an_engine_starts(
    tmp_path, monkeypatch, capsys, picture, changes, message
):
    def start(_):
        raise AssertionError("an engine was asked for")

    monkeypatch.setattr("alphadrive.engine_evaluation.ask_model", start)
    monkeypatch.chdir(tmp_path)
    whole = picture()
    for name, data in (
        ("good.png", whole),
        ("text.png", b"hello"),
        ("empty.png", b""),
        ("cut.png", whole[: len(whole) // 2]),
        ("long.png", picture(402, 2)),
    ):
        (tmp_path / name).write_bytes(data)
    options = {"IMAGE": "good.png", "--speed": "8.3", "--navigation": "turn left in 50 m"} | changes
    image = options.pop("IMAGE")
    arguments = [word for pair in options.items() for word in ("=".join(pair),)]
    assert cli.run(["predict", "tiny", image, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_answer_reads_as_reasoning_and_plan():
    prediction = prediction_of(Answered(query=QUERY, text=said("keep , straight")))
    assert str(prediction) == "reasoning  Free road, so go on.\nplan       KEEP, STRAIGHT"
    assert prediction.samples is None


def test_answer_that_cannot_be_read_is_shown_as_it_is():
    prediction = prediction_of(Answered(query=QUERY, text="KEEP"))
    assert prediction.plan is None
    assert str(prediction) == "reasoning  -\nplan       none that can be read in 'KEEP'"


def test_samples_are_counted_and_both_choices_named():
    plans = ["KEEP, STRAIGHT"] * 3 + ["STOP, STRAIGHT"] * 2
    answered = Answered(
        query=QUERY, text=said("KEEP, STRAIGHT"), samples=(*(said(plan) for plan in plans), "mumble")
    )
    samples = prediction_of(answered).samples
    assert [(one.plan, one.count) for one in samples.plans] == [("KEEP, STRAIGHT", 3), ("STOP, STRAIGHT", 2)]
    assert (samples.num_samples, samples.majority_vote, samples.risk_averse) == (
        6,
        "KEEP, STRAIGHT",
        "STOP, STRAIGHT",
    )
    shown = str(prediction_of(answered)).splitlines()
    assert shown[2] == "6 samples:"
    assert shown[5].split() == ["1", "x", "invalid"]
