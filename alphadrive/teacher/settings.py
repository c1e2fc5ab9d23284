"""What `alphadrive distill` is asked to do: its options, checked, and the rows' limits that are fixed."""

import math
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from alphadrive.errors import ConfigError

DEFAULT_BASE_URL = "https://api.openai.com/v1"
DEFAULT_CONCURRENCY = 8
DEFAULT_MAX_ANSWER_TOKENS = 300
DEFAULT_REQUEST_TIMEOUT_S = 60.0
REJECTED_FILE = "rejected.jsonl"
MAX_ASKS = 3
"""One question a row and two more where an answer is refused."""
MIN_ACCEPTANCE = 0.5
MIN_JUDGED_ROWS = 50
"""Judged rows before a low acceptance stops a run: of a teacher that passes in 70 % of all rows, fewer
than half of 50 pass once in a thousand times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSettings:
    """The options of one run. `max_tokens_total` counts prompt and completion tokens of all runs on `out`.

    Raises ConfigError for a value that makes no sense.
    """

    data: Path
    out: Path
    model: str
    base_url: str = DEFAULT_BASE_URL
    concurrency: int = DEFAULT_CONCURRENCY
    max_tokens_total: int | None = None
    max_answer_tokens: int = DEFAULT_MAX_ANSWER_TOKENS
    request_timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S
    num_rows: int | None = None
    replace: bool = False
    check_visible: bool = False

    def __post_init__(self) -> None:
        for option, count in (
            ("--concurrency", self.concurrency),
            ("--max-tokens-total", self.max_tokens_total),
            ("--max-answer-tokens", self.max_answer_tokens),
            ("--num-rows", self.num_rows),
        ):
            if count is not None and count < 1:
                raise ConfigError(f"{option} {count}: expected 1 or more")
        if not (math.isfinite(self.request_timeout_s) and self.request_timeout_s > 0):
            raise ConfigError(
                f"--request-timeout {self.request_timeout_s:g}: expected a number of seconds above 0"
            )
        if not self.model.strip():
            raise ConfigError("--model: got an empty name, expected one that the endpoint serves")
        _check_url(self.base_url)
        if self.out.resolve() == self.data.resolve():
            raise ConfigError(f"--out {self.out}: is the dataset itself; choose another folder")

    @property
    def is_open_to_listeners(self) -> bool:
        """Whether what is sent can be read on the way: plain HTTP to another machine."""
        parts = urlsplit(self.base_url)
        return parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1")


def _check_url(url: str) -> None:
    """Secrets in a URL would end up in logs and files, so none is taken; the URL is not repeated then."""
    try:
        parts = urlsplit(url)
        has_host = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        has_host = False
    if not has_host:
        raise ConfigError(
            "--base-url: expected http://HOST:PORT/v1 or https://HOST/v1, the address that "
            "/chat/completions is appended to"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            "--base-url: has a user, a password, a query or a fragment in it; expected the bare address, "
            "and the key in the environment (--api-key-env)"
        )
