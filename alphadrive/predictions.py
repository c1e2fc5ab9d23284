"""Answers as a file: `predictions.jsonl`, one JSON object a line, written by `alphadrive eval` and read by
`alphadrive eval --predictions`.

    {"query_id": "…", "text": "…"}                      the answer that is judged
    {"query_id": "…", "text": "…", "texts": ["…", …]}   with K samples beside it
    {"query_id": "…", "texts": ["…", …]}                samples alone: the first is judged as the answer

Other keys are ignored, so a file that `alphadrive eval` wrote can be read again.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alphadrive.actions import parse_answer
from alphadrive.data.checks import plan_problem
from alphadrive.data.parquet import DrivingDataset
from alphadrive.data.validate import raise_problems
from alphadrive.errors import DataError
from alphadrive.evaluation import Answered
from alphadrive.metrics.judging import judge_plan
from alphadrive.types import DrivingQuery


def read_queries(dataset: DrivingDataset) -> list[DrivingQuery]:
    """All situations of a dataset whose images nobody needs. Raises DataError with every row whose id or
    plans cannot be used."""
    queries = [dataset.query(row) for row in range(len(dataset))]
    raise_problems(_row_problems(dataset, queries), str(dataset.folder))
    return queries


def _row_problems(dataset: DrivingDataset, queries: Sequence[DrivingQuery]) -> Iterator[str]:
    first_rows: dict[str, int] = {}
    for query in queries:
        where = dataset.where(query.row)
        if first_rows.setdefault(query.query_id, query.row) != query.row:
            yield f"{where}: query_id: {query.query_id!r} is also in row {first_rows[query.query_id]}"
        if not query.plans:
            yield f"{where}: plans: empty, expected at least one acceptable plan, the recorded one first"
        for index, text in enumerate(query.plans):
            if problem := plan_problem(text):
                yield f"{where}: plans[{index}]: {problem}"


def read_predictions(path: Path, queries: Sequence[DrivingQuery]) -> list[Answered]:
    """The answers of a file, in the order of `queries`.

    Raises DataError with every problem: a line that is no such object, a query id that is unknown or there
    twice, a query without an answer, samples of different number, some lines with `text` and some without.
    """
    reader = _Reader(path, {query.query_id for query in queries})
    problems = list(reader.problems())
    absent = [query.query_id for query in queries if query.query_id not in reader.lines]
    if absent:
        shown = ", ".join(map(repr, absent[:5])) + (", …" if len(absent) > 5 else "")
        problems.append(
            f"{path}: query_id: no answer to {len(absent)} of {len(queries)} rows of the dataset ({shown}); "
            "expected one line for every row"
        )
    raise_problems(problems, str(path))
    return [_answered(query, reader.values[query.query_id]) for query in queries]


class _Reader:
    """Reads a file once; afterwards `values` holds its objects and `lines` their numbers, by query id."""

    def __init__(self, path: Path, known: set[str]) -> None:
        self.values: dict[str, dict[str, Any]] = {}
        self.lines: dict[str, int] = {}
        self._path = path
        self._known = known
        self._first: tuple[int, bool] | None = None
        self._num_samples: tuple[int, int] | None = None

    def problems(self) -> Iterator[str]:
        """Every problem, as the lines are read."""
        num_lines = 0
        try:
            with self._path.open("rb") as stream:
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        num_lines += 1
                        for problem in self._line_problems(number, line):
                            yield f"{self._path}: line {number}: {problem}"
        except OSError as error:
            raise DataError(f"{self._path}: cannot be read: {error.strerror}") from error
        if not num_lines:
            yield f"{self._path}: empty, expected one line for every row of the dataset"

    def _line_problems(self, number: int, line: bytes) -> Iterator[str]:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield f"no JSON ({error}); expected an object with query_id and text or texts"
            return
        found = list(_type_problems(values))
        yield from found
        query_id = values.get("query_id") if isinstance(values, dict) else None
        if not isinstance(query_id, str):
            return
        if query_id in self.lines:
            yield f"query_id: {query_id!r} is also on line {self.lines[query_id]}; expected once"
            return
        self.lines[query_id] = number
        if query_id not in self._known:
            yield f"query_id: {query_id!r} is in no row of the dataset"
        if found:
            return
        self.values[query_id] = values
        yield from self._consistency_problems(number, values)

    def _consistency_problems(self, number: int, values: Mapping[str, Any]) -> Iterator[str]:
        has_text = "text" in values
        self._first = self._first or (number, has_text)
        if has_text != self._first[1]:
            names = ("a text here and none", "no text here but one")[not has_text]
            yield f"text: {names} on line {self._first[0]}; expected on every line or on none"
        if "texts" in values:
            count = len(values["texts"])
            self._num_samples = self._num_samples or (number, count)
            if count != self._num_samples[1]:
                line, expected = self._num_samples
                yield f"texts: got {count} samples, expected {expected} as on line {line}"


def _type_problems(values: object) -> Iterator[str]:
    if not isinstance(values, dict):
        yield f"got {type(values).__name__}, expected an object with query_id and text or texts"
        return
    if not isinstance(values.get("query_id"), str):
        yield f"query_id: got {values.get('query_id')!r}, expected a text"
    if "text" not in values and "texts" not in values:
        yield "text: missing, expected the answer as text, or samples as texts"
    if "text" in values and not isinstance(values["text"], str):
        yield f"text: got {type(values['text']).__name__}, expected a text"
    if "texts" in values:
        texts = values["texts"]
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            yield "texts: expected a list of at least one text"


def _answered(query: DrivingQuery, values: Mapping[str, Any]) -> Answered:
    samples = tuple(values.get("texts", ()))
    return Answered(query=query, text=values.get("text", samples[0] if samples else ""), samples=samples)


def prediction_line(answered: Answered) -> str:
    """One line of `predictions.jsonl`: the answer and its samples, the situation, and the verdict.

    `plan` is null where the answer is invalid; the first of `plans` is the recorded one.
    """
    query = answered.query
    verdict = judge_plan(query, parse_answer(answered.text))
    values: dict[str, object] = {
        "query_id": query.query_id,
        "row": query.row,
        "speed_mps": query.speed_mps,
        "navigation": query.navigation,
        "plans": query.plans,
        "text": answered.text,
        "plan": None if verdict.plan is None else str(verdict.plan),
        "is_acceptable": verdict.is_acceptable,
    }
    if answered.samples:
        values["texts"] = answered.samples
    return json.dumps(values, allow_nan=False)
