"""What went wrong with one request, told from the client's exceptions, and what that calls for.

Retry       try again: no answer in time, no connection, 408, 409, 429, 5xx, a reply that is no answer
Refused     this request will never be answered: 400, 413, 422 and the like
Fatal       none will: 401, 402, 403, 404, no credit left
"""

import email.utils
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import openai

from alphadrive.teacher.api_key import ApiKey

_MESSAGE_CHARS = 300
_TRY_AGAIN = (408, 409, 425, 429)
_ADVICE = {
    401: "the key in {variable} is not accepted: set the right one",
    402: "the account has no credit left",
    403: "the key in {variable} may not do this: check what it is allowed, and --model",
    404: "no such address or model: check --base-url (it usually ends in /v1) and --model",
}
_NO_KEY = "it asks for a key: set {variable}, or name another variable with --api-key-env"
_NO_CREDIT = "insufficient_quota"


class InvalidReplyError(Exception):
    """The server said 200 and sent no chat completion."""


@dataclass(frozen=True, slots=True)
class Retry:
    """`retry_after_s` is what the server asked for; `is_rate_limit` means that all requests are meant."""

    problem: str
    retry_after_s: float | None = None
    is_rate_limit: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    problem: str


@dataclass(frozen=True, slots=True)
class Fatal:
    problem: str


FAILURES = (
    openai.APIError,
    TimeoutError,
    json.JSONDecodeError,
    UnicodeDecodeError,
    InvalidReplyError,
)
"""What a request can raise."""


def failure_of(error: Exception, key: ApiKey) -> Retry | Refused | Fatal:
    """What one of FAILURES calls for. Problems are short, one line, and free of the key."""
    if isinstance(error, openai.APIStatusError):
        return _status_failure(error, key)
    if isinstance(error, (TimeoutError, openai.APITimeoutError)):
        return Retry("no answer in time")
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__
        return Retry(_short(f"no connection ({type(cause).__name__}: {cause})", key))
    return Retry(_short(f"the reply is no chat completion ({type(error).__name__}: {error})", key))


def _status_failure(error: openai.APIStatusError, key: ApiKey) -> Retry | Refused | Fatal:
    status = error.status_code
    problem = _short(f"HTTP {status}: {_message(error)}", key)
    if status in _ADVICE:
        advice = _NO_KEY if status == 401 and not key else _ADVICE[status]
        return Fatal(f"{advice.format(variable=key.variable)} ({problem})")
    if status == 429 and error.code == _NO_CREDIT:
        return Fatal(f"{_ADVICE[402]} ({problem})")
    if status in _TRY_AGAIN or status >= 500:
        wait_s = retry_after_s(error.response.headers)
        return Retry(problem, wait_s, is_rate_limit=status == 429 or wait_s is not None)
    return Refused(problem)


def _message(error: openai.APIStatusError) -> str:
    """What the server says, in the usual place of a JSON body or as the body itself."""
    found = error.body.get("message") if isinstance(error.body, dict) else error.body
    return found if isinstance(found, str) and found.strip() else error.message


def _short(text: str, key: ApiKey) -> str:
    """Redacted before it is cut, so that no part of a key is left at the end."""
    return " ".join(key.redact(text).split())[:_MESSAGE_CHARS]


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The seconds that `Retry-After` (a number or a date) or `Retry-After-Ms` asks for; None without."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit_s
        except (KeyError, ValueError):
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        date = email.utils.parsedate_to_datetime(headers["retry-after"])
    except (KeyError, TypeError, ValueError):
        return None
    return max(0.0, date.timestamp() - time.time())
