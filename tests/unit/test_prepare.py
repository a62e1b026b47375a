import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import soundfile
from faulty_server import Answer, Served, serve

from peas.__main__ import main
from peas.cli.data import prepare
from peas.cli.data.sets import Bar
from peas.cli.verbs import dispatch
from peas.data.fetch import sources
from peas.data.fetch.download import Patience
from peas.errors import DataError
from peas.utils.files import Locked

HASTE = Patience(silence=5.0, pause=0.0)


@pytest.fixture(autouse=True)
def haste(monkeypatch):
    monkeypatch.setattr(prepare, "PATIENCE", HASTE)


def _wav(value=0.1, rate=16_000, form="WAV"):
    file = io.BytesIO()
    soundfile.write(file, np.full(1600, value), rate, format=form)
    return file.getvalue()


def _zip(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def _tar(files):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def _of(data, source):
    """The table's row with the checksum and length of a miniature."""
    return replace(source, checksum=f"sha256:{hashlib.sha256(data).hexdigest()}", size=len(data))


def _tree(root):
    paths = (path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file())
    return [str(path) for path in paths if path.parts[0] != prepare.STATE]


def _state(root):
    return sorted(path.name for path in (root / prepare.STATE).iterdir())


def _run(set_name, root, server, *options):
    return dispatch(
        ["data", "prepare", set_name, str(root), "--mirror", f"{server.url}/data", *options]
    )


# ESC-50


@pytest.fixture
def esc50(monkeypatch):
    """Files of the archive: two classes, five folds, one clip each."""
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    files = {
        "LICENSE": b"CC BY-NC",
        "README.md": b"# ESC-50",
        "tests/test_a.py": b"",
        "esc.gif": b"",
    }
    for fold in range(1, 6):
        for target, category in ((0, "dog"), (10, "rain")):
            name = f"{fold}-{100 + fold}-A-{target}.wav"
            rows.append(f"{name},{fold},{target},{category},True,{100 + fold},A")
            files[f"audio/{name}"] = _wav(0.01 * fold, 44_100)
    files["meta/esc50.csv"] = "\r\n".join(rows).encode()
    return files


def _esc50_zip(files):
    return _zip({f"ESC-50-master/{name}": data for name, data in files.items()})


# GitHub sends its archives in chunks, without a length, and knows no ranges.
GITHUB = Answer(chunked=True, ranges=False)


def _esc50(tmp_path, files, *answers, options=()):
    served = Served(_esc50_zip(files), list(answers), GITHUB)
    with serve({"/data/master.zip": served}) as server:
        _run("esc50", tmp_path / "esc", server, *options)
    return server


def test_esc50(tmp_path, esc50, capsys):
    server = _esc50(tmp_path, esc50)
    root = tmp_path / "esc"
    assert server.paths == ["/data/master.zip"]
    wanted = [name for name in esc50 if not name.startswith(("tests/", "esc.gif"))]
    assert _tree(root) == sorted(wanted)
    assert (root / "audio" / "1-101-A-0.wav").read_bytes() == esc50["audio/1-101-A-0.wav"]
    assert _state(root) == ["lock", "master.zip.json"]
    printed = capsys.readouterr().out
    assert f"esc50 is downloaded into {root}" in printed
    assert printed.endswith(f"next: peas data verify esc50 {root}\n")


def test_esc50_is_not_fetched_again(tmp_path, esc50, capsys):
    _esc50(tmp_path, esc50)
    assert _esc50(tmp_path, esc50).paths == []
    assert capsys.readouterr().out.count("esc50 is downloaded") == 2


def test_esc50_again_and_kept(tmp_path, esc50):
    _esc50(tmp_path, esc50, options=("--keep_archives",))
    assert "master.zip" in _state(tmp_path / "esc")
    (tmp_path / "esc" / "audio" / "1-101-A-0.wav").unlink()
    assert _esc50(tmp_path, esc50).paths == []
    assert "master.zip" not in _state(tmp_path / "esc")
    assert len(_esc50(tmp_path, esc50, options=("--again",)).paths) == 1


def test_esc50_through_a_bad_link(tmp_path, esc50):
    drop = replace(GITHUB, drop=900)
    server = _esc50(tmp_path, esc50, drop, Answer(status=502), drop)
    assert len(server.paths) == 4


def test_esc50_page_in_place_of_the_archive(tmp_path, esc50, capsys):
    page = Answer(data=b"<html>come back later</html>")
    server = _esc50(tmp_path, esc50, page)
    assert len(server.paths) == 2
    assert "esc50 is downloaded" in capsys.readouterr().out


def test_esc50_never_the_archive(tmp_path, esc50):
    page = Answer(data=b"<html>come back later</html>")
    with pytest.raises(DataError, match=r"master\.zip: damaged, or not the archive"):
        _esc50(tmp_path, esc50, page, page)
    # The next try must not begin with the page.
    assert _state(tmp_path / "esc") == ["lock"]


# Speech Commands


@pytest.fixture
def words(monkeypatch):
    """Archives by name, and the tables' rows made for them."""
    archives = {}
    for version, names in (("0.01", ("bed", "cat")), ("0.02", ("bed", "cat", "dog"))):
        files = {"./README.md": b"", "./LICENSE": b"", "./bed/._0a0_nohash_0.wav": b"macOS"}
        clips = [f"{word}/0a{n}_nohash_0.wav" for word in names for n in range(4)]
        files |= {f"./{clip}": _wav() for clip in clips}
        files |= {f"./_background_noise_/n{n}.wav": _wav() for n in range(6)}
        files["./validation_list.txt"] = "\n".join(clips[:2]).encode()
        files["./testing_list.txt"] = "\n".join([*clips[2:5], ""]).encode()
        test = {f"./{word}/1.wav": _wav() for word in ("_silence_", "_unknown_", "yes")}
        main = sources.SPEECH_COMMANDS[version]
        other = sources.SPEECH_COMMANDS_TEST[version]
        archives[main.name], archives[other.name] = _tar(files), _tar(test)
        monkeypatch.setitem(sources.SPEECH_COMMANDS, version, _of(archives[main.name], main))
        monkeypatch.setitem(sources.SPEECH_COMMANDS_TEST, version, _of(archives[other.name], other))
    return {f"/data/{name}": data for name, data in archives.items()}


def test_speech_commands(tmp_path, words, capsys):
    with serve(words) as server:
        _run("speech_commands", tmp_path, server)
    assert server.paths == ["/data/speech_commands_v0.02.tar.gz"]
    tree = _tree(tmp_path)
    assert "dog/0a3_nohash_0.wav" in tree
    assert "validation_list.txt" in tree
    assert len(tree) == 12 + 6 + 5
    printed = capsys.readouterr().out
    assert _state(tmp_path) == ["lock", "speech_commands_v0.02.tar.gz.json"]
    assert printed.endswith(f"next: peas data verify speech_commands {tmp_path}\n")


def test_speech_commands_with_test_set(tmp_path, words, capsys):
    with serve(words) as server:
        _run("speech_commands", tmp_path, server, "--version", "0.01", "--test_set")
    assert [path[6:] for path in server.paths] == [
        "speech_commands_v0.01.tar.gz",
        "speech_commands_test_set_v0.01.tar.gz",
    ]
    printed = capsys.readouterr().out
    assert printed.endswith(f"next: peas data verify speech_commands {tmp_path} --task v1-12\n")
    # The folder of the test set is taken for no word: a second run finds the same.
    with serve(words) as server:
        _run("speech_commands", tmp_path, server, "--version", "0.01", "--test_set")
    assert server.paths == []


def test_speech_commands_of_two_versions_are_not_mixed(tmp_path, words):
    with serve(words) as server:
        _run("speech_commands", tmp_path, server, "--version", "0.01")
        with pytest.raises(DataError, match=r"holds version 0\.01 of Speech Commands"):
            _run("speech_commands", tmp_path, server)
    assert len(server.paths) == 1


def test_wrong_archive_then_the_right_one(tmp_path, words, capsys):
    path = "/data/speech_commands_v0.02.tar.gz"
    wrong = bytearray(words[path])
    wrong[-20] ^= 1
    with serve({path: Served(words[path], [Answer(data=bytes(wrong))])}) as server:
        _run("speech_commands", tmp_path, server)
    assert server.ranges == [None, None]
    assert "is downloaded" in capsys.readouterr().out


def test_wrong_archive_is_never_unpacked(tmp_path, words):
    path = "/data/speech_commands_v0.02.tar.gz"
    wrong = bytearray(words[path])
    wrong[-20] ^= 1
    with (
        serve({path: bytes(wrong)}) as server,
        pytest.raises(DataError, match="checksum"),
    ):
        _run("speech_commands", tmp_path, server)
    assert _tree(tmp_path) == []
    assert _state(tmp_path) == ["lock"]


# LibriSpeech


@pytest.fixture
def books(monkeypatch):
    """Archives of three parts; part n has n clips for each of two speakers."""
    archives = {}
    for clips, subset in enumerate(("dev-clean", "train-clean-100", "train-other-500"), 1):
        files = {"LibriSpeech/SPEAKERS.TXT": b"", "LibriSpeech/README.TXT": b""}
        for speaker in (19, 84):
            for clip in range(clips):
                name = f"LibriSpeech/{subset}/{speaker}/7/{speaker}-7-{clip:04}.flac"
                files[name] = _wav(form="FLAC") + os.urandom(3000)
            files[f"LibriSpeech/{subset}/{speaker}/7/{speaker}-7.trans.txt"] = b""
        archives[f"/data/{subset}.tar.gz"] = data = _tar(files)
        monkeypatch.setitem(sources.LIBRISPEECH, subset, _of(data, sources.LIBRISPEECH[subset]))
    return archives


def test_librispeech(tmp_path, books):
    with serve(books) as server:
        _run("librispeech", tmp_path, server, "--subsets", "train-clean-100, dev-clean")
    assert server.paths == ["/data/train-clean-100.tar.gz", "/data/dev-clean.tar.gz"]
    tree = _tree(tmp_path)
    assert "dev-clean/84/7/84-7-0000.flac" in tree
    assert "SPEAKERS.TXT" in tree


def test_librispeech_goes_on_with_the_part_that_failed(tmp_path, books, capsys):
    books["/data/train-other-500.tar.gz"] = Served(
        books["/data/train-other-500.tar.gz"], [], Answer(status=503)
    )
    options = ("--subsets", "train-clean-100,train-other-500")
    with serve(books) as server:
        with pytest.raises(DataError, match="answers 503"):
            _run("librispeech", tmp_path, server, *options)
        server.files["/data/train-other-500.tar.gz"].then = Answer()
        before = len(server.paths)
        _run("librispeech", tmp_path, server, *options)
    assert server.paths[before:] == ["/data/train-other-500.tar.gz"]


def test_librispeech_with_the_mark_of_another_archive(tmp_path, books):
    with serve(books) as server:
        _run("librispeech", tmp_path, server, "--subsets", "dev-clean")
        mark = tmp_path / prepare.STATE / "dev-clean.tar.gz.json"
        mark.write_text(mark.read_text().replace("sha256:", "md5:"))
        _run("librispeech", tmp_path, server, "--subsets", "dev-clean")
    assert len(server.paths) == 2


CHILD = """
import sys
from dataclasses import replace
from peas.cli.data import prepare
from peas.data.fetch import sources
url, root, checksum, size = sys.argv[1:]
old = sources.LIBRISPEECH["dev-clean"]
sources.LIBRISPEECH["dev-clean"] = replace(old, checksum=checksum, size=int(size))
prepare.prepare("librispeech", root, mirror=url, subsets="dev-clean")
"""


def test_killed_in_the_middle_and_restarted(tmp_path, books, capsys):
    path = "/data/dev-clean.tar.gz"
    served = Served(books[path], [Answer(drop=2000, hang=True)])
    source = sources.LIBRISPEECH["dev-clean"]
    with serve({path: served}) as server:
        child = subprocess.Popen(
            [
                *(sys.executable, "-c", CHILD, f"{server.url}/data", str(tmp_path)),
                *(source.checksum, str(source.size)),
            ],
            stdout=subprocess.PIPE,
        )
        part = tmp_path / prepare.STATE / "dev-clean.tar.gz.part"
        for _ in range(1000):
            if part.exists() and part.stat().st_size == 2000:
                break
            time.sleep(0.01)
        with pytest.raises(Locked, match=rf"process {child.pid} on "):
            _run("librispeech", tmp_path, server, "--subsets", "dev-clean")
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert _tree(tmp_path) == []
        _run("librispeech", tmp_path, server, "--subsets", "dev-clean")
    assert server.ranges == [None, "bytes=2000-"]


# AudioSet


@pytest.fixture
def tables(monkeypatch):
    head = "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=2, num_segs=2\n"
    head += "# YTID, start_seconds, end_seconds, positive_labels\n"
    files, rows = {}, []
    for n, source in enumerate(sources.AUDIOSET):
        if source.checksum is None:
            table = resources.files("peas.data.labels") / "audioset_class_labels_indices.csv"
            files[f"/data/{source.name}"] = table.read_bytes()
            rows.append(source)
            continue
        clips = f'--PJHxphWE{n}, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n_-{n}hevVpy1s, 0.000, '
        data = (head + clips + '10.000, "/m/012xff"\n').encode()
        files[f"/data/{source.name}"] = data
        rows.append(_of(data, source))
    monkeypatch.setattr(sources, "AUDIOSET", tuple(rows))
    return files


def test_audioset(tmp_path, tables, capsys):
    with serve(tables) as server:
        _run("audioset", tmp_path, server)
        assert sorted(server.paths) == sorted(tables)
        _run("audioset", tmp_path, server)
        assert len(server.paths) == 4
    assert [f"/data/{name}" for name in _tree(tmp_path)] == sorted(tables)
    printed = capsys.readouterr().out
    assert "obtain it yourself" in printed
    assert "Y<id>.wav" in printed


# The command


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["folder", "x"], "'esc50'"),
        (["esc50"], "ROOT"),
        (["esc50", "x", "--workers", "-1"], "--workers"),
        (["esc50", "x", "--workers", "many"], "--workers"),
        (["esc50", "x", "--version", "0.01"], "--version"),
        (["librispeech", "x", "--subsets", "dev-clean,all"], "'all'"),
        (["librispeech", "x", "--subsets", ","], "--subsets"),
        (["speech_commands", "x", "--version", "3"], "0.01"),
    ],
)
def test_wrong_command_lines(tmp_path, monkeypatch, capsys, argv, match):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "prepare", *argv]) == 2
    assert match in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_mirror_that_is_no_address(tmp_path):
    with pytest.raises(DataError, match=r"'mirror/master\.zip' is not an address"):
        dispatch(["data", "prepare", "esc50", str(tmp_path), "--mirror", "mirror"])


