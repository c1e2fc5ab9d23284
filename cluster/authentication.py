"""Whether to show a token to a cluster that is joined."""

import os
from pathlib import Path

from ray._raylet import Config


def choose_authentication(mode: str | None = None) -> None:
    """Use a token as the cluster does; Ray by itself never does so for an address that is given. Where its
    RAY_AUTH_MODE (`mode`) is not known: if this user has a token."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    has_token = (
        "RAY_AUTH_TOKEN" in os.environ
        or "RAY_AUTH_TOKEN_PATH" in os.environ
        or (Path.home() / ".ray" / "auth_token").is_file()
    )
    chosen = mode if mode is not None else ("token" if has_token else "")
    if chosen:
        os.environ["RAY_AUTH_MODE"] = chosen
        Config.initialize("")
