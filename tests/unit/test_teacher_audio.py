"""What the loader gives a teacher, and which clips it calls labelled."""

import numpy as np
import pytest
import soundfile
import torch

from peas.audio import decode as audio
from peas.data.cache import ResampledCache
from peas.data.clips import ClipTable
from peas.data.columns import Strings, Targets
from peas.data.distributed_samplers import ClipKey
from peas.data.mixture import Mixture
from peas.data.module import ClipDataModule
from peas.data.sounds import SoundFiles
from peas.data.speech_commands.keywords import NoiseCrops
from peas.errors import AudioError, ConfigError

RATE = 44_100


class Clips(ClipDataModule):
    """Stretches of one stereo file at 44.1 kHz, with the classes that a test gives."""

    labels = property(lambda self: ["a", "b", "c"])

    def __init__(self, root, classes=((0,), (1,), (2,)), multi_label=True, **settings):
        settings = {"batch_size": 2, "num_workers": 0, "cache_dir": "", **settings}
        super().__init__(root, mean=-6.0, std=5.0, frames=64, **settings)
        self.classes = [list(numbers) for numbers in classes]
        self._multi_label = multi_label

    multi_label = property(lambda self: self._multi_label)

    def clips(self, split):
        count = len(self.classes)
        start = 0.05 * np.arange(count)
        sounds = SoundFiles(
            self.decoder, self.root, Strings(["sound.wav"] * count), start, start + 0.1
        )
        names = Strings([f"clip{number}" for number in range(count)])
        return ClipTable(names, Targets.several(self.classes), sounds)


@pytest.fixture
def root(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (RATE, 2))
    soundfile.write(tmp_path / "sound.wav", samples, RATE, subtype="FLOAT")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("rate", [48_000, RATE, 16_000])
def test_teacher_hears_the_same_stretch_from_the_original_sound(root, rate, workers):
    module = Clips(str(root), num_workers=workers)
    module.teacher_rate = rate
    (batch,) = module.val_dataloader()
    assert batch["teacher_waveform"].dtype == torch.float32
    for row in range(3):
        start = 0.05 * row
        heard = audio.load(root / "sound.wav", rate, start=start, stop=start + 0.1)
        length = int(batch["teacher_length"][row])
        assert torch.equal(batch["teacher_waveform"][row, :length], heard)
        assert not batch["teacher_waveform"][row, length:].any()
        assert length == pytest.approx(0.1 * rate, abs=1)
        assert int(batch["length"][row]) == pytest.approx(1600, abs=1)


def test_without_a_teacher_nothing_is_read_twice(root):
    (batch,) = Clips(str(root)).val_dataloader()
    assert "teacher_waveform" not in batch
    assert "teacher_length" not in batch


def test_a_teachers_sound_is_not_kept(root, tmp_path):
    module = Clips(str(root), cache_dir=str(tmp_path / "cache"))
    module.teacher_rate = 48_000
    for _ in range(2):
        list(module.val_dataloader())
    kept = [np.load(entry) for entry in (tmp_path / "cache").rglob("*.npy")]
    assert sorted(len(entry) for entry in kept) == pytest.approx([1600] * 3, abs=1)


def test_a_random_cut_is_the_same_for_both(root):
    mono = audio.load(root / "sound.wav", RATE)
    soundfile.write(root / "noise.wav", np.tile(mono.numpy(), 4), RATE, subtype="FLOAT")
    table = ClipTable(
        Strings(["a", "b"]),
        Targets.one_each([0, 1]),
        NoiseCrops(16_000, "mean", [root / "noise.wav"], Strings(["a", "b"])),
    )
    module = Clips(str(root))
    module.teacher_rate = RATE
    dataset = module._dataset(table, training=True, seed=3)
    whole = audio.load(root / "noise.wav", RATE)
    places = set()
    for epoch in range(3):
        item = dataset[ClipKey(epoch, 0, 1)]
        windows = whole.unfold(0, len(item.teacher), 1)
        place = int((windows[:, :64] == item.teacher[:64]).all(1).nonzero()[0])
        stop = (place + RATE) / RATE
        again = audio.load(root / "noise.wav", 16_000, start=place / RATE, stop=stop)
        assert torch.equal(again, item.waveform)
        places.add(place)
    assert len(places) == 3


def test_a_teachers_faulty_clip_is_reported_like_any_other(root, monkeypatch):
    load = audio.load

    def refuse(data, rate, *rest, **named):
        if rate == 48_000:
            raise AudioError("sound.wav: too odd for 48 kHz")
        return load(data, rate, *rest, **named)

    monkeypatch.setattr(audio, "load", refuse)
    module = Clips(str(root))
    module.teacher_rate = 48_000
    with pytest.raises(AudioError, match="too odd"):
        list(module.val_dataloader())


def test_mixup_and_a_teacher_exclude_each_other(root):
    module = Clips(str(root), mixup=0.5)
    module.teacher_rate = 48_000
    for loader in (module.train_dataloader, module.val_dataloader):
        with pytest.raises(ConfigError, match=r"data\.init_args\.mixup is 0\.5"):
            loader()


def test_reader_at_its_own_rate_uses_the_cache(root, tmp_path):
    decoder = ResampledCache(tmp_path / "kept", rate=16_000, channels="mean")
    first = decoder.load(root / "sound.wav", rate=16_000)
    assert len(list((tmp_path / "kept").rglob("*.npy"))) == 1
    assert torch.equal(decoder.load(root / "sound.wav"), first)


def test_clips_without_a_class_are_not_labelled(root):
    (batch,) = Clips(str(root), [(0,), (), (1, 2)]).val_dataloader()
    assert batch["labelled"].tolist() == [True, False, True]
    assert batch["labelled"].dtype == torch.bool
    module = Clips(str(root), [(0,), (1,)], multi_label=False)
    (batch,) = module.val_dataloader()
    assert batch["labelled"].tolist() == [True, True]


def test_a_mixed_clip_is_labelled_when_both_are(root):
    dataset = Clips(str(root), [(0,), (), (1,)], mixup=1.0).train_dataloader().dataset
    seen = set()
    for epoch in range(30):
        for clip in range(3):
            item = dataset[ClipKey(epoch, 0, clip)]
            whole = float(item.target.sum())
            seen.add(item.labelled)
            # Two clips of one class each have a whole one between them.
            assert item.labelled == (whole > 0.999)
    assert seen == {True, False}


def test_unlabelled_part_of_a_mixture(root):
    sets = [Clips(str(root)), Clips(str(root), [(), (), ()])]
    mixture = Mixture(sets, batch_size=6, num_workers=0)
    mixture.teacher_rate = 8_000
    (batch,) = mixture.train_dataloader()
    first = [name.startswith(mixture.names[0] + "/") for name in batch["id"]]
    assert batch["labelled"].tolist() == first
    assert sum(first) == 3
    assert batch["teacher_length"].tolist() == pytest.approx([800] * 6, abs=1)
