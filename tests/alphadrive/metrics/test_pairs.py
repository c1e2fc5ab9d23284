"""Counterfactual pairs are found by their ids and counted together."""

from pathlib import Path

from alphadrive.eval_figures import figures_of
from alphadrive.eval_report import EvalReport
from alphadrive.eval_table import eval_tables
from alphadrive.evaluation import Answered
from alphadrive.metrics.pairs import pair_counts
from alphadrive.types import DrivingQuery

PAIRS = [
    ("a-0#light=red", True),
    ("a-0#light=green", True),
    ("a-2#light=red", True),
    ("a-2#light=green", False),
    ("a-1#brake_lights=on", False),
    ("a-1#brake_lights=off", False),
]


def test_a_pair_counts_as_right_when_both_answers_are() -> None:
    counts = pair_counts(PAIRS)
    light, brake = counts["light"], counts["brake_lights"]
    assert (light.num_pairs, light.both, light.one, light.neither) == (2, 1, 1, 0)
    assert (brake.num_pairs, brake.both, brake.one, brake.neither) == (1, 0, 0, 1)
    assert light.as_dict()["accuracy"] == 0.5


def test_halves_of_pairs_and_other_rows_are_no_pairs() -> None:
    others = [
        ("a-3#light=red", True),
        ("world-eval-0-000001", True),
        ("world-eval-0-000001#ood-camera", True),
    ]
    assert pair_counts(others) == {}
    assert pair_counts([*PAIRS, *others]) == pair_counts(PAIRS)


def test_pairs_are_shown_and_written_where_there_are_any() -> None:
    def answered(query_id: str, is_acceptable: bool) -> Answered:
        query = DrivingQuery(
            query_id=query_id, row=0, speed_mps=5.0, navigation="go", plans=("KEEP, STRAIGHT",)
        )
        plan = "KEEP, STRAIGHT" if is_acceptable else "STOP, STRAIGHT"
        return Answered(query=query, text=f"<think> so </think> <answer> {plan} </answer>")

    def report(answers: list[Answered]) -> EvalReport:
        return EvalReport(
            who="someone", data=Path("data"), decoding="from a test", figures=figures_of(answers)
        )

    without, whole = report([answered("x", True)]), report([answered(*verdict) for verdict in PAIRS])
    assert without.figures.as_dict()["pairs"] is None
    assert "Counterfactual" not in eval_tables(without)
    assert "brake lights" in eval_tables(whole) and "50.0 %" in eval_tables(whole)
    assert whole.figures.as_dict()["pairs"]["light"]["accuracy"] == 0.5
