"""The command as a process: killed, interrupted, started twice, and searched for the key."""

import os
import signal
import time

import pytest
from distill_command import CANARY, lines_of, summary_of
from faulty_endpoint import Reply, explanation

from alphadrive.data.parquet import DrivingDataset

pytestmark = pytest.mark.e2e


def wait_for(condition, what, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.01)


def kept(data):
    path = data.parent / "out" / "answers.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def hold_after(number):
    """Answers the first `number` requests and leaves all others waiting, until told to go on."""
    state = {"holds": True}

    def behave(question):
        if state["holds"] and question.number >= number:
            return Reply(text="never sent", delay_s=600)
        return explanation(question)

    return behave, state


def test_killed_in_the_middle_pays_for_no_answer_twice(start_distill, make_data, serve):
    """kill -9 with seven answers on disk and three requests on the way; a torn line is left behind too."""
    data = make_data(20)
    behave, state = hold_after(7)
    endpoint = serve(behave)
    process = start_distill(data, endpoint, "--concurrency", "3")
    wait_for(lambda: kept(data) == 7 and len(endpoint.questions) == 10, "seven answers, three on the way")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    out = data.parent / "out"
    assert not list(out.glob("*.parquet"))
    with (out / "answers.jsonl").open("ab") as file:
        file.write(b'{"key": "12ab", "query_id": "query-')
    state["holds"] = False
    again = start_distill(data, endpoint, "--concurrency", "3")
    shown, _ = again.communicate(timeout=300)
    assert again.returncode == 0, shown
    assert "cut off an incomplete last line" in shown
    answered = [(question.prompt, question.image) for question in endpoint.answered]
    assert len(answered) == len(set(answered)) == 20
    assert len(endpoint.questions) == 20 + 3
    assert len(DrivingDataset(out)) == 20 and summary_of(data)["requests_sent"] == 13


def read_until(process, words):
    """Output up to the line that holds `words`; fails where the process ends without it."""
    seen = ""
    for line in process.stdout:
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"ended without {words!r}: {seen}")


def test_ctrl_c_waits_for_what_is_on_the_way_then_goes_on_later(start_distill, make_data, serve):
    data = make_data(12)
    state = {"holds": True}

    def behave(question):
        text = explanation(question).text
        return Reply(text=text, is_held=lambda: state["holds"] and question.number >= 4)

    endpoint = serve(behave)
    process = start_distill(data, endpoint, "--concurrency", "2")
    wait_for(lambda: len(endpoint.questions) == 6 and kept(data) == 4, "two requests on the way")
    process.send_signal(signal.SIGINT)
    read_until(process, "waiting for the answers on the way")
    state["holds"] = False
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in shown, shown
    assert "stopped by Ctrl-C" in shown
    assert kept(data) == len(endpoint.questions) == 6
    assert summary_of(data)["status"] == "interrupted"
    again = start_distill(data, endpoint)
    again.communicate(timeout=300)
    assert again.returncode == 0
    assert len(endpoint.questions) == 12 and len(DrivingDataset(data.parent / "out")) == 12


def test_second_ctrl_c_does_not_wait(start_distill, make_data, serve):
    behave, _ = hold_after(0)
    endpoint = serve(behave)
    process = start_distill(make_data(3), endpoint)
    wait_for(lambda: len(endpoint.questions) == 3, "three requests on the way")
    process.send_signal(signal.SIGINT)
    read_until(process, "waiting for the answers on the way")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in shown, shown


def test_two_at_once_on_one_folder_are_refused(start_distill, make_data, serve):
    data = make_data(3)
    behave, _ = hold_after(0)
    endpoint = serve(behave)
    start_distill(data, endpoint)
    wait_for(lambda: len(endpoint.questions) == 3, "the first one at work")
    second = start_distill(data, endpoint)
    wait_for(lambda: second.poll() is not None or len(endpoint.questions) > 3, "the second one's end")
    assert len(endpoint.questions) == 3
    shown, _ = second.communicate(timeout=300)
    assert second.returncode == 2 and "another process is distilling into this folder" in shown, shown


def test_key_is_in_no_file_and_no_output_whatever_the_server_sends(start_distill, make_data, serve, tmp_path):
    """The server hands the key back in an answer, an error, a broken reply and a refusal; logs in detail."""
    replies = [
        Reply(text=f"The key {CANARY} was sent, so keep the current speed on the wet road past the van."),
        Reply(status=500, body=f"trace: Authorization: Bearer {CANARY}"),
        Reply(body=f'{{"oops": "{CANARY}"'),
        Reply(text="cut " + CANARY, is_cut=True),
        Reply(status=400, body=f'{{"error": {{"message": "{CANARY}", "code": "{CANARY}"}}}}'),
    ]

    def behave(question):
        if question.number < len(replies):
            return replies[question.number]
        if question.number == 9:
            return Reply(status=401, body=f'{{"error": {{"message": "no: {CANARY}"}}}}')
        return explanation(question)

    data = make_data(20)
    endpoint = serve(behave)
    process = start_distill(data, endpoint, "--concurrency", "1", verbose=True)
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and CANARY not in shown
    assert "[key]" in shown and "Traceback" in shown
    assert {question.authorization for question in endpoint.questions} == {f"Bearer {CANARY}"}
    texts = [line["text"] for line in lines_of(data.parent / "out" / "answers.jsonl")]
    assert any("[key]" in text for text in texts)
