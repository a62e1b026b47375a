import hashlib
import socket
import time
from types import SimpleNamespace

import pytest
from faulty_server import Answer, Served, serve

from peas.data.fetch.download import Patience, download
from peas.errors import DataError
from peas.utils import files

DATA = bytes(range(256)) * 40
SHA = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
HASTE = Patience(silence=0.3, pause=0.0)
TOTAL = len(DATA)


def _served(*answers, **then):
    return {"/a.bin": Served(DATA, list(answers), Answer(**then))}


def _get(server, tmp_path, **settings):
    settings = {"checksum": SHA, "patience": HASTE, **settings}
    return download(f"{server.url}/a.bin", tmp_path / "a.bin", **settings)


def _left(folder):
    return sorted(path.name for path in folder.iterdir())


def _arrives(tmp_path, *answers, then=None, **settings):
    """Downloads, and returns the `Range` of every request."""
    with serve(_served(*answers, **(then or {}))) as server:
        assert _get(server, tmp_path, **settings) == tmp_path / "a.bin"
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert _left(tmp_path) == ["a.bin"]
    return server.ranges


def _fails(tmp_path, match, *answers, then=None, **settings):
    with serve(_served(*answers, **(then or {}))) as server:
        with pytest.raises(DataError, match=match) as caught:
            _get(server, tmp_path, **settings)
        assert not (tmp_path / "a.bin").exists()
    return server, str(caught.value)


def test_good_server(tmp_path):
    seen = []
    ranges = _arrives(tmp_path, size=TOTAL, progress=lambda *call: seen.append(call))
    assert ranges == [None]
    assert ("fetching", TOTAL, TOTAL) in seen
    assert seen[-1] == ("checking", TOTAL, TOTAL)


def test_right_file_is_not_fetched_again(tmp_path):
    (tmp_path / "a.bin").write_bytes(DATA)
    assert _arrives(tmp_path) == []


def test_wrong_file_is_fetched_again(tmp_path):
    (tmp_path / "a.bin").write_bytes(DATA[:-1])
    assert _arrives(tmp_path) == [None]


def test_file_without_checksum_is_whole_when_it_has_its_name(tmp_path):
    (tmp_path / "a.bin").write_bytes(DATA)
    assert _arrives(tmp_path, checksum=None) == []


def test_md5(tmp_path):
    assert _arrives(tmp_path, checksum=f"md5:{hashlib.md5(DATA).hexdigest()}") == [None]


def test_dropped_connections_are_resumed(tmp_path):
    drops = [Answer(drop=1000), Answer(drop=2000), Answer(drop=1), Answer(drop=0)]
    ranges = _arrives(tmp_path, *drops)
    assert ranges == [None, "bytes=1000-", "bytes=3000-", "bytes=3001-", "bytes=3001-"]


