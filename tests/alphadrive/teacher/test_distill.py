"""`alphadrive distill` as a user runs it, against a server that fails in every way."""

import errno
import json
import shutil

import pytest
from distill_command import CANARY, distill_arguments, lines_of, summary_of
from faulty_endpoint import TOKENS, Reply, explanation

from alphadrive import cli
from alphadrive.data.parquet import DrivingDataset, write_records
from alphadrive.data.validate import problems_in
from alphadrive.teacher import folder

WRONG = Reply(text="A parked van hides the crossing in the dusk, so turn left and accelerate.")


def rows_of(folder):
    return list(DrivingDataset(folder).records())


def test_rows_are_explained_and_nothing_else_changes(distill, make_data, shown):
    data = make_data(6, teacher_plan="STOP, STRAIGHT")
    code, endpoint = distill(data, explanation)
    assert code == 0
    before, after = rows_of(data), rows_of(data.parent / "out")
    for old, new in zip(before, after, strict=True):
        assert new.reasoning.endswith("so keep the current speed and go straight.")
        assert (old.reasoning, new.teacher_plan) == (None, None)
        for name in ("query_id", "scene_id", "images", "speed_mps", "navigation", "plans", "source"):
            assert getattr(old, name) == getattr(new, name)
    assert problems_in(data.parent / "out") == []
    assert sorted(q.prompt.split("current speed is ")[1][:6] for q in endpoint.questions) == [
        f"1.{tenth}m/s" for tenth in range(6)
    ]
    summary = summary_of(data)
    assert (summary["status"], summary["acceptance"], summary["num_written"]) == ("complete", 1.0, 6)
    assert summary["answers_kept"] == summary["requests_sent"] == 6
    assert (summary["prompt_tokens"], summary["completion_tokens"]) == (6 * TOKENS[0], 6 * TOKENS[1])
    assert (data.parent / "out" / "rejected.jsonl").read_text() == ""
    text = shown()
    assert "out: 6 rows written, 6 explained and 0 kept" in text
    assert "4,200 prompt + 300 completion" in text
    assert "rows 6/6  accepted 100.0 %  tokens 4,500" in text


def test_same_command_again_asks_nothing_and_writes_the_same(distill, make_data):
    data = make_data(4)
    _, endpoint = distill(data, explanation)
    before = rows_of(data.parent / "out")
    code, _ = distill(data, endpoint)
    assert code == 0 and len(endpoint.questions) == 4
    assert rows_of(data.parent / "out") == before
    assert summary_of(data)["tokens_this_run"] == 0


def test_every_fault_on_the_way_costs_no_row(distill, make_data):
    faults = [
        Reply(status=429, body="{}", headers={"Retry-After": "0.05"}),
        Reply(status=500, body="boom"),
        Reply(text="late", delay_s=20),
        Reply(body='{"choices": [{"mess'),
        Reply(text="cut", is_cut=True),
        WRONG,
        Reply(text=""),
    ]

    def behave(question):
        return faults[question.number] if question.number < len(faults) else explanation(question)

    data = make_data(8)
    code, endpoint = distill(data, behave, "--request-timeout", "2", "--concurrency", "7")
    assert code == 0 and len(endpoint.questions) >= 8 + len(faults)
    assert len(rows_of(data.parent / "out")) == 8
    assert summary_of(data)["refused_answers"] == {"agreement": 1, "format": 1}


def test_refused_answers_are_asked_for_twice_more_with_the_reason(distill, make_data):
    """Row 0 never gets a good answer, row 1 at the third ask."""

    def behave(question):
        if "1.0m/s" in question.prompt:
            return WRONG
        if "1.1m/s" in question.prompt and question.prompt.count("; ") < 1:
            return Reply(text="Too short.")
        return explanation(question)

    data = make_data(5)
    code, endpoint = distill(data, behave, "--concurrency", "1")
    assert code == 0 and len(endpoint.questions) == 9
    (rejected,) = lines_of(data.parent / "out" / "rejected.jsonl")
    assert rejected == {
        "row": 0,
        "query_id": "query-0",
        "plan": "KEEP, STRAIGHT",
        "reason": "agreement",
        "problem": "it does not say 'keep the current speed'",
        "text": WRONG.text,
        "earlier_reasons": ["agreement", "agreement"],
    }
    assert [row.query_id for row in rows_of(data.parent / "out")] == [f"query-{n}" for n in range(1, 5)]
    summary = summary_of(data)
    assert summary["rejected_rows"] == {"agreement": 1}
    assert summary["refused_answers"] == {"agreement": 3, "length": 2}
    assert summary["acceptance"] == 0.8
    assert "it has 2 words, expected 8 to 100" in endpoint.questions[4].prompt


def test_a_dry_run_counts_and_asks_nothing(distill, make_data, shown):
    data = make_data(4)
    code, endpoint = distill(data, explanation, "--dry-run", "--check-visible")
    assert (code, endpoint.questions) == (0, [])
    said = shown()
    assert "would explain 4 of 4 rows" in said and "4 requests when every answer passes, 12 at most" in said
    assert "as many about what is visible" in said and "OPENAI_API_KEY is set" in said
    assert not (data.parent / "out").exists()


