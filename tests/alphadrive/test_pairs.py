"""Counterfactual pairs are found by their ids and counted together."""

import io

from rich.console import Console

from alphadrive.evaluation import Prediction
from alphadrive.pairs import pair_counts, pairs_as_dict, print_pairs


def prediction(query_id: str, is_acceptable: bool) -> Prediction:
    return Prediction(
        query_id=query_id,
        row=0,
        speed_mps=5.0,
        navigation="go",
        plans=("KEEP, STRAIGHT",),
        text="",
        plan=None,
        is_acceptable=is_acceptable,
    )


PAIRS = [
    prediction("a-0#light=red", True),
    prediction("a-0#light=green", True),
    prediction("a-2#light=red", True),
    prediction("a-2#light=green", False),
    prediction("a-1#brake_lights=on", False),
    prediction("a-1#brake_lights=off", False),
]


def test_a_pair_counts_as_right_when_both_answers_are() -> None:
    counts = pair_counts(PAIRS)
    light, brake = counts["light"], counts["brake_lights"]
    assert (light.num_pairs, light.both, light.one, light.neither) == (2, 1, 1, 0)
    assert (brake.num_pairs, brake.both, brake.one, brake.neither) == (1, 0, 0, 1)
    assert pairs_as_dict(PAIRS)["light"]["accuracy"] == 0.5


def test_halves_of_pairs_and_other_rows_are_no_pairs() -> None:
    others = [
        prediction("a-3#light=red", True),
        prediction("world-eval-0-000001", True),
        prediction("world-eval-0-000001#ood-camera", True),
    ]
    assert pair_counts(others) == {}
    assert pair_counts([*PAIRS, *others]) == pair_counts(PAIRS)


def test_the_table_is_printed_where_there_are_pairs() -> None:
    screen = io.StringIO()
    print_pairs([prediction("x", True)], Console(file=screen))
    assert screen.getvalue() == ""
    print_pairs(PAIRS, Console(file=screen, width=100))
    assert "brake lights" in screen.getvalue() and "50.0 %" in screen.getvalue()