def test_root_that_is_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(DataError, match=r"a/\.prepare: Not a directory"):
        dispatch(["data", "prepare", "esc50", str(tmp_path / "a")])


def test_ctrl_c(tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "download", interrupt)
    assert main(["data", "prepare", "esc50", str(tmp_path)]) == 130
    assert "resumes" in capsys.readouterr().err


def test_checksums_are_torchaudios():
    # The same file is torchaudio's by its own table, wherever that has one.
    from torchaudio.datasets import librispeech, speechcommands

    theirs = {
        url.rpartition("/")[2]: f"sha256:{checksum}"
        for module in (librispeech, speechcommands)
        for url, checksum in module._CHECKSUMS.items()
    }
    ours = {
        source.name: source.checksum
        for source in [*sources.LIBRISPEECH.values(), *sources.SPEECH_COMMANDS.values()]
    }
    assert len(ours) == 9
    assert {name: theirs[name] for name in ours} == ours


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_one_bar_on_a_terminal(monkeypatch):
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Bar() as bar:
        show = bar.of("a.zip")
        show("fetching", 5 * 10**8, 2 * 10**9)
        bar._bar.refresh()
        show("unpacking", 10**6, None)
        bar._bar.refresh()
        show("decoding", 3, 2000)
        bar._bar.refresh()
        assert len(bar._bar.tasks) == 1
    for text in ("a.zip: fetching", "0.50 of 2.00 GB", "1.00 MB", "3 of 2,000 clips"):
        assert text in terminal.getvalue()


def test_few_lines_without_a_terminal(capsys):
    with Bar() as bar:
        show = bar.of("a.zip")
        for done in range(1000):
            show("fetching", done * 1000, 10**6)
        show("unpacking", 10, 2000)
    assert capsys.readouterr().out.splitlines() == [
        "a.zip: fetching 0.00 of 1.00 MB",
        "a.zip: unpacking 0.01 of 2.00 kB",
    ]


def test_lines_now_and_then_without_a_terminal(capsys):
    with Bar(every=0.0) as bar:
        for done in range(3):
            bar.of("a.zip")("fetching", done, None)
            time.sleep(0.001)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_home_folder(tmp_path, esc50, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    served = Served(_esc50_zip(esc50), [], GITHUB)
    with serve({"/data/master.zip": served}) as server:
        _run("esc50", Path("~/esc"), server)
    assert (tmp_path / "esc" / "meta").is_dir()
