"""The judge against a small server on this machine that answers, refuses, stalls and talks too much."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from reward_groups import completions_of, group_of, query_of

from alphadrive.config import RewardConfig
from alphadrive.errors import ConfigError, RewardError
from rewards import score_group
from rewards.further import load_terms
from rewards.judge import read_number

CANARY = "sk-canary-7f3a"
KEY_NAME = "JUDGE_KEY_OF_THE_TEST"


class FaultyServer(ThreadingHTTPServer):
    """Answers by what the judged text asks for: `say WORDS`, `status N`, `wait`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests, self.keys = [], set()
        self.failures_left = 0


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.requests.append(body)
        server.keys.add(self.headers["Authorization"])
        asked = body["messages"][1]["content"].split("BEGIN\n")[1].split("\nEND")[0]
        if server.failures_left:
            server.failures_left -= 1
            return self._send(500, {"error": {"message": "try again"}})
        if asked.startswith("status "):
            status = int(asked.split()[1])
            return self._send(status, {"error": {"message": f"no, {self.headers['Authorization']}"}})
        if asked == "wait":
            time.sleep(3)
        message = {"role": "assistant", "content": asked.removeprefix("say ")}
        choices = [] if asked == "nothing" else [{"index": 0, "message": message, "finish_reason": "stop"}]
        return self._send(200, {"id": "1", "object": "chat.completion", "model": "m", "choices": choices})

    def _send(self, status, content):
        data = json.dumps(content).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except BrokenPipeError:
            pass

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with FaultyServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def judge_of(server, **more):
    values = {
        "judge_api_key_env": KEY_NAME,
        "judge_timeout_s": 20.0,
        "judge_retries": 0,
    } | more
    config = RewardConfig(
        weights={"judge": 0.5},
        judge_url=f"http://127.0.0.1:{server.server_port}/v1",
        judge_model="m",
        **values,
    )
    return load_terms(config, ".")


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv(KEY_NAME, CANARY)


def test_every_completion_gets_its_own_number_in_order(server):
    texts = [f"say 0.{digit}" for digit in range(8)] + ["say 1", "say  1.0 "]
    rewards = score_group(group_of(texts), further=judge_of(server)).rewards
    assert [reward.terms["judge"] for reward in rewards] == pytest.approx(
        [*(0.05 * digit for digit in range(8)), 0.5, 0.5]
    )
    assert len(server.requests) == 10
    assert server.keys == {f"Bearer {CANARY}"}
    question = server.requests[0]["messages"][1]["content"]
    assert "5.0 m/s" in question and "go straight" in question and "ACCELERATE, STRAIGHT" in question


@pytest.mark.parametrize(
    "text",
    [
        "say good",
        "say 0.8 of 1",
        "say 1.5",
        "say -0.2",
        "say",
        "say nan",
        "say 1e-3",
        "nothing",
        "say 80%",
        "say .5",
    ],
)
def test_a_reply_that_is_no_number_from_0_to_1_is_an_error_and_never_a_zero(server, text):
    with pytest.raises(RewardError, match=r"query q0: reward term 'judge': the judge replied .*expected one"):
        score_group(group_of(["say 0.5", text]), further=judge_of(server))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("status 500", "InternalServerError"),
        ("status 429", "RateLimitError"),
        ("status 401", "AuthenticationError"),
    ],
)
def test_a_refusal_is_an_error_without_the_key_in_it(server, text, name):
    with pytest.raises(RewardError, match=name) as caught:
        score_group(group_of([text, "say 1"]), further=judge_of(server))
    assert CANARY not in str(caught.value)
    assert "***" in str(caught.value)


def test_a_stall_is_an_error_within_the_timeout(server):
    with pytest.raises(RewardError, match="APITimeoutError"):
        score_group(group_of(["wait", "say 1"]), further=judge_of(server, judge_timeout_s=0.5))


def test_one_failure_is_retried_as_often_as_the_configuration_says(server):
    server.failures_left = 1
    (term,) = judge_of(server, judge_retries=1)
    assert list(term.function(query_of(), completions_of(["say 0.25"]))) == [0.25]
    assert len(server.requests) == 2
    server.failures_left = 2
    with pytest.raises(RewardError, match="InternalServerError"):
        term.function(query_of(), completions_of(["say 0.25"]))
    assert len(server.requests) == 4


def test_a_missing_key_is_found_before_anything_is_asked(server, monkeypatch):
    monkeypatch.delenv(KEY_NAME)
    with pytest.raises(ConfigError, match=rf"rewards\.judge_api_key_env={KEY_NAME}: the environment"):
        judge_of(server)
    assert server.requests == []


def test_an_endpoint_without_a_key_never_gets_one_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    score_group(group_of(["say 1", "say 0"]), further=judge_of(server, judge_api_key_env=None))
    assert server.keys == {"Bearer none"}


@pytest.mark.parametrize(("reply", "value"), [("0", 0.0), ("1", 1.0), ("0.25", 0.25), (" 1.0\n", 1.0)])
def test_numbers_that_are_read(reply, value):
    assert read_number(reply) == value