def test_more_drops_than_fruitless_attempts_are_put_up_with(tmp_path):
    patience = Patience(silence=0.3, pause=0.0, first=2, later=2)
    assert len(_arrives(tmp_path, then={"drop": 500}, patience=patience)) == -(-TOTAL // 500)


@pytest.mark.parametrize("checksum", [SHA, None])
def test_part_of_an_earlier_call_is_resumed_if_a_checksum_is_known(tmp_path, checksum):
    asked = "bytes=4000-" if checksum else None
    with serve(_served(Answer(drop=4000), status=503)) as server:
        with pytest.raises(DataError, match="503"):
            _get(server, tmp_path, checksum=checksum)
        assert server.ranges == [None, *[asked] * 10]
        assert _left(tmp_path) == (["a.bin.part"] if checksum else [])
        server.files["/a.bin"].then = Answer()
        _get(server, tmp_path, checksum=checksum)
    assert server.ranges[11:] == [asked]
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert _left(tmp_path) == ["a.bin"]


def test_wrong_part_is_found_by_the_checksum(tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"x" * 4000)
    assert _arrives(tmp_path) == ["bytes=4000-", None]


@pytest.mark.parametrize("size", [TOTAL, None])
def test_whole_part_is_not_fetched_again(tmp_path, size):
    (tmp_path / "a.bin.part").write_bytes(DATA)
    assert _arrives(tmp_path, size=size) == ([] if size else [f"bytes={TOTAL}-"])


def test_part_longer_than_the_file(tmp_path):
    (tmp_path / "a.bin.part").write_bytes(DATA + b"more")
    assert _arrives(tmp_path) == [f"bytes={TOTAL + 4}-", None]
    (tmp_path / "a.bin").unlink()
    (tmp_path / "a.bin.part").write_bytes(DATA + b"more")
    assert _arrives(tmp_path, size=TOTAL) == [None]


def test_server_that_ignores_range_starts_again(tmp_path):
    ranges = _arrives(tmp_path, Answer(drop=1000, ranges=False), Answer(ranges=False))
    assert ranges == [None, "bytes=1000-"]


def test_server_that_ignores_range_and_always_drops_is_given_up(tmp_path):
    server, _ = _fails(tmp_path, r"ended after 1000 of", then={"drop": 1000, "ranges": False})
    # One that brought bytes, then ten that brought no new ones.
    assert len(server.ranges) == 11


@pytest.mark.parametrize("size", [TOTAL, None])
def test_file_that_changes_between_attempts(tmp_path, size):
    old = Answer(drop=1000, data=b"old" * 5000 if size is None else DATA[::-1])
    # The checksum shows that the parts do not belong together.
    assert _arrives(tmp_path, old, size=size) == [None, "bytes=1000-", None]
    (tmp_path / "a.bin").unlink()
    assert _arrives(tmp_path, old, size=size, checksum=None) == [None, None]


def test_wrong_content_range_starts_again(tmp_path):
    ranges = _arrives(tmp_path, Answer(drop=1000), Answer(start=0))
    assert ranges == [None, "bytes=1000-", None]


def test_server_error_then_good(tmp_path):
    assert _arrives(tmp_path, Answer(status=503), Answer(status=500)) == [None] * 3


def test_retry_after_is_obeyed_within_reason(tmp_path):
    patience = Patience(silence=1, pause=0.0, longest=0.2)
    before = time.monotonic()
    _arrives(tmp_path, Answer(status=429, headers={"Retry-After": "99"}), patience=patience)
    assert 0.2 <= time.monotonic() - before < 10


def test_pauses_grow_to_the_longest(tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr("peas.data.fetch.download.time", SimpleNamespace(sleep=pauses.append))
    patience = Patience(first=6, pause=1.0, longest=5.0)
    _fails(tmp_path, "6 attempts", then={"status": 500}, patience=patience)
    assert pauses == [1, 2, 4, 5, 5]


@pytest.mark.parametrize(("status", "advice"), [(404, "not there"), (403, "rights")])
def test_refusals_are_final(tmp_path, status, advice):
    server, message = _fails(tmp_path, f"answers {status}.*{advice}", then={"status": status})
    assert len(server.ranges) == 1
    assert f"{server.url}/a.bin" in message
    assert "--mirror" in message


@pytest.mark.parametrize("claim", [TOTAL + 100, TOTAL * 2])
def test_length_that_promises_too_much(tmp_path, claim):
    # The connection ends early; the rest that is then asked for does not exist.
    lie = Answer(length=str(claim), drop=TOTAL)
    assert _arrives(tmp_path, lie) == [None, f"bytes={TOTAL}-"]


def test_length_that_promises_too_little(tmp_path):
    server, message = _fails(tmp_path, "another file than expected, twice", then={"length": "100"})
    assert server.ranges == [None, None]
    short = hashlib.sha256(DATA[:100]).hexdigest()
    for word in (f"{server.url}/a.bin", str(tmp_path / "a.bin"), SHA, short):
        assert word in message
    assert _left(tmp_path) == []


def test_wrong_bytes_then_right_ones(tmp_path):
    assert _arrives(tmp_path, Answer(data=b"wrong" * 100)) == [None, None]


def test_wrong_bytes_twice(tmp_path):
    server, _ = _fails(tmp_path, "twice", then={"data": DATA[::-1]})
    assert server.ranges == [None, None]
    assert _left(tmp_path) == []


def test_error_page_in_place_of_a_file_of_known_size_keeps_the_part(tmp_path):
    (tmp_path / "a.bin.part").write_bytes(DATA[:4000])
    page = Answer(data=b"<html>log in</html>", ranges=False)
    ranges = _arrives(tmp_path, page, page, size=TOTAL)
    assert ranges == ["bytes=4000-"] * 3


def test_error_page_for_ever(tmp_path):
    page = {"data": b"<html>log in</html>"}
    server, _ = _fails(tmp_path, f"has 19 bytes, and {TOTAL} are", then=page, size=TOTAL)
    assert len(server.requests) == HASTE.first


def test_silent_server_is_left(tmp_path):
    before = time.monotonic()
    assert _arrives(tmp_path, Answer(drop=1000, hang=True)) == [None, "bytes=1000-"]
    assert time.monotonic() - before < 5


def test_always_silent_server_is_given_up(tmp_path):
    patience = Patience(silence=0.1, pause=0.0, first=3)
    server, _ = _fails(
        tmp_path, r"sent 0 bytes in 0\.1 s", then={"drop": 0, "hang": True}, patience=patience
    )
    assert len(server.ranges) == 3


def test_chunks_without_a_length(tmp_path):
    ranges = _arrives(tmp_path, Answer(chunked=True, drop=1400), then={"chunked": True})
    assert ranges == [None, "bytes=1400-"]


def test_body_without_any_length(tmp_path):
    assert _arrives(tmp_path, then={"length": ""}, checksum=None) == [None]


def test_body_without_any_length_that_breaks_off(tmp_path):
    ranges = _arrives(tmp_path, Answer(length="", drop=1000), size=TOTAL)
    assert ranges == [None, "bytes=1000-"]


@pytest.mark.parametrize("checksum", [SHA, None])
def test_a_byte_now_and_then_is_too_slow(tmp_path, checksum):
    patience = Patience(silence=0.2, slowest=1000, pause=0.0, first=2, later=2)
    before = time.monotonic()
    then = {"trickle": 0.05}
    server, _ = _fails(tmp_path, "in 0.2 s", then=then, patience=patience, checksum=checksum)
    assert len(server.ranges) == 2
    assert time.monotonic() - before < 5


def test_a_header_that_comes_byte_by_byte_is_too_slow(tmp_path):
    patience = Patience(silence=0.2, slowest=1000, pause=0.0, first=1)
    before = time.monotonic()
    _fails(tmp_path, "sent 0 bytes in 0.2 s", then={"slow_header": 0.05}, patience=patience)
    assert time.monotonic() - before < 5


def test_a_proxy_that_answers_byte_by_byte_is_too_slow(tmp_path, monkeypatch):
    patience = Patience(silence=0.2, slowest=1000, pause=0.0, first=1)
    proxy = {"there.invalid:443": Served(b"", then=Answer(slow_header=0.05))}
    before = time.monotonic()
    with serve(proxy) as server:
        monkeypatch.setenv("https_proxy", server.url)
        with pytest.raises(DataError, match=r"sent 0 bytes in 0\.2 s"):
            download("https://there.invalid/a", tmp_path / "a", patience=patience)
    assert server.paths == ["there.invalid:443"]
    assert time.monotonic() - before < 5


@pytest.mark.parametrize("then", [{"length": ""}, {"chunked": True}, {"length": "9" * 30}, {}])
def test_a_body_longer_than_the_file_can_be(tmp_path, then):
    server, _ = _fails(tmp_path, "999", then=then, checksum=None, most=999)
    assert len(server.ranges) == 1
    assert all(path.stat().st_size <= 999 for path in tmp_path.iterdir())


def test_two_lengths(tmp_path):
    two = Answer(again=(("Content-Length", "100"),))
    assert _arrives(tmp_path, two, checksum=None) == [None, None]
    server, _ = _fails(tmp_path / "b", "2 lengths", then={"again": (("Content-Length", "100"),)})
    assert len(server.ranges) == 3


@pytest.mark.parametrize("checksum", [SHA, None])
def test_content_encoding_that_was_not_asked_for(tmp_path, checksum):
    # Apache labels a .tar.gz so, and sends the file as it is.
    labelled = Answer(headers={"Content-Encoding": "x-gzip"})
    ranges = _arrives(tmp_path, labelled, checksum=checksum)
    assert ranges == ([None] if checksum else [None, None])


@pytest.mark.parametrize(
    "wait", ["²", "nan", "-1", "1e9", "Mon, 01 Jan 2024 00:00:00 GMT", "9" * 99]
)
def test_retry_after_that_is_no_number(tmp_path, wait):
    before = time.monotonic()
    # Headers travel as Latin-1, where the raised two is a character.
    _arrives(tmp_path, Answer(status=429, headers={"Retry-After": wait}))
    assert time.monotonic() - before < 5


def test_range_not_satisfiable_is_no_proof_without_a_checksum(tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"x" * TOTAL)
    assert _arrives(tmp_path, checksum=None) == [None]


def test_content_range_of_absurd_length(tmp_path):
    (tmp_path / "a.bin.part").write_bytes(DATA[:4000])
    assert _arrives(tmp_path, Answer(start=int("9" * 4000))) == ["bytes=4000-", None]


def test_empty_file(tmp_path):
    with serve({"/a.bin": b""}) as server:
        _get(server, tmp_path, checksum=None)
    assert (tmp_path / "a.bin").read_bytes() == b""


def test_redirect_keeps_the_range(tmp_path):
    (tmp_path / "a.bin.part").write_bytes(DATA[:4000])
    there = Answer(status=302, headers={"Location": "/b.bin"})
    with serve({"/a.bin": Served(b"", [], there), "/b.bin": DATA}) as server:
        _get(server, tmp_path)
    assert server.ranges == ["bytes=4000-", "bytes=4000-"]
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_redirect_whose_own_body_never_ends(tmp_path):
    there = Answer(status=302, headers={"Location": "/b.bin"}, hang=True)
    with serve({"/a.bin": Served(b"", [], there), "/b.bin": DATA}) as server:
        _get(server, tmp_path)
    assert server.paths == ["/a.bin", "/b.bin"]


@pytest.mark.parametrize("place", ["ftp://127.0.0.1:9/b", "file:///etc/passwd", "data:,b"])
def test_redirect_to_what_is_not_http_is_final(tmp_path, place):
    there = {"status": 302, "headers": {"Location": place}}
    server, message = _fails(tmp_path, "answers 302", then=there)
    assert len(server.requests) == 1
    assert place in message


def test_redirect_in_a_circle_is_final(tmp_path):
    there = {"status": 302, "headers": {"Location": "/a.bin"}}
    server, _ = _fails(tmp_path, "answers 302", then=there)
    assert len(server.requests) < 20


def test_unknown_name(tmp_path):
    with pytest.raises(DataError, match=r"name no\.such\.invalid cannot be resolved.*http_proxy"):
        download("http://no.such.invalid/a", tmp_path / "a", patience=Patience(first=1))


def test_nobody_listens(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a"
    with pytest.raises(DataError, match=r"refuses connections \(3 attempts"):
        download(url, tmp_path / "a", patience=HASTE)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://x/a", "a.bin", "http://", "http://[1"]
)
def test_addresses_that_are_none(tmp_path, url):
    with pytest.raises(DataError, match="not an address"):
        download(url, tmp_path / "a")


def test_address_with_a_wrong_port(tmp_path):
    with pytest.raises(DataError, match="not an address"):
        download("http://127.0.0.1:port/a", tmp_path / "a", patience=HASTE)


def test_full_disk(tmp_path, monkeypatch):
    (tmp_path / "a.bin.part").symlink_to("/dev/full")
    server, message = _fails(tmp_path, r"a\.bin: the disk is full .* GB are free")
    assert "resume" in message
    assert len(server.ranges) == 1


def test_too_little_room_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    _, message = _fails(tmp_path, "GB")
    assert "Make room" in message
    assert (tmp_path / "a.bin.part").stat().st_size == 0


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with serve(_served()) as server, pytest.raises(DataError, match=r"/file"):
        download(f"{server.url}/a.bin", tmp_path / "file" / "a.bin", patience=HASTE)
    assert server.requests == []


def test_folder_that_may_not_be_written():
    # /proc belongs to the kernel: not even root creates files there.
    with serve(_served()) as server, pytest.raises(DataError, match=r"/proc/.*Check the path"):
        download(f"{server.url}/a.bin", files.Path("/proc/a.bin"), patience=HASTE)
