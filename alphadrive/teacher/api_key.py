"""The key to the teacher's endpoint: read from the environment, sent in one header, shown nowhere."""

import os

from alphadrive.errors import ConfigError
from alphadrive.secrets import name_secret, variable_problem

DEFAULT_VARIABLE = "OPENAI_API_KEY"
_MIN_SECRET_CHARS = 8
_MASK = "[key]"


class ApiKey:
    """A key, or that there is none. Neither `str` nor `repr` shows it."""

    def __init__(self, variable: str, value: str | None) -> None:
        self.variable = variable
        self._value = value

    @classmethod
    def from_environment(cls, variable: str | None) -> "ApiKey":
        """Read the key out of the variable of that name.

        None means OPENAI_API_KEY, which may be unset: a server of one's own asks for no key. Raises
        ConfigError for a variable that was named and is not set, and for a key that no header can carry.
        """
        if variable is not None and (problem := variable_problem(variable)):
            raise ConfigError(f"--api-key-env: {problem}")
        name = variable or DEFAULT_VARIABLE
        name_secret(name)
        value = os.environ.get(name, "").strip()
        if not value:
            if variable is not None:
                raise ConfigError(
                    f"--api-key-env {variable}: the environment has no such variable, or it is empty; "
                    "expected the name of one that holds the key"
                )
            return cls(name, None)
        if not value.isascii() or any(not char.isprintable() or char in " \"'\\" for char in value):
            # The client's own message about a key that fits no header would quote it.
            raise ConfigError(
                f"{name}: the key has spaces, quotes or characters that no header can carry; set it again"
            )
        return cls(name, value)

    def __bool__(self) -> bool:
        return self._value is not None

    def __repr__(self) -> str:
        return f"ApiKey({self.variable}, {self.state})"

    @property
    def state(self) -> str:
        """`set` or `not set`."""
        return "set" if self else "not set"

    def for_header(self) -> str:
        """The key itself, for the client alone; a word in its place where there is none."""
        return self._value or "none"

    def redact(self, text: str) -> str:
        """The text without the key. Servers echo keys in messages, and so may a model in its answer.

        A key under eight characters is a placeholder such as `EMPTY`, no secret, and stays.
        """
        if self._value is None or len(self._value) < _MIN_SECRET_CHARS:
            return text
        return text.replace(self._value, _MASK)
