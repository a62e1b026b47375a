"""The one walk of folders: what it finds, follows, refuses and counts."""

import os

import pyarrow as pa
import pytest

from peas.data.walk import FOREIGN, HIDDEN, LINKED, NOT_UTF8, OTHER, PassedOver, walk
from peas.errors import DataError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_every_ending_in_either_case_and_what_is_passed_over(tmp_path):
    sounds = [f"a/x.{end}" for end in "wav WAV au caf w64 aifc rf64 sph wave snd voc".split()]  # noqa: SIM905
    touch(tmp_path, *sounds, "a/deep.wav/er/y.flac", "a/notes.txt", "a/b.TXT", "README")
    touch(tmp_path, "a/._x.wav", ".cache/z.wav", "a/phone.m4a")
    found = walk(tmp_path)
    assert found.sorted_paths() == sorted([*sounds, "a/deep.wav/er/y.flac"])
    assert found.passed.counts == {HIDDEN: 2, OTHER: 3, FOREIGN: 1}
    assert found.passed.examples[FOREIGN] == "a/phone.m4a"
    assert found.passed.endings == {".txt": 2, "no ending": 1}
    assert found.passed.sound
    said = str(found.passed)
    assert said.startswith("left out 1 files that only ffmpeg")
    assert "'.cache'" in said
    assert ".txt: 2" in said
    assert walk(tmp_path, "a").sorted_paths() == found.sorted_paths()
    assert walk(tmp_path, endings=(".m4a",)).paths == pa.array(["a/phone.m4a"], pa.large_string())


def test_nothing_to_say_of_a_plain_folder(tmp_path):
    touch(tmp_path, "a/1.wav")
    passed = walk(tmp_path).passed
    assert not passed
    assert not passed.sound


def test_counts_of_several_walks():
    one, other = PassedOver(), PassedOver()
    one.add(OTHER, "b.txt")
    other.add(OTHER, "a.md", 2)
    one.join(other)
    assert (one.counts[OTHER], one.examples[OTHER]) == (3, "a.md")
    assert one.endings == {".txt": 1, ".md": 2}


def test_links_at_every_depth_are_followed_and_each_folder_is_read_once(tmp_path):
    root = tmp_path / "set"
    touch(root, "a/real/1.wav")
    touch(tmp_path, "disk/2.wav", "disk/more/3.wav", "far/4.wav")
    (tmp_path / "disk" / "further").symlink_to(tmp_path / "far")
    (root / "a" / "linked").symlink_to(tmp_path / "disk")
    (root / "a" / "again").symlink_to(root / "a" / "real")
    (root / "a" / "twice").symlink_to(tmp_path / "disk")
    (root / "a" / "5.wav").symlink_to(tmp_path / "far" / "4.wav")
    found = walk(root, "a")
    # By its own path where it has one, else by the first link that leads there.
    assert found.sorted_paths() == [
        "a/5.wav",
        "a/linked/2.wav",
        "a/linked/further/4.wav",
        "a/linked/more/3.wav",
        "a/real/1.wav",
    ]
    assert found.passed.counts == {LINKED: 2}


@pytest.mark.parametrize("target", ["..", "../..", "../../..", ".", "round"])
def test_loops_are_refused_by_name(tmp_path, target):
    touch(tmp_path, "set/a/b/1.wav")
    (tmp_path / "set" / "a" / "b" / "round").symlink_to(target)
    found = walk(tmp_path / "set", "a")
    assert "a/b/1.wav" in found.paths.to_pylist()
    assert len(found.paths) == 1
    with pytest.raises(DataError, match=r"the link \S+/round\S* leads back"):
        found.sorted_paths()


def test_a_folder_that_is_its_own_root(tmp_path):
    touch(tmp_path, "b/1.wav")
    (tmp_path / "a").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"link \S+/a leads back"):
        walk(tmp_path, "a").sorted_paths()


def test_names_that_are_not_utf8(tmp_path):
    touch(tmp_path, "a/1.wav", os.fsdecode(b"a/caf\xe9.wav"), os.fsdecode(b"\xe9/2.wav"))
    touch(tmp_path, os.fsdecode(b"a/\xe9.txt"))
    found = walk(tmp_path)
    assert found.paths.to_pylist() == ["a/1.wav"]
    assert found.passed.counts[NOT_UTF8] == 2
    str(found.passed).encode()
    with pytest.raises(DataError, match=r"2 names of files are not UTF-8, such as '.*\\udce9"):
        found.sorted_paths()


def test_a_folder_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"/no: cannot be listed \(No such"):
        walk(tmp_path, "no")
