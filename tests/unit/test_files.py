"""Atomic writes, locks, checksums and disk errors."""

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import threading

import pytest

from peas.errors import DataError
from peas.utils.files import (
    Locked,
    atomic_write,
    checksum,
    disk_errors,
    lock,
    require_space,
    write_text,
)


def test_a_file_is_replaced_or_untouched(tmp_path):
    file = tmp_path / "a"
    write_text(file, "first")
    with contextlib.suppress(ZeroDivisionError), atomic_write(file) as stream:
        stream.write(b"second")
        assert file.read_text() == "first"
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert file.read_text() == "first"
    write_text(file, "third", fsync=False)
    assert file.read_text() == "third"


def test_many_writers_of_one_file(tmp_path):
    file = tmp_path / "a"
    texts = [str(number) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=write_text, args=(file, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_text() in texts
    assert len(list(tmp_path.iterdir())) == 1


HOLD = """
import sys, time
from peas.utils.files import lock
with lock(sys.argv[1], "it"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_of_a_live_and_of_a_dead_process(tmp_path):
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        busy = rf"{tmp_path}: process {holder.pid} on "
        with pytest.raises(Locked, match=busy), lock(path, tmp_path, wait=0):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    for _ in range(2):
        with lock(path, tmp_path):
            assert f"process {os.getpid()} on " in path.read_text()


def test_a_folder_without_locks_and_one_that_is_read_only(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    with pytest.raises(DataError, match="/proc/lock"), lock("/proc/lock", "it"):
        pass
    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock(tmp_path / "lock", tmp_path):
        pass
    assert str(tmp_path) in caplog.text


@pytest.mark.parametrize(
    ("code", "hint"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EIO, "")]
)
def test_errors_of_the_disk_name_the_file(tmp_path, code, hint):
    with pytest.raises(DataError, match=rf"other.*{hint}"), disk_errors(tmp_path / "mine"):
        raise OSError(code, os.strerror(code), "other")
    with pytest.raises(DataError, match=rf"mine.*{hint}"), disk_errors(tmp_path / "mine"):
        raise OSError(code, os.strerror(code))


def test_space_and_checksum(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"peas")
    steps = []
    assert checksum(file, "md5", lambda *step: steps.append(step)) == (
        "md5:57407fc2e0cc00b11694dce1700c2c1a"
    )
    assert steps == [(4, 4)]
    assert checksum(file).startswith("sha256:")
    require_space(file, 1)
    with pytest.raises(DataError, match=str(file)):
        require_space(file, 1 << 62)
