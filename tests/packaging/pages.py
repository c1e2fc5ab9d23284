"""The pages of the documentation, taken apart."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """The code blocks of a page: what they are of (may be nothing), and their text."""
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S):
        yield found[1], found[2]
    indented = re.findall(
        r"(?:^    .*\n)+", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.M
    )
    yield from (("", re.sub(r"^    ", "", text, flags=re.M)) for text in indented)


def written_files(page: Path) -> dict[str, str]:
    """The Python blocks of a page that begin with the name of the file they are: `# my_rewards.py`."""
    found = {}
    for kind, text in blocks(page):
        if kind == "python" and (name := re.match(r"# (\w+\.py)\b", text)):
            found[name[1]] = text
    return found


def typed_lines(page: Path) -> list[str]:
    """The lines of the blocks without a language that are typed into a shell, in the page's order."""
    starts = ("alphadrive ", "python ", "echo ")
    return [
        line
        for kind, text in blocks(page)
        if not kind
        for line in text.splitlines()
        if line.startswith(starts)
    ]
