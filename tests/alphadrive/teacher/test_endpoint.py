"""One request against a server that fails in every way: what is tried again, and what ends the run."""

import asyncio
import email.utils
import logging
import time

import pytest
from distill_command import CANARY
from faulty_endpoint import Reply

from alphadrive.errors import ConfigError, TeacherError
from alphadrive.teacher.answer_cache import AnswerCache
from alphadrive.teacher.api_key import ApiKey
from alphadrive.teacher.endpoint import MAX_ATTEMPTS, MAX_UNANSWERED_IN_A_ROW, Endpoint, UnansweredError
from alphadrive.teacher.failures import retry_after_s
from alphadrive.teacher.request import TeacherRequest
from alphadrive.teacher.settings import DistillSettings
from alphadrive.teacher.stopping import StoppedError, StopSignal

GOOD = Reply(text="The road is clear.")


class Asked:
    """What came of some requests: answers or errors in order, and what was said and kept."""

    def __init__(self, results, stop, said, cache):
        self.results, self.stop, self.said, self.cache = results, stop, said, cache


@pytest.fixture
def ask(serve, tmp_path, picture):
    """Send a request for each prompt, all at once or `one_by_one`, to a server that behaves as told."""

    def ask(behave, *prompts, one_by_one=False, **changes):
        server = serve(behave)

        async def main():
            settings = DistillSettings(
                data=tmp_path / "data", out=tmp_path, model="m", base_url=server.url, **changes
            )
            cache, stop, said = AnswerCache(tmp_path / "answers.jsonl"), StopSignal(), []
            key = ApiKey.from_environment(None)
            async with Endpoint(settings, key, cache, stop, said.append, backoff_s=0.01) as endpoint:

                async def one(prompt):
                    request = TeacherRequest(
                        query_id="q", model="m", prompt=prompt, image=picture(), max_answer_tokens=50
                    )
                    try:
                        return await endpoint.answer(request)
                    except (UnansweredError, StoppedError) as error:
                        return error

                if one_by_one:
                    results = [await one(prompt) for prompt in prompts]
                else:
                    results = await asyncio.gather(*(one(prompt) for prompt in prompts))
            cache.close()
            return Asked(results, stop, said, cache)

        return asyncio.run(main()), server

    return ask


def first_then_good(first, times=1):
    return lambda question: first if question.number < times else GOOD


@pytest.mark.parametrize(
    "failure",
    [
        Reply(status=500, body='{"error": {"message": "boom"}}'),
        Reply(status=503, body="<html>down</html>"),
        Reply(status=408, body=""),
        Reply(status=429, body='{"error": {"message": "slow"}}'),
        Reply(body='{"id": "x", "choices": [{"mess'),
        Reply(body='{"id": "x", "choices": []}'),
        Reply(body='{"choices": [{"message": {"content": 7}}]}'),
        Reply(body='{"id": "\udcff"}'),
        Reply(body="null"),
        Reply(body="[]"),
        Reply(text="cut", is_cut=True),
        Reply(text="late", delay_s=30),
    ],
    ids=lambda reply: ascii(f"{reply.status} {(reply.body or reply.text)[:20]}"),
)
def test_failure_that_may_pass_is_tried_again(ask, failure):
    timeout_s = 1 if failure.delay_s else 60
    asked, server = ask(first_then_good(failure, 2), "why?", request_timeout_s=timeout_s)
    assert asked.results[0].text == GOOD.text
    # A busy machine may be late once more.
    assert len(server.questions) == 3 or (failure.delay_s and len(server.questions) > 3)
    assert len(asked.cache) == 1
    assert not asked.stop.is_set


def test_six_attempts_then_none(ask):
    asked, server = ask(lambda question: Reply(status=500, body=f"oops {CANARY}"), "why?")
    assert isinstance(asked.results[0], UnansweredError)
    assert len(server.questions) == MAX_ATTEMPTS == 6
    assert "HTTP 500" in str(asked.results[0]) and "oops [key]" in str(asked.results[0])
    assert len(asked.cache) == 0


def test_request_the_server_refuses_is_not_sent_again(ask):
    reply = Reply(status=400, body='{"error": {"message": "image too large"}}')
    asked, server = ask(lambda question: reply, "why?")
    assert isinstance(asked.results[0], UnansweredError) and "image too large" in str(asked.results[0])
    assert len(server.questions) == 1 and not asked.stop.is_set


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, f'{{"error": {{"message": "wrong key {CANARY}"}}}}', "OPENAI_API_KEY is not accepted"),
        (402, "{}", "no credit left"),
        (403, "{}", "may not do this"),
        (404, '{"error": {"message": "no model m"}}', "check --base-url"),
        (429, '{"error": {"message": "pay", "code": "insufficient_quota"}}', "no credit left"),
    ],
)
def test_failure_that_will_not_pass_ends_the_run_at_once(ask, status, body, words):
    asked, server = ask(lambda question: Reply(status=status, body=body), "a", "b", "c", one_by_one=True)
    assert len(server.questions) == 1
    assert all(isinstance(result, StoppedError) for result in asked.results)
    assert isinstance(asked.stop.error, TeacherError)
    assert words in str(asked.stop.error) and CANARY not in str(asked.stop.error)


