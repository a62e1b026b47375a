import os

import numpy as np
import pytest
import soundfile

from peas.data.speech_commands.module import SpeechCommands
from peas.errors import DataError


@pytest.fixture
def root(tmp_path):
    for word in ("bed", "zero", "_background_noise_"):
        (tmp_path / word).mkdir()
        for clip in range(4):
            soundfile.write(tmp_path / word / f"{clip}.wav", np.full(160, 0.1), 16_000)
    # The official lists name words that a part of the set does not hold.
    (tmp_path / "validation_list.txt").write_text("bed/0.wav\nzero/0.wav\ndog/0.wav\n")
    (tmp_path / "testing_list.txt").write_text("bed/1.wav\n")
    return tmp_path


def test_splits_and_label_order(root):
    module = SpeechCommands(root)
    module.setup("fit")
    assert module.clips("validation").ids == ["bed/0.wav", "zero/0.wav"]
    assert module.clips("test").ids == ["bed/1.wav"]
    train = module.clips("train")
    assert train.ids == ["bed/2.wav", "bed/3.wav", "zero/1.wav", "zero/2.wav", "zero/3.wav"]
    assert train.targets.classes.tolist() == [3, 3, 4, 4, 4]
    info = module.info
    assert len(info.labels) == 35
    assert (info.labels[0], info.labels[34]) == ("backward", "one")
    assert (info.mean, info.std, info.frames) == (-6.845978, 5.5654526, 128)
    assert module.mixup == 0.6


def _reject(root, match):
    with pytest.raises(DataError, match=match):
        SpeechCommands(root).setup("fit")


def test_missing_root(tmp_path):
    _reject(tmp_path / "nowhere", r"nowhere.*speech_commands_v0\.02\.tar\.gz")


def test_no_words(tmp_path):
    _reject(tmp_path, "0 classes")


@pytest.mark.parametrize("name", ["validation_list.txt", "testing_list.txt"])
def test_missing_list(root, name):
    (root / name).unlink()
    _reject(root, name)


def test_unknown_word(root):
    (root / "banana").mkdir()
    _reject(root, "banana is not one of the 35 words")


def test_unknown_word_in_a_list(root):
    (root / "testing_list.txt").write_text("banana/1.wav\n")
    _reject(root, r"testing_list\.txt names banana/1\.wav")


def test_listed_clip_not_there(root):
    (root / "testing_list.txt").write_text("bed/1.wav\nbed/9.wav\n")
    _reject(root, r"1 of the files .*testing_list\.txt .*bed/9\.wav")


def test_clip_listed_twice(root):
    (root / "testing_list.txt").write_text("bed/1.wav\nbed/1.wav\n")
    _reject(root, r"lists bed/1\.wav more than once")


def test_clip_in_both_lists(root):
    (root / "testing_list.txt").write_text("bed/0.wav\n")
    _reject(root, r"in both validation_list\.txt and testing_list\.txt, such as bed/0\.wav")


def test_split_without_clips(root):
    (root / "testing_list.txt").write_text("dog/1.wav\n")
    with pytest.raises(DataError, match=r"testing_list\.txt leaves no clip for test"):
        SpeechCommands(root).clips("test")


def test_noise_and_hidden_files_are_no_clips(root):
    # macOS unpacks such a file beside each real one.
    (root / "bed" / "._2.wav").write_bytes(b"no sound")
    inventory = SpeechCommands(root).inventory()
    assert sorted(inventory.table.ids) == sorted(
        f"{word}/{clip}.wav" for word in ("bed", "zero") for clip in range(4)
    )
    assert inventory.parts == ["train", "validation", "test"]
    assert inventory.part.tolist() == [0, 0, 0, 0, 0, 1, 1, 2]


def test_other_endings_links_and_what_is_left_out(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("disk")
    soundfile.write(elsewhere / "7.flac", np.full(160, 0.1), 16_000)
    (root / "bed" / "3.wav").rename(root / "bed" / "3.WAV")
    (root / "bed" / "more").symlink_to(elsewhere)
    (root / "bed" / "notes.txt").touch()
    module = SpeechCommands(root)
    train = module.clips("train").ids
    assert [name for name in train if name.startswith("bed")] == [
        "bed/2.wav",
        "bed/3.WAV",
        "bed/more/7.flac",
    ]
    note = module.inventory().notes[0]
    assert "4 recordings that this task does not use (such as '_background_noise_')" in note
    assert ".txt: 1" in note


def test_a_list_that_is_not_utf8(root):
    (root / "testing_list.txt").write_bytes(b"bed/caf\xe9.wav\n")
    _reject(root, r"testing_list\.txt: not UTF-8")


def test_a_name_that_is_not_utf8(root):
    (root / "bed" / os.fsdecode(b"\xe9.wav")).touch()
    _reject(root, r"/bed': 1 names of files are not UTF-8")


def test_inventory_names_what_a_list_names(root):
    (root / "zero" / "0.wav").unlink()
    assert "zero/0.wav" in list(SpeechCommands(root).inventory().table.ids)
    _reject(root, r"validation_list\.txt .*zero/0\.wav")


def test_test_archive_may_lie_among_the_words(root):
    (root / "speech_commands_test_set_v0.02" / "yes").mkdir(parents=True)
    assert len(SpeechCommands(root).clips("train")) == 5


def test_statistics_can_be_given(root):
    assert SpeechCommands(root, mean=-1.0, std=2.0).info.mean == -1.0
    assert SpeechCommands(root, mean=-1.0, std=2.0).info.std == 2.0


def test_real_recordings(shared, tmp_path):
    module = SpeechCommands(
        shared / "data" / "speech_commands_3words", num_workers=0, cache_dir=str(tmp_path)
    )
    assert [len(module.clips(split)) for split in ("train", "validation", "test")] == [586, 72, 84]
    batch = next(iter(module.train_dataloader()))
    assert batch["target"].shape == (16, 35)
