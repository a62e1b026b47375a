import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch import LightningModule, Trainer

from peas.data.fetch.sources import LIBRISPEECH_CLIPS
from peas.data.librispeech import LibriSpeech
from peas.errors import ConfigError, DataError

CHAPTERS = {
    "train-clean-100": {"103-1240": 3, "103-1241": 2, "40-121026": 2},
    "train-other-500": {"20-205": 2},
    "dev-clean": {"84-121123": 2, "84-121550": 1},
    "test-clean": {"61-70968": 2},
}


def write_chapter(folder: Path, chapter: str, clips: int) -> None:
    speaker, number = chapter.split("-")
    place = folder / speaker / number
    place.mkdir(parents=True)
    for clip in range(clips):
        noise = np.random.default_rng(clip).uniform(-0.5, 0.5, 1_600 + 160 * clip)
        soundfile.write(place / f"{chapter}-{clip:04}.flac", noise, 16_000)
    (place / f"{chapter}.trans.txt").write_text("NOT A SOUND")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    base = tmp_path / "LibriSpeech"
    for subset, chapters in CHAPTERS.items():
        for chapter, clips in chapters.items():
            write_chapter(base / subset, chapter, clips)
    (base / "SPEAKERS.TXT").write_text("; ID | SEX")
    return tmp_path


def module(root: Path, **settings) -> LibriSpeech:
    settings = {
        "subsets": ("train-clean-100", "train-other-500"),
        "batch_size": 2,
        "num_workers": 0,
        "cache_dir": "",
        **settings,
    }
    return LibriSpeech(str(root), **settings)


def test_clips_and_facts(root):
    data = module(root)
    data.setup("fit")
    assert data.clips("train").ids == [
        *("103-1240-0000", "103-1240-0001", "103-1240-0002"),
        *("103-1241-0000", "103-1241-0001", "40-121026-0000", "40-121026-0001"),
        *("20-205-0000", "20-205-0001"),
    ]
    assert data.clips("validation").ids == ["84-121123-0000", "84-121123-0001", "84-121550-0000"]
    assert data.clips("test").ids == ["61-70968-0000", "61-70968-0001"]
    assert (data.info.mean, data.info.std, data.info.frames) == (-4.2677393, 4.5689974, 1024)
    assert data.info.labels == []


def test_default_is_960_hours():
    data = LibriSpeech("nowhere")
    assert sum(LIBRISPEECH_CLIPS[name] for name in data.subsets["train"]) == 281_241
    assert (data.subsets["validation"], data.subsets["test"]) == (("dev-clean",), ("test-clean",))


def test_batches_have_no_classes(root):
    batches = list(module(root).train_dataloader())
    assert [batch["target"].shape for batch in batches] == [(2, 0)] * 4
    assert [len(batch["id"]) for batch in module(root).val_dataloader()] == [3]
    mixed = next(iter(module(root, mixup=1.0).train_dataloader()))
    assert mixed["mixed"].all()
    assert mixed["target"].shape == (2, 0)


def test_root_may_be_the_inner_folder(root):
    inner = module(root / "LibriSpeech")
    assert inner.clips("train").ids == module(root).clips("train").ids
    assert inner.clips("train").sounds.load(0).shape == (1_600,)


def test_wav_files(root):
    chapter = root / "LibriSpeech" / "train-other-500" / "20" / "205"
    for path in chapter.glob("*.flac"):
        soundfile.write(path.with_suffix(".wav"), np.zeros(800), 16_000)
        path.unlink()
    assert len(module(root).clips("train")) == 9
    assert module(root).clips("train").ids[-1] == "20-205-0001"


def test_missing_subset_is_named(root):
    with pytest.raises(DataError) as caught:
        LibriSpeech(str(root)).clips("train")
    message = str(caught.value)
    assert "no folder train-clean-360 of LibriSpeech" in message
    assert "it has train-clean-100, train-other-500, dev-clean, test-clean" in message
    assert "train-clean-360, train-other-500, dev-clean, dev-other" in message
    assert "openslr.org/12" in message


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match=r"no folder train-clean-100.*none of the subsets"):
        module(tmp_path / "nowhere").setup("fit")
    with pytest.raises(DataError, match="no folder train-clean-100"):
        module(tmp_path / "nowhere").inventory()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"subsets": ()}, r"data\.init_args\.subsets"),
        ({"validation": ("dev-clean", "dev-other")}, "dev-other"),
        ({"batch_size": 0}, r"data\.init_args\.batch_size"),
    ],
)
def test_wrong_arguments(root, settings, match):
    with pytest.raises((ConfigError, DataError), match=match):
        module(root, **settings).setup("fit")
    with pytest.raises(DataError, match=r"data\.init_args\.test: test-other"):
        module(root, test=("test-other",)).setup("test")