def test_without_a_key_the_message_says_so(ask, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    asked, server = ask(lambda question: Reply(status=401, body="{}"), "why?")
    assert "asks for a key: set OPENAI_API_KEY" in str(asked.stop.error)
    assert server.questions[0].authorization == "Bearer none"


def test_retry_after_holds_every_worker_and_halves_them(ask):
    """Four at once; the first is told to wait a second: nobody sends anything in that second."""
    arrivals = []

    def behave(question):
        arrivals.append(time.monotonic())
        if question.number == 0:
            return Reply(status=429, body="{}", headers={"Retry-After": "1"})
        return Reply(text="Fine.", delay_s=0.02)

    asked, server = ask(behave, *"abcdefghijkl", concurrency=4)
    assert all(result.text == "Fine." for result in asked.results)
    before = [moment for moment in arrivals if moment < arrivals[0] + 0.99]
    assert len(before) <= 4
    assert len(asked.said) == 1 and "all requests wait 1.0 s, then at most 2 at once" in asked.said[0]
    assert len(server.questions) == 13


def test_wait_longer_than_anyone_would_is_an_error(ask):
    reply = Reply(status=429, body="{}", headers={"Retry-After": "3600"})
    asked, server = ask(lambda question: reply, "why?")
    assert "asks to wait 3600 s; run the same command again then" in str(asked.stop.error)
    assert len(server.questions) == 1


def test_outage_ends_the_run(ask):
    prompts = [str(number) for number in range(MAX_UNANSWERED_IN_A_ROW + 5)]
    asked, server = ask(lambda question: Reply(status=400, body="{}"), *prompts, one_by_one=True)
    assert len(server.questions) == MAX_UNANSWERED_IN_A_ROW
    assert "8 requests in a row got no answer" in str(asked.stop.error)
    assert "run the same command again" in str(asked.stop.error)


def test_one_answer_in_between_is_no_outage(ask):
    def behave(question):
        return GOOD if question.number % 5 == 4 else Reply(status=400, body="{}")

    asked, _ = ask(behave, *(str(number) for number in range(20)), one_by_one=True)
    assert not asked.stop.is_set


def test_same_question_at_once_is_paid_for_once(ask):
    asked, server = ask(lambda question: Reply(text="Fine.", delay_s=0.05), *["why?"] * 5)
    assert [result.text for result in asked.results] == ["Fine."] * 5
    assert len(server.questions) == 1


def test_concurrency_is_bounded(ask):
    _, server = ask(lambda question: Reply(text="Fine.", delay_s=0.2), *"abcdefg", concurrency=3)
    assert server.most_at_once == 3


def test_cap_without_reported_tokens_is_refused_but_the_answer_kept(ask):
    asked, _ = ask(lambda question: Reply(text="Fine.", has_usage=False), "a", max_tokens_total=1000)
    assert "reports no token counts" in str(asked.stop.error)
    assert len(asked.cache) == 1
    asked, _ = ask(lambda question: Reply(text="Fine.", has_usage=False), "b")
    assert asked.results[0].prompt_tokens is None


def test_answer_that_holds_the_key_loses_it(ask):
    asked, server = ask(lambda question: Reply(text=f"Your key is {CANARY}."), "why?")
    assert asked.results[0].text == "Your key is [key]."
    assert server.questions[0].authorization == f"Bearer {CANARY}"


def test_detailed_logs_hold_nothing_of_the_requests(ask, caplog):
    with caplog.at_level(logging.DEBUG):
        for name in ("openai", "httpx2", "httpcore2"):
            logging.getLogger(name).setLevel(logging.DEBUG)
        ask(first_then_good(Reply(status=500, body="{}")), "why?")
    assert CANARY not in caplog.text and "base64" not in caplog.text
    assert [r for r in caplog.records if r.name.startswith(("openai", "httpx2", "httpcore2"))] == []


@pytest.mark.parametrize("value", [f"{CANARY} x", f"{CANARY}\nx", f"{CANARY}é", f'{CANARY}"'])
def test_key_that_fits_no_header_is_refused_without_quoting_it(monkeypatch, value):
    monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(ConfigError, match="MY_KEY: the key has spaces") as refused:
        ApiKey.from_environment("MY_KEY")
    assert CANARY not in str(refused.value)


def test_key_shows_itself_nowhere(monkeypatch):
    key = ApiKey.from_environment(None)
    assert CANARY not in f"{key} {key!r} {vars(key).keys()}" and key
    with pytest.raises(ConfigError, match="NO_SUCH: the environment has no such variable"):
        ApiKey.from_environment("NO_SUCH")
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    assert ApiKey.from_environment(None).redact("EMPTY road") == "EMPTY road"


def test_retry_after_in_its_three_forms():
    assert retry_after_s({"retry-after": "7"}) == 7
    assert retry_after_s({"retry-after-ms": "1500", "retry-after": "7"}) == 1.5
    assert 50 < retry_after_s({"retry-after": email.utils.formatdate(time.time() + 60, usegmt=True)}) <= 60
    assert retry_after_s({"retry-after": email.utils.formatdate(time.time() - 60, usegmt=True)}) == 0
    for value in ("soon", "", "inf", "nan"):
        assert retry_after_s({"retry-after": value}) is None
    assert retry_after_s({}) is None
