import gzip
import io
import json
import os
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile

import pytest

from peas.data.fetch.archives import read_marker, unpack
from peas.data.fetch.download import file_sum
from peas.errors import DataError

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


def _zip(path, files=FILES, extra=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in files.items():
            opened.writestr(name, data)
        for member, data in extra:
            opened.writestr(member, data)
    return path


MAKERS = {"a.tar.gz": _tar, "a.tgz": _tar, "a.zip": _zip}


def _tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _unpack(archive, **settings):
    folder = archive.parent
    return unpack(archive, folder / "out", folder / "marker.json", **settings)


@pytest.mark.parametrize("name", MAKERS)
def test_everything(tmp_path, name):
    archive = MAKERS[name](tmp_path / name)
    calls = []
    found = _unpack(archive, progress=lambda *call: calls.append(call))
    assert _tree(tmp_path / "out") == FILES
    assert found == (file_sum(archive), 3, 1 + 256 * 900)
    assert read_marker(tmp_path / "marker.json") == found
    stages = [call for call in calls if call[0] == "unpacking"]
    assert len(stages) == 3
    assert all(done <= total == archive.stat().st_size for _, done, total in stages)


@pytest.mark.parametrize("name", MAKERS)
def test_strip_and_only(tmp_path, name):
    archive = MAKERS[name](tmp_path / name)
    found = _unpack(archive, strip=True, only=("sub/", "READ"), checksum="md5:abc")
    assert sorted(_tree(tmp_path / "out")) == ["sub/b.bin", "sub/c.txt"]
    assert found.checksum == "md5:abc"


def test_names_that_begin_with_a_dot_folder(tmp_path):
    _unpack(_tar(tmp_path / "a.tar.gz", prefix="./"))
    assert _tree(tmp_path / "out") == FILES


def test_marker_ends_the_work(tmp_path):
    archive = _zip(tmp_path / "a.zip")
    found = _unpack(archive)
    (tmp_path / "out" / "top" / "a.txt").unlink()
    assert _unpack(archive) == found
    assert not (tmp_path / "out" / "top" / "a.txt").exists()


def test_marker_of_another_archive_does_not(tmp_path):
    _unpack(_zip(tmp_path / "a.zip"))
    _unpack(_zip(tmp_path / "a.zip", {"top/a.txt": b"new"}))
    assert (tmp_path / "out" / "top" / "a.txt").read_bytes() == b"new"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"checksum": 1, "files": 2, "size": 3}'])
def test_damaged_marker_is_none(tmp_path, text):
    (tmp_path / "marker.json").write_text(text)
    assert read_marker(tmp_path / "marker.json") is None
    _unpack(_zip(tmp_path / "a.zip"))
    assert _tree(tmp_path / "out") == FILES
    assert json.loads((tmp_path / "marker.json").read_text())["files"] == 3


KILLED = """
import os, signal, sys
from pathlib import Path
from peas.data.fetch import archives

def stop(content, file, limit, write=archives._write):
    if file.name == "c.txt":
        # In the middle of a file: half of it lies under its other name.
        file.with_name(f".{file.name}.part").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return write(content, file, limit)

archives._write = stop
folder = Path(sys.argv[1])
archives.unpack(folder / "a.tar.gz", folder / "out", folder / "marker.json")
"""


def test_killed_and_restarted(tmp_path):
    archive = _tar(tmp_path / "a.tar.gz")
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert sorted(_tree(tmp_path / "out")) == ["top/a.txt", "top/sub/.c.txt.part", "top/sub/b.bin"]
    assert read_marker(tmp_path / "marker.json") is None
    # What lies there is not trusted: it could be of another archive.
    (tmp_path / "out" / "top" / "a.txt").write_bytes(b"x")
    _unpack(archive)
    assert _tree(tmp_path / "out") == FILES


def _link(kind, target):
    member = tarfile.TarInfo("top/link")
    member.type, member.linkname = kind, target
    return member


def _device(kind):
    member = tarfile.TarInfo("top/device")
    member.type = kind
    return member