def test_clips_in_two_files_or_of_another_chapter(root):
    chapter = root / "LibriSpeech" / "train-other-500" / "20" / "205"
    soundfile.write(chapter / "20-205-0001.wav", np.zeros(800), 16_000)
    with pytest.raises(DataError, match="20-205-0001"):
        module(root).setup("fit")
    (chapter / "20-205-0001.wav").unlink()
    write_chapter(root / "LibriSpeech" / "train-other-500", "40-121026", 1)
    with pytest.raises(DataError, match="40-121026-0000"):
        module(root).setup("fit")
    (chapter / "20-205-0001.flac").rename(chapter / "20-206-0001.flac")
    with pytest.raises(DataError, match=r"205/20-206-0001\.flac .*20-205-"):
        module(root).setup("fit")


def test_empty_subset(root):
    for path in (root / "LibriSpeech" / "train-other-500").rglob("*.flac"):
        path.unlink()
    with pytest.raises(DataError, match="train-other-500 holds no clips"):
        module(root).setup("fit")
    assert module(root).inventory().absent == ["train-other-500/"]


def test_part_of_a_subset_is_said(root, caplog):
    module(root).clips("train")
    assert "train-clean-100 has 7 of the 28539 clips" in caplog.text


# --- without validation -------------------------------------------------------------------------


class Recorder(LightningModule):
    """Notes what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": 0, "validation": 0}

    def training_step(self, batch):
        self.seen["train"] += 1
        return self.weight * batch["waveform"].sum()

    def validation_step(self, batch):
        self.seen["validation"] += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def trainer() -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )


@pytest.mark.filterwarnings("ignore:Total length of")
@pytest.mark.parametrize("asked", [("dev-other",), ()])
def test_training_without_validation(root, asked, caplog):
    task, data = Recorder(), module(root, validation=asked, test=("test-other",))
    with caplog.at_level(logging.INFO, "peas"):
        trainer().fit(task, data)
    assert task.seen == {"train": 4, "validation": 0}
    assert "no validation" in caplog.text
    with pytest.raises(DataError, match=r"no clips for validation .*data\.init_args\.validation"):
        trainer().validate(task, data)


def test_training_with_validation(root):
    task = Recorder()
    trainer().fit(task, module(root))
    # One batch of the sanity check, one of the epoch.
    assert task.seen == {"train": 4, "validation": 2}


# --- order --------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_out_one_order(root, world):
    expected = list(module(root, batch_size=6).train_dataloader().sampler)
    got = {}
    for rank in range(world):
        data = module(root, batch_size=6 // world)
        data._rank = lambda rank=rank: (rank, world)
        for key in data.train_dataloader().sampler:
            assert key.position not in got
            got[key.position] = key
    assert [got[position] for position in range(6)] == expected
    assert len({key.clip for key in expected}) == 6


# --- inventory ----------------------------------------------------------------------------------


def test_inventory(root):
    inventory = module(root).inventory()
    assert inventory.parts == ["train", "validation", "test"]
    assert np.bincount(inventory.part).tolist() == [9, 3, 2]
    row = inventory.table.ids.array.to_pylist().index("84-121550-0000")
    assert inventory.speakers[row] == "librispeech:84"
    assert inventory.recordings[row] == "librispeech:84-121550"
    assert inventory.part[row] == 1
    assert inventory.absent == []


def test_inventory_of_a_part_of_the_set(root):
    inventory = LibriSpeech(str(root), validation=("dev-other",)).inventory()
    assert inventory.parts == ["train", "test"]
    assert np.bincount(inventory.part).tolist() == [9, 2]
    assert inventory.absent == ["train-clean-360/"]