def test_under_half_accepted_is_an_error_and_no_dataset(distill, make_data, shown):
    data = make_data(4)
    code, endpoint = distill(data, lambda q: explanation(q) if "1.0m/s" in q.prompt else WRONG)
    assert code == 1
    message = shown()
    assert "1 of 4 rows passed the checks, expected at least 50 %; refused answers: agreement 9" in message
    out = data.parent / "out"
    assert not list(out.glob("*.parquet")) and len(lines_of(out / "rejected.jsonl")) == 3
    assert summary_of(data)["status"] == "low_acceptance"
    assert distill(data, endpoint)[0] == 1 and len(endpoint.questions) == 10


def test_half_accepted_is_enough(distill, make_data):
    data = make_data(4)
    code, _ = distill(
        data, lambda q: WRONG if "1.0m/s" in q.prompt or "1.1m/s" in q.prompt else explanation(q)
    )
    assert code == 0 and len(rows_of(data.parent / "out")) == 2


def test_bad_teacher_is_stopped_after_fifty_rows(distill, make_data):
    data = make_data(90)
    code, endpoint = distill(data, lambda question: WRONG, "--concurrency", "2")
    assert code == 1
    assert 150 <= len(endpoint.questions) <= 156
    assert len(lines_of(data.parent / "out" / "answers.jsonl")) == len(endpoint.answered)
    assert summary_of(data)["num_left"] >= 38


def test_cap_stops_cleanly_and_a_higher_one_goes_on(distill, make_data, shown):
    data = make_data(8)
    per_answer = sum(TOKENS)
    longest = ("--max-answer-tokens", str(TOKENS[1]))
    code, endpoint = distill(data, explanation, *longest, "--max-tokens-total", str(3 * per_answer + 10))
    assert code == 0 and len(endpoint.questions) == 3
    assert summary_of(data)["status"] == "capped" and summary_of(data)["num_left"] == 5
    assert len(rows_of(data.parent / "out")) == 3
    assert "a higher one goes on" in shown()
    code, _ = distill(data, endpoint, *longest, "--max-tokens-total", str(8 * per_answer))
    assert code == 0 and len(endpoint.questions) == 8
    assert summary_of(data)["status"] == "complete" and len(rows_of(data.parent / "out")) == 8


def test_cap_before_the_first_row_is_an_error(distill, make_data, shown):
    data = make_data(2)
    code, _ = distill(data, lambda question: WRONG, "--max-tokens-total", "1000")
    assert code == 1 and "is reached and no row has passed yet" in shown()


def test_row_without_an_answer_is_told_and_asked_again(distill, make_data):
    data = make_data(3)
    is_broken = True

    def behave(question):
        if is_broken and "1.1m/s" in question.prompt:
            return Reply(status=400, body='{"error": {"message": "policy"}}')
        return explanation(question)

    code, endpoint = distill(data, behave)
    assert code == 0 and summary_of(data)["status"] == "partial"
    (line,) = lines_of(data.parent / "out" / "rejected.jsonl")
    assert line == {
        "row": 1,
        "query_id": "query-1",
        "reason": "unanswered",
        "problem": "HTTP 400: policy",
    }
    assert len(rows_of(data.parent / "out")) == 2
    is_broken = False
    assert distill(data, endpoint)[0] == 0
    assert len(endpoint.questions) == 4 and len(rows_of(data.parent / "out")) == 3


def test_refused_key_stops_at_once_without_showing_it(distill, make_data, shown):
    data = make_data(30)
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {CANARY}"}})
    code, endpoint = distill(data, lambda question: Reply(status=401, body=body), "--concurrency", "4")
    assert code == 1 and len(endpoint.questions) <= 4
    message = shown()
    assert "the key in OPENAI_API_KEY is not accepted" in message and "Traceback" not in message
    assert summary_of(data)["status"] == "failed"


def test_refused_key_keeps_what_was_on_the_way(distill, make_data):
    """The second request is refused while the first is being answered: that answer was paid for."""

    def behave(question):
        if question.number == 0:
            return Reply(text=explanation(question).text, delay_s=0.5)
        return Reply(status=401, body="{}")

    data = make_data(10)
    code, endpoint = distill(data, behave, "--concurrency", "2")
    assert code == 1
    assert len(lines_of(data.parent / "out" / "answers.jsonl")) == len(endpoint.answered) == 1


def test_rows_with_reasoning_are_kept_unless_told_otherwise(distill, make_record, tmp_path):
    reasonings = [None, "Written by somebody.", None]
    records = [make_record(index, reasoning=text) for index, text in enumerate(reasonings)]
    write_records(records, tmp_path / "data")
    code, endpoint = distill(tmp_path / "data", explanation)
    assert code == 0 and len(endpoint.questions) == 2
    out = rows_of(tmp_path / "out")
    assert [row.query_id for row in out] == ["query-0", "query-1", "query-2"]
    assert out[1] == records[1] and summary_of(tmp_path / "data")["num_kept"] == 1
    code, _ = distill(tmp_path / "data", endpoint, "--replace")
    assert code == 0 and len(endpoint.questions) == 3
    assert rows_of(tmp_path / "out")[1].reasoning.startswith("A crossing")


