"""Finding a reward function of the user's by its name in `rewards.weights`.

    package.module:function        imported; the folder the run was started in is searched last
    path/to/file.py:function       the file itself, relative to that folder

A function is called with a `DrivingQuery` and the list of its group's `Completion`s and returns one finite
number for each of them, in order. It is trusted code: it runs in the reward workers as whoever started the
run.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from alphadrive.errors import ConfigError
from alphadrive.resources import shadowed_packages


def load_function(name: str, folder: Path) -> Callable[..., Any]:
    """The function called `name`. Raises ConfigError when there is none that takes two arguments."""
    source, _, function_name = name.rpartition(":")
    where = f"rewards.weights.{name}"
    try:
        module = _module_of_file(folder / source) if source.endswith(".py") else _module(source, folder)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise ConfigError(
            f"{where}: cannot be imported: {type(error).__name__}: {error}{_hint(source, folder)}"
        ) from error
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if function is None or not callable(function):
        problem = "has no" if function is None else f"has a {type(function).__name__}, no function, called"
        raise ConfigError(f"{where}: {module.__file__} {problem} {function_name!r}")
    try:
        inspect.signature(function).bind(None, [])
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{where}: cannot be called with a query and a list of completions: {error}; "
            f"expected `def {function_name}(query, completions): return [number, ...]`"
        ) from error
    return function


def _module(name: str, folder: Path) -> ModuleType:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return importlib.import_module(name)


def _module_of_file(path: Path) -> ModuleType:
    """The file as a module of its own name. What lies beside it can be imported, as for a script."""
    name = f"alphadrive_user_{abs(hash(path.resolve())):x}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _hint(source: str, folder: Path) -> str:
    top = source.partition(".")[0]
    if top not in shadowed_packages(folder):
        return ""
    return (
        f"; {folder} has a package {top!r} of its own, which this project's package of that name hides: "
        f"name the file instead, as in {source.replace('.', '/')}.py:function"
    )
