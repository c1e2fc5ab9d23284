"""Processes of a run are found and ended even when their parent is gone."""

import subprocess
import sys
import time

import psutil

from cluster.processes import ProcessTree, end_processes, is_alive

ORPHAN = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "time.sleep(2.5)\n"
)


def test_an_orphan_is_remembered_and_ended(monkeypatch):
    monkeypatch.setattr("cluster.processes.EXIT_TIMEOUT_S", 1.0)
    with ProcessTree() as tree:
        before = tree.descendants()
        subprocess.run([sys.executable, "-c", ORPHAN], check=True)
        started = tree.descendants() - before
        orphans = [process for process in started if is_alive(process)]
        assert len(orphans) == 1
        end_processes(started)
        time.sleep(0.5)
        assert not any(is_alive(process) for process in orphans)
    assert tree.peak_bytes >= psutil.Process().memory_info().rss // 2


def test_nothing_to_end_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("cluster.processes.EXIT_TIMEOUT_S", float("inf"))
    end_processes([])