@pytest.mark.parametrize(
    "extra",
    [
        _link(tarfile.SYMTYPE, "/etc"),
        _link(tarfile.SYMTYPE, "a.txt"),
        _link(tarfile.LNKTYPE, "top/a.txt"),
        _device(tarfile.CHRTYPE),
        _device(tarfile.FIFOTYPE),
    ],
    ids=["symlink out", "symlink within", "hard link", "device", "pipe"],
)
def test_tar_with_something_else_than_files(tmp_path, extra):
    with pytest.raises(DataError, match=r"a\.tar\.gz: 'top/(link|device)' is not a plain file"):
        _unpack(_tar(tmp_path / "a.tar.gz", extra=[extra]))
    assert not os.path.lexists(tmp_path / "out" / "top" / extra.name.split("/")[1])
    assert not (tmp_path / "marker.json").exists()


def test_zip_with_a_link(tmp_path):
    link = zipfile.ZipInfo("top/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(DataError, match="'top/link' is not a plain file"):
        _unpack(_zip(tmp_path / "a.zip", extra=[(link, "/etc")]))


@pytest.mark.parametrize("name", ["../evil", "top/../../evil", "/tmp/evil", "top\\..\\evil"])
@pytest.mark.parametrize("archive", ["a.tar.gz", "a.zip"])
def test_names_that_lead_out(tmp_path, archive, name):
    made = MAKERS[archive](tmp_path / archive, {name: b"evil"})
    with pytest.raises(DataError, match=r"leads out of the folder|is refused"):
        _unpack(made)
    assert not list(tmp_path.rglob("*evil"))


def test_target_that_is_a_link_elsewhere_is_refused_by_the_filter(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "top").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="is refused"):
        _unpack(_tar(tmp_path / "a.tar.gz"))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_strip_without_a_folder_at_the_top(tmp_path):
    with pytest.raises(DataError, match="'flat' does not lie in a folder"):
        _unpack(_zip(tmp_path / "a.zip", {"flat": b""}), strip=True)


@pytest.mark.parametrize("keep", [0.99, 0.5, 0.02])
@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_archive_cut_short(tmp_path, name, keep):
    noise = {"top/noise": os.urandom(100_000), **FILES}
    archive = MAKERS[name](tmp_path / name, noise)
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * keep)])
    with pytest.raises(DataError, match=r"damaged, or not the archive.* fetch it again"):
        _unpack(archive)
    assert not (tmp_path / "marker.json").exists()


def test_tar_that_ends_between_two_members(tmp_path):
    # Python's tarfile takes a missing end for the end; only gzip's own end shows it.
    archive = _tar(tmp_path / "a.tar.gz")
    first = gzip.decompress(archive.read_bytes())[:1024]
    archive.write_bytes(gzip.compress(first)[:-8])
    with pytest.raises(DataError, match="damaged"):
        _unpack(archive)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_flipped_bit(tmp_path, name):
    archive = MAKERS[name](tmp_path / name, {"top/noise": os.urandom(50_000)})
    data = bytearray(archive.read_bytes())
    data[25_000] ^= 1
    archive.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        _unpack(archive)
    assert not (tmp_path / "marker.json").exists()


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_page_in_place_of_an_archive(tmp_path, name):
    (tmp_path / name).write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(DataError, match="damaged"):
        _unpack(tmp_path / name)


def test_unknown_kind(tmp_path):
    (tmp_path / "a.rar").write_bytes(b"x")
    with pytest.raises(DataError, match=r"neither \.tar\.gz nor \.zip"):
        _unpack(tmp_path / "a.rar")


def test_absent_archive(tmp_path):
    with pytest.raises(DataError, match=r"a\.zip: No such file"):
        _unpack(tmp_path / "a.zip")


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_nothing_that_is_looked_for(tmp_path, name):
    with pytest.raises(DataError, match="none of the files"):
        _unpack(MAKERS[name](tmp_path / name), only=("other/",))


def test_file_where_a_folder_belongs(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "top").write_bytes(b"")
    with pytest.raises(DataError, match=r"out/top.*Not a directory"):
        _unpack(_zip(tmp_path / "a.zip"))