def test_second_pass_refuses_what_is_not_visible(distill, make_data):
    """Row 0 is asked three times about what is not there, the two others once."""
    data = make_data(3)
    _, endpoint = distill(data, explanation, "--num-rows", "1")
    image = endpoint.questions[0].image
    shutil.rmtree(data.parent / "out")

    def behave(question):
        if question.is_about_visibility and question.image == image:
            return Reply(text="crossing: yes\nparked van: no")
        if "Earlier answers were refused" in question.prompt:
            text = explanation(question).text
            return Reply(text=text.replace("daylight", f"daylight number {len(question.prompt)}"))
        return explanation(question)

    code, endpoint = distill(data, behave, "--check-visible", "--concurrency", "1")
    assert code == 0
    (rejected,) = lines_of(data.parent / "out" / "rejected.jsonl")
    assert (rejected["row"], rejected["reason"]) == (0, "visible")
    assert rejected["problem"] == "it names what is not visible: parked van"
    assert len(rows_of(data.parent / "out")) == 2
    assert sum(question.is_about_visibility for question in endpoint.questions) == 3 + 2


def test_unreadable_visibility_replies_do_not_pass(distill, make_data):
    def behave(question):
        return Reply(text="Sure!") if question.is_about_visibility else explanation(question)

    data = make_data(1)
    code, _ = distill(data, behave, "--check-visible")
    assert code == 1
    (rejected,) = lines_of(data.parent / "out" / "rejected.jsonl")
    assert rejected["reason"] == "visible" and "could not be found out" in rejected["problem"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--concurrency 0", "--concurrency 0: expected 1 or more"),
        ("--max-tokens-total -5", "--max-tokens-total -5: expected 1 or more"),
        ("--num-rows 0", "--num-rows 0: expected 1 or more"),
        ("--request-timeout nan", "--request-timeout nan: expected"),
        ("--base-url ftp://x", "--base-url: expected http"),
        ("--base-url http://", "--base-url: expected http"),
        (f"--base-url https://me:{CANARY}@host/v1", "--base-url: has a user"),
        (f"--base-url https://host/v1?key={CANARY}", "--base-url: has a user"),
        ("--api-key-env NO_SUCH_VARIABLE", "--api-key-env NO_SUCH_VARIABLE: the environment has no"),
        ("--model=", "--model: got an empty name"),
    ],
    ids=lambda text: text.split()[0],
)
def test_wrong_options_are_refused_before_anything_is_sent(make_data, serve, shown, options, message):
    data, endpoint = make_data(1), serve()
    assert cli.run([*distill_arguments(data, endpoint), *options.split()]) == 2
    assert message in shown()
    assert not endpoint.questions and not (data.parent / "out").exists()


def test_wrong_data_is_refused_before_anything_is_sent(make_record, distill, tmp_path, shown):
    write_records([make_record(0, reasoning=None, speed_mps=300.0)], tmp_path / "data")
    code, endpoint = distill(tmp_path / "data", explanation)
    assert code == 2 and "row 0: speed_mps: got 300" in shown()
    assert not endpoint.questions and not (tmp_path / "out").exists()
    write_records([make_record(0)], tmp_path / "explained")
    assert distill(tmp_path / "explained", endpoint)[0] == 2
    assert "every row has a reasoning already" in shown()
    assert cli.run([*distill_arguments(tmp_path / "data", endpoint), "--out", str(tmp_path / "data")]) == 2


def test_datasets_of_others_are_not_replaced(distill, make_data, make_record, shown):
    data = make_data(2)
    out = data.parent / "out"
    write_records([make_record(0)], out)
    code, endpoint = distill(data, explanation)
    assert code == 2 and "that `alphadrive distill` did not write" in shown()
    assert len(rows_of(out)) == 1 and not endpoint.questions
    shutil.rmtree(out)
    assert distill(data, endpoint)[0] == 0
    other = make_data(3, name="other")
    assert distill(other, endpoint)[0] == 2
    assert f"distilled from {data.resolve()}; choose another --out" in shown()
    assert len(rows_of(out)) == 2


def test_folder_that_cannot_be_written_is_one_message(distill, make_data, shown):
    data = make_data(1)
    (data.parent / "out").write_text("a file")
    code, endpoint = distill(data, explanation)
    assert code == 2 and "cannot write the folder" in shown()
    assert not endpoint.questions


def test_full_disk_at_the_end_costs_no_answer(distill, make_data, shown, monkeypatch):
    data = make_data(2)

    def no_space(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(folder, "write_records", no_space)
        code, endpoint = distill(data, explanation)
    assert code == 2 and "No space left on device; make room and run the same command again" in shown()
    assert distill(data, endpoint)[0] == 0
    assert len(endpoint.questions) == 2 and len(rows_of(data.parent / "out")) == 2
