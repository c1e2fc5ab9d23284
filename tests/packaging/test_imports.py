"""Who may import whom, read from the source of every package."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("alphadrive", "rewards", "rollout", "learner", "cluster")

MAY_IMPORT = {
    "alphadrive": {"alphadrive"},
    "rewards": {"alphadrive", "rewards"},
    "rollout": {"alphadrive", "rollout"},
    "learner": {"alphadrive", "learner"},
    "cluster": {"alphadrive", "rewards", "rollout", "learner", "cluster"},
}
COMMANDS = {
    "alphadrive.cli",
    "alphadrive.demo",
    "alphadrive.engine_evaluation",
    "alphadrive.export_command",
    "alphadrive.plan_command",
    "alphadrive.profile_command",
    "alphadrive.run_commands",
    "alphadrive.score_command",
    "alphadrive.stack_command",
}
"""The bodies of commands: they may import every package, but only when they run: `--help` loads nothing
heavy."""

HEAVY = {
    "ray": ("cluster",),
    "vllm": ("rollout",),
    "deepspeed": ("learner",),
    "torch": ("learner", "rollout", "alphadrive.tiny"),
}
WITHOUT_RAY = ("cluster.loop", "cluster.buffer")


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_within(module: str, packages: set[str] | tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def imports(tree: ast.AST, module: str, is_lazy: bool = False) -> Iterator[tuple[str, bool]]:
    """Every imported module of a source file, and whether importing the file leaves it alone: it is
    imported inside a function, or for types only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, is_lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            yield ".".join([*base, node.module or ""]).strip("."), is_lazy
        in_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        yield from imports(node, module, is_lazy or in_function or for_types)


def breaches(module: str, source: str) -> list[str]:
    """The rules that a module breaks, as sentences."""
    package, found = module.split(".")[0], []
    for imported, is_lazy in imports(ast.parse(source), module):
        top = imported.split(".")[0]
        if top in PACKAGES and top not in MAY_IMPORT[package]:
            if not is_within(module, COMMANDS):
                found.append(f"{module} imports {imported}")
            elif not is_lazy:
                found.append(f"{module} imports {imported} before it runs")
        if package != "alphadrive" and is_within(imported, COMMANDS):
            found.append(f"{module} imports the command {imported}")
        if top in HEAVY and not is_within(module, HEAVY[top]):
            found.append(f"{module} imports {imported}")
        if top == "ray" and is_within(module, WITHOUT_RAY):
            found.append(f"{module} imports {imported}")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_keeps_the_import_rules(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    assert [line for file in files for line in breaches(module_name(file), file.read_text())] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rewards.score", "import rollout.engine"),
        ("rollout.engine", "from learner import policy"),
        ("learner.rank", "def step():\n    import ray"),
        ("cluster.loop", "import ray"),
        ("cluster.actors", "import torch.distributed"),
        ("alphadrive.types", "import torch"),
        ("alphadrive.cli", "from cluster.launch import run_grpo"),
        ("rewards.score", "from ..cluster import pools"),
        ("cluster.launch", "from alphadrive.cli import main"),
    ],
)
def test_a_breach_is_seen(module: str, source: str) -> None:
    assert breaches(module, source) != []


def test_a_command_may_import_inside_a_function() -> None:
    assert breaches("alphadrive.cli", "def main():\n    from cluster.launch import run_grpo") == []


@pytest.mark.parametrize("module", ["rewards", "cluster.loop", "cluster.buffer", "alphadrive.config"])
def test_imports_with_none_of_the_heavy_libraries_installed(module: str) -> None:
    code = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('ray', 'vllm', 'torch', 'deepspeed', 'transformers'):\n"
        "            raise ImportError(f'{name} is blocked')\n"
        "sys.meta_path.insert(0, Blocker())\n"
        f"import {module}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
