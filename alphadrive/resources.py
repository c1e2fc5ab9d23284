"""Where the files shipped with the project are: beside the packages in a checkout, inside in a wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """The folder or file `name` (`configs`, `assets/tiny-vlm`) of this installation.

    A wheel carries it inside the package, a checkout at its top. The path of a name that is in
    neither is returned as it would be in a wheel; whether it exists is for the caller to check.
    """
    inside_the_package, in_the_checkout = _PACKAGE / name, _PACKAGE.parent / name
    if not inside_the_package.exists() and in_the_checkout.exists():
        return in_the_checkout
    return inside_the_package


def shadowed_packages(folder: Path) -> list[str]:
    """The packages of this project that code run in `folder` finds there instead of ours.

    Ray puts the driver's working directory first on the path of its workers, so a run started in
    somebody's project that has a `rewards` package of its own would import that one.
    """
    ours = _PACKAGE.parent
    if folder.resolve() == ours:
        return []
    names = ("alphadrive", "rollout", "learner", "rewards", "cluster")
    return [n for n in names if (folder / n / "__init__.py").is_file() or (folder / f"{n}.py").is_file()]
