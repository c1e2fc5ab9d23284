"""The import hook that lets the published torchvision load beside a CPU build of torch."""

import subprocess
import sys
from pathlib import Path

HOOKS = Path(__file__).resolve().parents[2] / "site_hooks"


def run(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_torchvision_is_importable_in_a_new_process() -> None:
    done = run("import torchvision")
    assert done.returncode == 0, done.stderr


def test_looking_for_torchvision_does_not_import_torch() -> None:
    code = (
        "import importlib.util, sys; importlib.util.find_spec('torchvision'); print('torch' in sys.modules)"
    )
    assert run(code).stdout == "False\n"


def test_a_fragment_is_declared_only_where_the_library_does_not_load() -> None:
    code = (
        "import types, sys\n"
        f"sys.path.insert(0, {str(HOOKS)!r})\n"
        "import alphadrive_torchvision as hook\n"
        "torch = sys.modules['torch'] = types.ModuleType('torch')\n"
        "torch.version = types.SimpleNamespace(cuda='13.0', hip=None)\n"
        "hook._declare_missing_operators([])\n"
        "torch.version.cuda = None\n"
        "hook._declare_missing_operators([])\n"
        "print(hook._kept_alive)\n"
    )
    done = run(code, "-S")
    assert done.stdout == "[]\n", done.stderr


def test_the_pth_line_is_silent_when_the_module_is_gone() -> None:
    (line,) = (HOOKS / "alphadrive_torchvision.pth").read_text().splitlines()
    assert line.startswith("import ")
    done = run(line, "-S", "-I")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_other_names_and_a_missing_torchvision_are_left_alone() -> None:
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(HOOKS)!r})\n"
        "import alphadrive_torchvision as hook\n"
        "print(hook.TorchvisionFinder.find_spec('json'), hook.TorchvisionFinder.find_spec('torchvision'))\n"
    )
    assert run(code, "-S", "-I").stdout == "None None\n"
