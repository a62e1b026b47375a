import hashlib
import shutil
import time
from types import SimpleNamespace

import pytest
from faulty_server import Answer, Served, serve

from peas.data.fetch.download import Patience, download
from peas.errors import DataError

DATA = bytes(range(256)) * 40
SHA = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
HASTE = Patience(silence=0.3, attempts=3, pause=0.0)
TOTAL = len(DATA)


@pytest.fixture(autouse=True)
def no_hang():
    """A client that waits for ever would only fail when CI does."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 10


def _served(*answers, **then):
    return {"/a.bin": Served(DATA, list(answers), Answer(**then))}


def _get(server, folder, **settings):
    settings = {"checksum": SHA, "patience": HASTE, **settings}
    return download(f"{server.url}/a.bin", folder / "a.bin", **settings)


def _ranges(folder, *answers, then=None, **settings):
    """Downloads, and returns the `Range` of every request."""
    with serve(_served(*answers, **(then or {}))) as server:
        assert _get(server, folder, **settings) == folder / "a.bin"
    assert (folder / "a.bin").read_bytes() == DATA
    assert [path.name for path in folder.iterdir()] == ["a.bin"]
    return server.ranges


def _fails(folder, match, *answers, then=None, **settings):
    with serve(_served(*answers, **(then or {}))) as server:
        with pytest.raises(DataError, match=match) as caught:
            _get(server, folder, **settings)
        assert not (folder / "a.bin").exists()
    assert f"{server.url}/a.bin" in str(caught.value)
    return server, str(caught.value)


def test_progress(tmp_path):
    calls = []
    progress = lambda *call: calls.append(call)  # noqa: E731
    assert _ranges(tmp_path, size=TOTAL, progress=progress) == [None]
    assert ("fetching", TOTAL, TOTAL) in calls
    assert calls[-1] == ("checking", TOTAL, TOTAL)


@pytest.mark.parametrize(
    ("data", "checksum", "ranges"),
    [
        (DATA, SHA, []),
        (DATA, f"md5:{hashlib.md5(DATA).hexdigest()}", []),
        (DATA[:-1], SHA, [None]),
        (DATA, None, []),
    ],
)
def test_existing_file(tmp_path, data, checksum, ranges):
    (tmp_path / "a.bin").write_bytes(data)
    assert _ranges(tmp_path, checksum=checksum) == ranges


def test_dropped_connections_are_resumed(tmp_path):
    drops = [Answer(drop=1000), Answer(drop=2000), Answer(drop=1), Answer(drop=0)]
    assert _ranges(tmp_path, *drops) == [
        *(None, "bytes=1000-", "bytes=3000-", "bytes=3001-", "bytes=3001-")
    ]
    (tmp_path / "a.bin").unlink()
    # Attempts that bring bytes do not count as failed.
    assert len(_ranges(tmp_path, then={"drop": 500})) == -(-TOTAL // 500)


@pytest.mark.parametrize("checksum", [SHA, None])
def test_only_with_a_checksum_a_later_call_resumes(tmp_path, checksum):
    first = "bytes=4000-" if checksum else None
    with serve(_served(Answer(drop=4000), status=503)) as server:
        with pytest.raises(DataError, match="503"):
            _get(server, tmp_path, checksum=checksum)
        before = len(server.ranges)
        assert server.ranges[1:] == [first] * (before - 1)
        server.files["/a.bin"].then = Answer()
        _get(server, tmp_path, checksum=checksum)
    assert server.ranges[before:] == [first]
    assert (tmp_path / "a.bin").read_bytes() == DATA


@pytest.mark.parametrize(
    ("part", "size", "ranges"),
    [
        (b"x" * 4000, None, ["bytes=4000-", None]),
        (DATA, TOTAL, []),
        (DATA, None, [f"bytes={TOTAL}-"]),
        (DATA + b"more", TOTAL, [None]),
        (DATA + b"more", None, [f"bytes={TOTAL + 4}-", None]),
    ],
)
def test_part_of_an_earlier_call(tmp_path, part, size, ranges):
    (tmp_path / "a.bin.part").write_bytes(part)
    assert _ranges(tmp_path, size=size) == ranges


@pytest.mark.parametrize(
    ("answers", "ranges"),
    [
        ([Answer(drop=1000, ranges=False), Answer(ranges=False)], [None, "bytes=1000-"]),
        ([Answer(drop=1000, data=DATA[::-1])], [None, "bytes=1000-", None]),
        ([Answer(drop=1000), Answer(start=0)], [None, "bytes=1000-", None]),
        ([Answer(status=503), Answer(status=429)], [None] * 3),
        ([Answer(drop=1000, hang=True)], [None, "bytes=1000-"]),
        ([Answer(chunked=True, drop=1400), Answer(chunked=True)], [None, "bytes=1400-"]),
        ([Answer(length=str(TOTAL + 100), drop=TOTAL)], [None, f"bytes={TOTAL}-"]),
        ([Answer(data=b"wrong" * 100)], [None, None]),
        ([Answer(headers={"Content-Encoding": "x-gzip"})], [None]),
    ],
    ids=[
        "no-ranges",
        "other-file",
        "other-range",
        "busy",
        "silent",
        "chunks",
        "too-long",
        "other-bytes",
        "label",
    ],
)
def test_faulty_answers(tmp_path, answers, ranges):
    assert _ranges(tmp_path, *answers) == ranges


def test_body_without_a_length(tmp_path):
    assert _ranges(tmp_path, then={"length": ""}, checksum=None) == [None]
    (tmp_path / "a.bin").unlink()
    ranges = _ranges(tmp_path, Answer(length="", drop=1000), size=TOTAL)
    assert ranges == [None, "bytes=1000-"]


def test_checksum_mismatch_names_the_file_and_both_sums(tmp_path):
    server, message = _fails(tmp_path, "twice", then={"length": "100"})
    assert server.ranges == [None, None]
    for word in (str(tmp_path / "a.bin"), SHA, hashlib.sha256(DATA[:100]).hexdigest()):
        assert word in message
    assert list(tmp_path.iterdir()) == []


def test_error_page_in_place_of_a_file_of_known_size_keeps_the_part(tmp_path):
    (tmp_path / "a.bin.part").write_bytes(DATA[:4000])
    page = Answer(data=b"<html>log in</html>", ranges=False)
    assert _ranges(tmp_path, page, page, size=TOTAL) == ["bytes=4000-"] * 3


@pytest.mark.parametrize(
    ("then", "match"),
    [
        ({"data": b"<html>log in</html>"}, f"19 bytes, and {TOTAL}"),
        ({"drop": 0, "hang": True}, "timed out"),
        ({"drop": 1000, "ranges": False}, f"1000 of {TOTAL}"),
        ({"trickle": 0.05}, "too slow"),
        ({"status": 500}, "500"),
    ],
)
@pytest.mark.parametrize("checksum", [SHA, None])
def test_server_that_is_given_up(tmp_path, then, match, checksum):
    server, message = _fails(tmp_path, match, then=then, size=TOTAL, checksum=checksum)
    assert len(server.requests) <= HASTE.attempts + 1
    assert "--mirror" in message


@pytest.mark.parametrize("status", [404, 403])
def test_refusals_are_final(tmp_path, status):
    server, message = _fails(tmp_path, str(status), then={"status": status})
    assert len(server.ranges) == 1
    assert "--mirror" in message


def test_pauses_grow_to_the_longest(tmp_path, monkeypatch):
    pauses = []
    clock = SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic)
    monkeypatch.setattr("peas.data.fetch.download.time", clock)
    patience = Patience(attempts=6, pause=1.0, longest=5.0)
    _fails(tmp_path, "6 attempts", then={"status": 500}, patience=patience)
    assert pauses == [1, 2, 4, 5, 5]


def test_empty_file(tmp_path):
    with serve({"/a.bin": b""}) as server:
        _get(server, tmp_path, checksum=None)
    assert (tmp_path / "a.bin").read_bytes() == b""


@pytest.mark.parametrize("hang", [False, True])
def test_redirect_keeps_the_range(tmp_path, hang):
    (tmp_path / "a.bin.part").write_bytes(DATA[:4000])
    there = Answer(status=302, headers={"Location": "/b.bin", "Content-Length": "0"}, hang=hang)
    with serve({"/a.bin": Served(b"", [], there), "/b.bin": DATA}) as server:
        _get(server, tmp_path)
    assert server.ranges == ["bytes=4000-", "bytes=4000-"]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "/a.bin"])
def test_redirect_elsewhere_is_final(tmp_path, url):
    server, _ = _fails(tmp_path, "302", then={"status": 302, "headers": {"Location": url}})
    assert len(server.requests) < 20


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("http://no.such.invalid/a", r"no\.such\.invalid .*https_proxy"),
        ("http://127.0.0.1:9/a", r"refused.*3 attempts"),
        ("http://127.0.0.1:port/a", "not an address"),
        ("file:///etc/passwd", "not an address"),
        ("a.bin", "not an address"),
    ],
)
def test_address_that_leads_nowhere(tmp_path, url, match):
    with pytest.raises(DataError, match=match):
        download(url, tmp_path / "a", patience=HASTE)


def test_full_disk(tmp_path, monkeypatch):
    (tmp_path / "a.bin.part").symlink_to("/dev/full")
    with serve(_served()) as server, pytest.raises(DataError, match=r"a\.bin: the disk is full"):
        _get(server, tmp_path)
    (tmp_path / "a.bin.part").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with serve(_served()) as server, pytest.raises(DataError, match="GB are free"):
        _get(server, tmp_path)
    assert (tmp_path / "a.bin.part").stat().st_size == 0


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with serve(_served()) as server, pytest.raises(DataError, match="/file"):
        _get(server, tmp_path / "file")
    assert server.requests == []
