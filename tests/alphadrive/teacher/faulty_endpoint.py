"""A small OpenAI-compatible server that explains any decision, or fails in whatever way a test asks for.

By hand, to rehearse `alphadrive distill` without an account:

    python tests/alphadrive/teacher/faulty_endpoint.py --port 8001
"""

import argparse
import asyncio
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web

TOKENS = (700, 50)
"""Prompt and completion tokens that each answer reports."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a request asked. `number` counts requests from 0, `visit` those with the same content."""

    number: int
    visit: int
    model: str
    prompt: str
    image: str
    authorization: str

    @property
    def decision(self) -> str:
        found = re.search(r"is known: (.*?)\. Explain", self.prompt)
        assert found is not None, self.prompt
        return found[1]

    @property
    def is_about_visibility(self) -> bool:
        return "Here is a remark" in self.prompt


@dataclass(frozen=True, kw_only=True)
class Reply:
    """`body` replaces a whole reply, `is_cut` drops the connection in the middle of it. The reply is held
    back for `delay_s` and for as long as `is_held` says so."""

    text: str = ""
    status: int = 200
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    is_held: Callable[[], bool] = lambda: False
    finish_reason: str = "stop"
    is_cut: bool = False
    has_usage: bool = True


Behaviour = Callable[[Question], Reply]


def explanation(question: Question) -> Reply:
    """A right answer to either question."""
    if question.is_about_visibility:
        return Reply(text="crossing: yes\nparked van: yes")
    return Reply(text=f"A crossing lies beyond a parked van in daylight, so {question.decision}.")


class FaultyEndpoint:
    """Serves on a port of this machine, in a thread of its own. Use as a context manager."""

    def __init__(self, behave: Behaviour = explanation, port: int = 0) -> None:
        self.behave = behave
        self.questions: list[Question] = []
        self.answered: list[Question] = []
        """Those whose reply was a 200 and was sent in full."""
        self.most_at_once = 0
        self._at_once = 0
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(20)
        return self

    def __exit__(self, *exc_info: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)

    async def _start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        question = self._question(await request.json(), request.headers.get("Authorization", ""))
        self.questions.append(question)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            reply = self.behave(question)
            await asyncio.sleep(reply.delay_s)
            while reply.is_held():
                await asyncio.sleep(0.01)
            body = reply.body if reply.body is not None else json.dumps(_completion(question, reply))
            if reply.is_cut:
                cut = web.StreamResponse(headers={"Content-Length": str(len(body) + 1000)})
                await cut.prepare(request)
                await cut.write(body.encode())
                assert request.transport is not None
                request.transport.close()
                return cut
            whole = web.Response(
                body=body.encode(errors="surrogateescape"),
                status=reply.status,
                headers=reply.headers,
                content_type="application/json",
            )
            await whole.prepare(request)
            await whole.write_eof()
            if reply.status == 200 and reply.body is None:
                self.answered.append(question)
            return whole
        finally:
            self._at_once -= 1

    def _question(self, body: dict, authorization: str) -> Question:
        (message,) = body["messages"]
        image, text = message["content"]
        same = (text["text"], image["image_url"]["url"], body["model"])
        return Question(
            number=len(self.questions),
            visit=sum((q.prompt, q.image, q.model) == same for q in self.questions),
            model=body["model"],
            prompt=text["text"],
            image=image["image_url"]["url"],
            authorization=authorization,
        )


def _completion(question: Question, reply: Reply) -> dict:
    message = {"role": "assistant", "content": reply.text}
    completion = {
        "id": f"reply-{question.number}",
        "object": "chat.completion",
        "created": 0,
        "model": question.model,
        "choices": [{"index": 0, "message": message, "finish_reason": reply.finish_reason}],
    }
    if reply.has_usage:
        prompt, answer = TOKENS
        completion["usage"] = {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
        }
    return completion


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8001)
    with FaultyEndpoint(port=parser.parse_args().port) as endpoint:
        print(f"answering on {endpoint.url}")
        threading.Event().wait()