def test_full_disk(tmp_path):
    (tmp_path / "out" / "top").mkdir(parents=True)
    (tmp_path / "out" / "top" / ".a.txt.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match="out: the disk is full"):
        _unpack(_zip(tmp_path / "a.zip"))
    assert not (tmp_path / "marker.json").exists()


def _shared_members(path, count):
    """A zip whose entries all point at one member of 1 MB of zeros."""
    zeros = bytes(1 << 20)
    _zip(path, {"top/0": zeros})
    data = path.read_bytes()
    with zipfile.ZipFile(path) as opened:
        start = opened.start_dir
    entry = data[start : data.index(b"PK\x05\x06")]
    assert entry.count(b"top/0") == 1
    entries = b"".join(entry.replace(b"top/0", b"top/%d" % n) for n in range(count))
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(entries), start, 0)
    path.write_bytes(data[:start] + entries + end)
    return path


def test_zip_whose_entries_share_one_member(tmp_path):
    archive = _shared_members(tmp_path / "a.zip", 10)
    with pytest.raises(DataError, match=str(archive)):
        _unpack(archive)
    assert _tree(tmp_path / "out") == {}


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
@pytest.mark.parametrize("only", [(), ("other/",)])
def test_more_bytes_than_sound_can_be_packed_into(tmp_path, name, only):
    archive = MAKERS[name](tmp_path / name, {"top/zeros": bytes(80 << 20), "top/z": b"z"})
    with pytest.raises(DataError, match=f"{archive}: {archive.stat().st_size} bytes"):
        _unpack(archive, only=only)
    if name == "a.zip":
        # Its table tells before anything is written.
        assert _tree(tmp_path / "out") == {}
    assert sum(file.stat().st_size for file in (tmp_path / "out").rglob("*.part")) <= 64 << 20


def test_sparse_member_that_claims_a_terabyte(tmp_path):
    member = tarfile.TarInfo("top/sparse")
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b"%011o\0" % 0, b"%011o\0" % 512
    header[483:495] = b"\x80\0\0\0" + (1 << 40).to_bytes(8, "big")
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(gzip.compress(bytes(header) + bytes(512 + 1024)))
    with pytest.raises(DataError, match=str(archive)):
        _unpack(archive)
    assert sum(file.stat().st_size for file in (tmp_path / "out").rglob("*.part")) <= 65 << 20


def _block(kind, size, name="top/a.txt"):
    """A member's header with any size, and no content."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


_NOISE = os.urandom(1 << 21)
_SPARSE_1 = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"


@pytest.mark.parametrize(
    "tar",
    [
        _block(tarfile.XHDTYPE, 4 << 20) + bytes(4 << 20) + _block(tarfile.REGTYPE, 0),
        (_block(tarfile.XHDTYPE, 1 << 19) + bytes(1 << 19)) * 8 + _block(tarfile.REGTYPE, 0),
        _block(tarfile.GNUTYPE_LONGNAME, 4 << 20) + bytes(4 << 20) + _block(tarfile.REGTYPE, 0),
        _block(tarfile.XHDTYPE, -512) + _NOISE,
        _block(tarfile.XHDTYPE, len(_SPARSE_1))
        + _SPARSE_1.ljust(512, b"\0")
        + _block(tarfile.REGTYPE, 4 << 20)
        + b"9999999\n"
        + b"0\n" * (2 << 20),
    ],
    ids=["pax", "several pax", "long name", "negative", "holes"],
)
def test_tar_whose_headers_would_fill_the_memory(tmp_path, tar):
    archive = tmp_path / "a.tar.gz"
    # As many bytes as the limit of growth lets pass.
    archive.write_bytes(gzip.compress(tar + bytes(1024)))
    with pytest.raises(DataError, match="more than 1048576 bytes"):
        _unpack(archive)


def test_tar_whose_member_leads_back_to_itself(tmp_path):
    size = b"13 size=-512\n"
    header = _block(tarfile.XHDTYPE, len(size)) + size.ljust(512, b"\0")
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(gzip.compress(header + _block(tarfile.REGTYPE, 0) + bytes(1024)))
    with pytest.raises(DataError, match=r"'top/a\.txt' has -512 bytes|invalid"):
        _unpack(archive)


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_zip_methods_with_a_dictionary_of_any_size(tmp_path, method):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", method) as opened:
        opened.writestr("top/a", b"a" * 1000)
    with pytest.raises(DataError, match="top/a"):
        _unpack(archive)
