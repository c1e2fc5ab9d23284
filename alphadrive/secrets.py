"""Secrets stay in the environment: a configuration holds the names of variables, nothing written a value.

A variable counts as secret when its name says so (`…_KEY`, `…_TOKEN`, `…_SECRET`, `…_PASSWORD`) or when a
configuration or an option named it for a key. `redact` takes the values of all of them out of a text; log
lines, tracebacks, errors shown, `status.json`, `summary.json` and what a reward function raises pass through.
"""

import dataclasses
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

MASK = "***"
MIN_CHARS = 8
"""A shorter value is a placeholder such as `EMPTY`, no secret."""

_SECRET_NAME = re.compile(r"(?:^|_)(?:APIKEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD)S?$", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_named: set[str] = set()


def name_secret(variable: str) -> None:
    """Treat a variable's value as a secret from now on, whatever its name."""
    _named.add(variable)


def variable_problem(variable: str) -> str | None:
    """Why this cannot be the name of a variable, without repeating it: it may be the key itself."""
    if _VARIABLE.fullmatch(variable):
        return None
    return (
        "expected the name of the environment variable that holds the key (letters, digits and _), not the "
        "key itself; what was given is not repeated here"
    )


def url_problem(url: str) -> str | None:
    """Why a URL cannot stand in a configuration, without repeating it: it has a user or a password in it."""
    try:
        parts = urlsplit(url)
        has_user = "://" in url and (parts.username is not None or parts.password is not None)
    except ValueError:
        return None
    if not has_user:
        return None
    return "has a user or password in it, which would end up in files and logs; put it into the environment"


def secret_problems(config: Any) -> list[str]:
    """Where a configuration (nested dataclasses) holds a secret instead of naming one, by dotted key."""
    problems = []
    for key, value in _texts(config):
        problem = variable_problem(value) if key.endswith("_env") else url_problem(value)
        if problem is None and key.endswith("_url") and ("?" in value or "#" in value):
            problem = "has a query or a fragment in it; expected the bare address"
        if problem:
            problems.append(f"{key}: {problem}")
    return problems


def _texts(section: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for leaf in dataclasses.fields(section):
        value = getattr(section, leaf.name)
        if dataclasses.is_dataclass(value):
            yield from _texts(value, f"{prefix}{leaf.name}.")
        elif isinstance(value, str):
            yield f"{prefix}{leaf.name}", value


def redact(text: str) -> str:
    """The text without the value of any secret of this process's environment."""
    return _without(text, _values())


def redacted(tree: Any) -> Any:
    """The same for every text in nested dictionaries and lists, keys aside."""
    return _tree_without(tree, _values())


def _tree_without(tree: Any, values: list[str]) -> Any:
    if isinstance(tree, str):
        return _without(tree, values)
    if isinstance(tree, dict):
        return {key: _tree_without(value, values) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_tree_without(value, values) for value in tree]
    return tree


def _without(text: str, values: list[str]) -> str:
    for value in values:
        if value in text:
            text = text.replace(value, MASK)
    return text


class RedactingFormatter(logging.Formatter):
    """Log lines, with their tracebacks, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The line as it is written."""
        return redact(super().format(record))


def redact_logging(handlers: Iterable[logging.Handler]) -> None:
    """Have these handlers, and the traceback of a program that fails, write no secret."""
    for handler in handlers:
        plain = handler.formatter
        style = plain._fmt if plain is not None else None
        handler.setFormatter(RedactingFormatter(style, plain.datefmt if plain is not None else None))
    sys.excepthook = _excepthook


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def _values() -> list[str]:
    """The longest first: one may be part of another."""
    found = {
        value
        for name, value in os.environ.items()
        if len(value) >= MIN_CHARS and (name in _named or _SECRET_NAME.search(name))
    }
    return sorted(found, key=len, reverse=True)
