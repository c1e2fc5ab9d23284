"""Locks of folders: one writer, also where the file system has none to give."""

import errno
import fcntl
import subprocess
import sys
import threading

import pytest

from alphadrive.errors import RunFolderError
from alphadrive.locks import take_lock, wait_for_lock


@pytest.fixture
def no_locks(monkeypatch):
    """A file system such as some network mounts: every lock is refused."""

    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_second_writer_waits_until_the_first_is_done(tmp_path):
    path, order = tmp_path / "deep" / "x.lock", []

    def second():
        with wait_for_lock(path):
            order.append("second")

    with wait_for_lock(path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]


def test_a_writer_that_died_holds_nothing(tmp_path):
    code = (
        "import os, pathlib\n"
        "from alphadrive.locks import take_lock\n"
        f"lock = take_lock(pathlib.Path({str(tmp_path)!r}), 'busy')\n"
        "os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    with take_lock(tmp_path, "busy"), pytest.raises(RunFolderError, match="busy"):
        take_lock(tmp_path, "busy")


def test_where_there_are_no_locks_the_work_goes_on_with_a_warning(tmp_path, no_locks, caplog):
    with wait_for_lock(tmp_path / "x.lock"):
        pass
    take_lock(tmp_path, "busy").close()
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert caplog.text.count("this file system has no locks") == 2
