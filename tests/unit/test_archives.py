import io
import os
import signal
import subprocess
import sys
import tarfile
import zipfile

import pytest

from peas.data.fetch.archives import read_marker, unpack
from peas.errors import DataError
from peas.utils.files import checksum

FILES = {"top/a.txt": b"a", "top/sub/b.bin": bytes(range(256)) * 900, "top/sub/c.txt": b""}


def _tar(path, files=FILES, extra=(), prefix=""):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for member in extra:
            tar.addfile(member)
    return path


def _zip(path, files=FILES):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in files.items():
            opened.writestr(name, data)
    return path


MAKERS = {"a.tar.gz": _tar, "a.zip": _zip}
both = pytest.mark.parametrize("name", MAKERS)


def _tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _unpack(archive, **settings):
    unpack(archive, archive.parent / "out", archive.parent / "state" / "marker", **settings)


def _is_refused(archive, match="damaged", **settings):
    with pytest.raises(DataError, match=match) as caught:
        _unpack(archive, **settings)
    assert str(archive) in str(caught.value)
    assert list((archive.parent / "state").iterdir()) == []
    assert not (archive.parent / "out").exists()


@both
def test_all_files(tmp_path, name):
    archive = MAKERS[name](tmp_path / name)
    calls = []
    _unpack(archive, progress=lambda *call: calls.append(call))
    assert _tree(tmp_path / "out") == FILES
    assert read_marker(tmp_path / "state" / "marker") == checksum(archive)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["marker"]
    unpacking = [call for call in calls if call[0] == "unpacking"]
    assert len(unpacking) == 3
    assert all(done <= total == archive.stat().st_size for _, done, total in unpacking)


@both
def test_strip_and_only(tmp_path, name):
    archive = MAKERS[name](tmp_path / name)
    _unpack(archive, strip=True, only=("sub", "README"), checksum="md5:abc")
    assert sorted(_tree(tmp_path / "out")) == ["sub/b.bin", "sub/c.txt"]
    assert read_marker(tmp_path / "state" / "marker") == "md5:abc"


def test_names_that_begin_with_a_dot_folder(tmp_path):
    _unpack(_tar(tmp_path / "a.tar.gz", prefix="./"))
    assert _tree(tmp_path / "out") == FILES


def test_marker(tmp_path):
    _unpack(_zip(tmp_path / "a.zip"))
    clip = tmp_path / "out" / "top" / "a.txt"
    clip.unlink()
    _unpack(tmp_path / "a.zip")
    assert not clip.exists()
    # Of another archive: its files replace those that are there.
    _unpack(_zip(tmp_path / "a.zip", {"top/a.txt": b"new"}))
    assert _tree(tmp_path / "out") == FILES | {"top/a.txt": b"new"}
    for damaged in ("", "[]", "{}", '{"checksum": 1}'):
        (tmp_path / "state" / "marker").write_text(damaged)
        assert read_marker(tmp_path / "state" / "marker") is None


KILLED = """
import os, signal, sys, tarfile
from pathlib import Path
from peas.data.fetch import archives

def stop(stage, done, total):
    if stage == "unpacking":
        os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[1])
archives.unpack(folder / "a.tar.gz", folder / "out", folder / "state" / "marker", progress=stop)
"""


def test_killed_and_restarted(tmp_path):
    archive = _tar(tmp_path / "a.tar.gz")
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    _unpack(archive)
    assert _tree(tmp_path / "out") == FILES
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["marker"]


def _member(kind, target=""):
    member = tarfile.TarInfo("top/link")
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "member",
    [
        _member(tarfile.SYMTYPE, "/etc"),
        _member(tarfile.SYMTYPE, "../../a"),
        # Inside the folder, but above it once `top` is stripped.
        _member(tarfile.SYMTYPE, ".."),
        _member(tarfile.CHRTYPE),
        _member(tarfile.FIFOTYPE),
    ],
)
def test_tar_with_links_and_devices(tmp_path, member):
    _is_refused(_tar(tmp_path / "a.tar.gz", extra=[member]), "top/link")


@both
@pytest.mark.parametrize("member", ["../evil", "top/../../evil"])
def test_names_that_lead_out(tmp_path, name, member):
    _is_refused(MAKERS[name](tmp_path / name, {member: b"evil"}), "evil")
    assert not list(tmp_path.rglob("*evil"))


@both
def test_archives_that_are_damaged(tmp_path, name):
    noise = os.urandom(50_000)
    data = MAKERS[name](tmp_path / name, {"top/noise": noise, **FILES}).read_bytes()
    flipped = bytearray(data)
    flipped[25_000] ^= 1
    cut = [data[: int(len(data) * kept)] for kept in (0.99, 0.5, 0.02)]
    for damaged in (*cut, flipped, b"<html>not found</html>" * 100):
        (tmp_path / name).write_bytes(damaged)
        _is_refused(tmp_path / name)


@both
@pytest.mark.parametrize(
    ("files", "settings"),
    [(FILES, {"only": ("other",)}), (FILES | {"b/a": b""}, {"strip": True}), ({}, {})],
)
def test_archives_of_something_else(tmp_path, name, files, settings):
    _is_refused(MAKERS[name](tmp_path / name, files), **settings)


def test_disk_errors(tmp_path):
    with pytest.raises(DataError, match=r"a\.zip: No such file"):
        _unpack(tmp_path / "a.zip")
    archive = _zip(tmp_path / "a.zip")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "top").write_bytes(b"")
    with pytest.raises(DataError, match="Not a directory"):
        _unpack(archive)
    assert read_marker(tmp_path / "state" / "marker") is None
