"""What a live run opens and shows: every listening socket and command line of its processes.

Which ones may listen is the table in SECURITY.md, so that what is documented is what is tested.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

SECURITY = Path(__file__).parents[2] / "SECURITY.md"
_ROW = re.compile(r"^\| `(?P<process>[^`]+)` \|")


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket: whose, and where."""

    process: str
    address: str
    port: int


def documented_processes() -> set[str]:
    """The processes of the table "What listens" in SECURITY.md."""
    _, _, section = SECURITY.read_text().partition("## What listens")
    table = section.partition("\n## ")[0].splitlines()
    return {found["process"] for line in table if (found := _ROW.match(line))}


def listeners(processes: Iterable[psutil.Process]) -> set[Listener]:
    """The TCP sockets that processes listen on, and UDP sockets that are bound."""
    found = set()
    for process in processes:
        try:
            name = kind_of(process)
            for socket in process.net_connections("inet"):
                is_open = socket.status == psutil.CONN_LISTEN or (
                    socket.type.name == "SOCK_DGRAM" and socket.laddr and not socket.raddr
                )
                if is_open:
                    found.add(Listener(name, socket.laddr.ip, socket.laddr.port))
        except psutil.NoSuchProcess:
            continue
    return found


def exposed(opened: Iterable[Listener]) -> list[Listener]:
    """Those that another machine could reach."""
    return [each for each in opened if each.address.removeprefix("::ffff:") not in ("127.0.0.1", "::1")]


def kind_of(process: psutil.Process) -> str:
    """What a process is, as SECURITY.md calls it: Ray and vLLM write it into the command line."""
    line = " ".join(process.cmdline())
    if found := re.match(r"ray::(\w+)", line):
        return f"ray::{found[1]}"
    if found := re.match(r"VLLM::(\w+)", line):
        return f"VLLM::{found[1]}"
    if "multiprocessing.spawn" in line:
        return "VLLM::EngineCore"  # before it has named itself; nothing else of a run is spawned
    for name in ("gcs_server", "raylet", "dashboard.py", "monitor.py", "log_monitor.py", "alphadrive.cli"):
        if re.search(rf"(^|[/ ]){re.escape(name)}( |$)", line):
            return name
    return line


def command_lines(processes: Iterable[psutil.Process]) -> str:
    """All command lines, one a line."""
    lines = []
    for process in processes:
        try:
            lines.append(" ".join(process.cmdline()))
        except psutil.NoSuchProcess:
            continue
    return "\n".join(lines)


def files_with(folder: Path, text: str) -> list[str]:
    """The files below a folder that hold a text."""
    needle = text.encode()
    return [str(file) for file in sorted(folder.rglob("*")) if file.is_file() and needle in file.read_bytes()]
