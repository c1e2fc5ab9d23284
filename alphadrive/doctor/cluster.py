"""Checks of the Ray that a run would join: its token, and whether it answers."""

import os
import socket
import stat
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from alphadrive.doctor.check import Check, Status
from alphadrive.doctor.child import ChildError, ask

CONNECT_TIMEOUT_S = 3.0
ANSWER_TIMEOUT_S = 10.0
_DEFAULT_PORTS = {"": 6379, "ray": 10001, "http": 80, "https": 443}
_TOKEN_REMEDY = (
    "give this user the cluster's token: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token "
    "(mode 600), with RAY_AUTH_MODE=token"
)


def token_file() -> Path:
    """The file that Ray takes a token from, where no variable holds it."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def check_token() -> Check:
    """Where Ray would take its token from, and that nobody else reads it. The token itself is not shown."""
    name, file = "Ray token", token_file()
    if "RAY_AUTH_TOKEN" in os.environ:
        return Check(name=name, status=Status.OK, found="in RAY_AUTH_TOKEN")
    if not file.is_file():
        missing = "RAY_AUTH_TOKEN_PATH" in os.environ or os.environ.get("RAY_AUTH_MODE") == "token"
        if missing:
            found, remedy = f"{file} is missing", f"`ray get-auth-token --generate`, or {_TOKEN_REMEDY}"
            return Check(name=name, status=Status.FAIL, found=found, expected="a token", remedy=remedy)
        return Check(name=name, status=Status.ABSENT, found="none; a local Ray makes one at its first start")
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        found, remedy = f"{file}, which others may read", f"`chmod 600 {file}`: it lets anybody run code"
        return Check(name=name, status=Status.FAIL, found=found, expected="mode 600", remedy=remedy)
    return Check(name=name, status=Status.OK, found=f"in {file}", expected="mode 600")


def check_ray(address: str | None, timeout_s: float = ANSWER_TIMEOUT_S) -> Check:
    """Whether the Ray at an address answers this user: its own port, `ray://`, or `http://` for jobs."""
    name, expected = "Ray", "an answer within 10 s"
    if not address:
        found = "no address given and no RAY_ADDRESS: a run starts a Ray of its own"
        return Check(name=name, status=Status.ABSENT, found=found)
    if address in ("auto", "local"):
        found = f"RAY_ADDRESS={address}: found when a run starts"
        return Check(name=name, status=Status.ABSENT, found=found)
    if problem := _connect_problem(address):
        remedy = (
            "is the head up (`ray status` there), is this its address (6379 Ray, 10001 clients, 8265 jobs), "
            "does a firewall stand between?"
        )
        found = f"nothing answers at {address}: {problem}"
        return Check(name=name, status=Status.FAIL, found=found, expected=expected, remedy=remedy)
    if address.startswith("http"):
        return _check_jobs(name, expected, address, timeout_s)
    try:
        answer = ask("cluster.reachability", [address], timeout_s)
    except ChildError as error:
        remedy = (
            _TOKEN_REMEDY if "token" in str(error) else "look into the head's /tmp/ray/session_latest/logs"
        )
        found = f"{address}: {error}"
        return Check(name=name, status=Status.FAIL, found=found, expected=expected, remedy=remedy)
    if problem := answer.get("problem"):
        remedy = answer.get("remedy") or _TOKEN_REMEDY
        found = f"{address}: {problem}"
        return Check(name=name, status=Status.FAIL, found=found, expected=expected, remedy=remedy)
    return Check(name=name, status=Status.OK, found=f"{address}: {answer['found']}", expected=expected)


def _connect_problem(address: str) -> str | None:
    """Why no connection can be made; Ray itself tries for half a minute without a word."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError as error:
        return str(error)
    if parts.hostname is None or port is None:
        return "expected host:port, ray://host:port or http://host:port"
    try:
        socket.create_connection((parts.hostname, port), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _check_jobs(name: str, expected: str, address: str, timeout_s: float) -> Check:
    """The port that jobs are submitted to."""
    request = urllib.request.Request(f"{address.rstrip('/')}/api/version")
    if token := _token():
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:
            found = f"{address} takes jobs: {reply.read(300).decode(errors='replace').strip()}"
        return Check(name=name, status=Status.OK, found=found, expected=expected)
    except urllib.error.HTTPError as error:
        refused = error.code in (401, 403)
        found = f"{address}: HTTP {error.code} {error.reason}" + (", it asks for a token" if refused else "")
        remedy = _TOKEN_REMEDY if refused else "is this the address of Ray's dashboard (port 8265)?"
    except (OSError, ValueError) as error:
        found = f"{address}: {getattr(error, 'reason', error)}"
        remedy = "is this the address of Ray's dashboard (port 8265), http or https?"
    return Check(name=name, status=Status.FAIL, found=found, expected=expected, remedy=remedy)


def _token() -> str | None:
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    file = token_file()
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None
