"""Where the project's own files and packages are, also when it is run in a folder with names like ours."""

import sys
from collections.abc import Sequence
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
PACKAGES = ("alphadrive", "rollout", "learner", "rewards", "cluster")
FIRST_IMPORTED = ("alphadrive", "cluster")
"""What a Ray worker imports before `put_our_packages_first` can run in it."""


def shipped(name: str) -> Path:
    """The folder or file `name` (`configs`, `assets/tiny-vlm`) of this installation.

    A wheel carries it inside the package, a checkout at its top. The path of a name that is in
    neither is returned as it would be in a wheel; whether it exists is for the caller to check.
    """
    inside_the_package, in_the_checkout = _PACKAGE / name, _PACKAGE.parent / name
    if not inside_the_package.exists() and in_the_checkout.exists():
        return in_the_checkout
    return inside_the_package


def shadowed_packages(folder: Path, names: Sequence[str] = PACKAGES) -> list[str]:
    """Which of our packages code finds in `folder`, if it looks there first, instead of ours.

    Ray puts the driver's working directory first on the path of its workers, so one started in
    somebody's project that has a `rewards` package of its own would import that one.
    """
    if folder.resolve() == _PACKAGE.parent:
        return []
    return [n for n in names if (folder / n / "__init__.py").is_file() or (folder / f"{n}.py").is_file()]


def put_our_packages_first() -> None:
    """Move the folders that hold a package with the name of one of ours to the end of the path.

    What else is in them can still be imported. Processes that this one spawns inherit the order.
    """
    hiding = [entry for entry in sys.path if shadowed_packages(Path(entry))]
    sys.path[:] = [entry for entry in sys.path if entry not in hiding] + hiding
