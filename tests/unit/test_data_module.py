import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

import peas.data
from peas.audio.frontend import LogMel
from peas.data.clips import ClipDataset, input_samples
from peas.data.columns import Targets
from peas.data.distributed_samplers import ClipKey
from peas.data.loader import BadClips
from peas.data.module import ClipDataModule
from peas.errors import AudioError, ConfigError, DataError


class Tones(ClipDataModule):
    """Twenty clips of unequal length in three classes, made by the fixture `tones`."""

    def __init__(self, root, **settings):
        settings = {"batch_size": 4, "num_workers": 0, "cache_dir": "", **settings}
        super().__init__(root, mean=-6.0, std=5.0, frames=64, **settings)

    @property
    def labels(self):
        return ["a", "b", "c"]

    def clips(self, split):
        names = sorted(path.name for path in self.root.glob("*.wav"))
        return self.files(names, names, Targets.one_each([int(name[:2]) % 3 for name in names]))


@pytest.fixture
def tones(tmp_path):
    root = tmp_path / "tones"
    root.mkdir()
    rng = np.random.default_rng(0)
    for clip in range(20):
        soundfile.write(root / f"{clip:02}.wav", rng.uniform(-0.5, 0.5, 800 + 40 * clip), 16_000)
    return root


def _read(loader):
    return [(batch["id"], batch["waveform"], batch["target"]) for batch in loader]


def _equal(left, right):
    return len(left) == len(right) and all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2])
        for a, b in zip(left, right, strict=True)
    )


def test_facts_and_no_hyperparameters(tones):
    module = Tones(tones)
    assert module.info.labels == ["a", "b", "c"]
    assert (module.info.mean, module.info.std, module.info.frames) == (-6.0, 5.0, 64)
    assert not module.info.multi_label
    assert not module.hparams


def test_public_classes_are_imported_on_demand():
    assert peas.data.ESC50.__name__ == "ESC50"
    with pytest.raises(AttributeError, match="Nothing"):
        _ = peas.data.Nothing


def test_batches_of_training_and_evaluation(tones):
    module = Tones(tones)
    batches = list(module.train_dataloader())
    assert [batch["step"] for batch in batches] == [0, 1, 2, 3, 4]
    assert all(batch["row"].tolist() == [0, 1, 2, 3] for batch in batches)
    assert sorted(name for batch in batches for name in batch["id"]) == module.clips("train").ids
    evaluation = list(module.val_dataloader())
    assert [len(batch["id"]) for batch in evaluation] == [8, 8, 4]
    assert [name for batch in evaluation for name in batch["id"]] == module.clips("test").ids
    assert len(next(iter(Tones(tones, eval_batch_size=3).test_dataloader()))["id"]) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_goes_on_inside_an_epoch(tones, workers):
    whole = _read(Tones(tones, mixup=0.5).train_dataloader())
    stopped = Tones(tones, mixup=0.5, num_workers=workers).train_dataloader()
    batches = iter(stopped)
    before = [next(batches) for _ in range(2)]
    state = stopped.state_dict()
    resumed = Tones(tones, mixup=0.5, num_workers=workers).train_dataloader()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert [batch["id"] for batch in before] == [batch[0] for batch in whole[:2]]
    assert _equal(_read(resumed), whole[2:])
    assert _equal(_read(resumed), whole)


def test_place_of_another_epoch_is_not_used(tones):
    loader = Tones(tones).train_dataloader()
    loader.load_state_dict({"epoch": 0, "read": 5})
    loader.sampler.set_epoch(1)
    assert len(_read(loader)) == 5


@pytest.mark.parametrize(("workers", "seconds"), [(1, 7.0), (0, 0.0)])
def test_every_loader_has_the_time_limit_of_the_settings(tones, workers, seconds):
    # Nothing is forked before the first batch is asked for.
    module = Tones(tones, num_workers=workers, timeout=7.0)
    for split in ("train", "val", "test", "predict"):
        assert getattr(module, f"{split}_dataloader")().timeout == seconds, split


def _state_after(loader, batches):
    places = iter(loader)
    for _ in range(batches):
        next(places)
    return loader.state_dict()


@pytest.mark.parametrize(
    ("changes", "rank_and_world", "said"),
    [
        ({"batch_size": 5}, (0, 1), r"2 batches of 4 clips.* 5"),
        ({}, (1, 2), r"2 batches of 4 clips.* 8"),
        ({"sampling": "balanced"}, (0, 1), "order"),
        ({"label_fraction": 0.5}, (0, 1), "order"),
    ],
)
def test_a_place_inside_an_epoch_means_the_same_clips_or_is_refused(
    tones, changes, rank_and_world, said
):
    state = _state_after(Tones(tones).train_dataloader(), 2)
    module = Tones(tones, **changes)
    module._rank = lambda: rank_and_world
    loader = module.train_dataloader()
    loader.load_state_dict(state)
    with pytest.raises(ConfigError, match=said):
        next(iter(loader))
    # Where another epoch begins, it is no matter.
    loader.load_state_dict(state)
    loader.sampler.set_epoch(1)
    assert next(iter(loader))


def test_rows_that_came_into_another_order_move_the_place(tones, monkeypatch):
    state = _state_after(Tones(tones).train_dataloader(), 2)
    module = Tones(tones)
    table = module.clips("train")
    monkeypatch.setattr(module, "clips", lambda split: table.take(range(len(table))[::-1]))
    loader = module.train_dataloader()
    loader.load_state_dict(state)
    with pytest.raises(ConfigError, match="order"):
        next(iter(loader))


def test_the_same_global_batch_on_more_processes_keeps_the_place(tones):
    state = _state_after(Tones(tones).train_dataloader(), 2)
    names = []
    for rank in range(2):
        module = Tones(tones, batch_size=2)
        module._rank = lambda rank=rank: (rank, 2)
        loader = module.train_dataloader()
        loader.load_state_dict(state)
        names += [name for batch in loader for name in batch["id"]]
    first = [batch["id"] for batch in Tones(tones).train_dataloader()]
    assert sorted(names) == sorted(name for ids in first[2:] for name in ids)


def test_the_place_of_an_older_checkpoint_is_taken_as_it_is(tones):
    loader = Tones(tones).train_dataloader()
    loader.load_state_dict({"epoch": 0, "read": 3})
    assert len(_read(loader)) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_mixtures_do_not_depend_on_workers_or_ranks(tones, workers):
    whole = {
        name: (waveform[:length], target)
        for batch in Tones(tones, mixup=0.7).train_dataloader()
        for name, waveform, length, target in zip(
            batch["id"], batch["waveform"], batch["length"], batch["target"], strict=True
        )
    }
    for rank in range(2):
        module = Tones(tones, mixup=0.7, num_workers=workers, batch_size=2)
        module._rank = lambda rank=rank: (rank, 2)
        for batch in module.train_dataloader():
            assert batch["row"].tolist() == [rank, rank + 2]
            assert batch["global_size"] == 4
            for row, name in enumerate(batch["id"]):
                waveform, target = whole[name]
                assert torch.equal(batch["waveform"][row, : len(waveform)], waveform)
                assert torch.equal(batch["target"][row], target)


def test_mixed_targets_add_up(tones):
    module = Tones(tones, mixup=1.0)
    dataset = module.train_dataloader().dataset
    seen = set()
    for epoch in range(4):
        for clip in range(20):
            item = dataset[ClipKey(epoch, 0, clip)]
            assert item.mixed
            assert item.waveform.shape == (800 + 40 * clip,)
            assert abs(item.waveform.mean()) < 1e-6
            assert item.target.sum() == pytest.approx(1.0, abs=1e-6)
            seen.add(int((item.target > 0).sum()))
    # Partners of the same class give one whole class, others two shares.
    assert seen == {1, 2}


def test_mixup_happens_as_often_as_asked(tones):
    dataset = Tones(tones, mixup=0.3).train_dataloader().dataset
    items = [dataset[ClipKey(epoch, 0, clip)] for epoch in range(50) for clip in range(20)]
    assert sum(item.mixed for item in items) / len(items) == pytest.approx(0.3, abs=0.05)
    assert all(item.target.shape == (3,) for item in items)


def test_plain_index_in_training_is_a_training_clip(tones):
    dataset = Tones(tones, mixup=1.0).train_dataloader().dataset
    assert dataset[3].position == 3
    assert dataset[3].mixed


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_clip_stops_with_one_message(tones, workers):
    (tones / "05.wav").write_bytes(b"no sound")
    with pytest.raises(AudioError, match=r"05\.wav") as caught:
        _read(Tones(tones, num_workers=workers).train_dataloader())
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_clip_is_left_out_and_counted(tones, workers, caplog):
    (tones / "05.wav").write_bytes(b"no sound")
    module = Tones(tones, num_workers=workers, on_error="skip")
    loader = module.train_dataloader()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            batches = list(loader)
            assert sum(len(batch["id"]) for batch in batches) == 19
            assert len(batches) == 5
    short = next(batch for batch in batches if len(batch["id"]) == 3)
    assert len(set(short["row"].tolist())) == 3
    assert module.bad_clips.unreadable == {"05.wav"}
    assert len([record for record in caplog.records if "05.wav" in record.message]) == 1


def test_batch_without_a_readable_clip(tones):
    for path in tones.glob("*.wav"):
        path.write_bytes(b"no sound")
    module = Tones(tones, on_error="skip")
    assert list(module.val_dataloader()) == []
    with pytest.raises(DataError, match="no clip of a training batch"):
        list(module.train_dataloader())


def test_silent_and_short_clips_are_fine_and_told_once(tones, caplog):
    soundfile.write(tones / "03.wav", np.zeros(1000), 16_000)
    soundfile.write(tones / "04.wav", np.ones(200) * 0.1, 16_000)
    module = Tones(tones)
    assert len(_read(module.train_dataloader())) == 5
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        module.teardown("fit")
        module.teardown("fit")
    lines = [record.message for record in caplog.records if "silent" in record.message]
    assert lines == ["bad clips: 1 silent, 1 shorter than one frame, 0 unreadable"]


def test_clips_that_lose_their_end_are_counted_once(tones, printed):
    # 64 frames hold 10,639 samples: one more would be the 65th frame's.
    for clip, samples in ((3, 10_639), (4, 10_640), (5, 20_000)):
        soundfile.write(tones / f"{clip:02}.wav", np.full(samples, 0.1), 16_000)
    module = Tones(tones)
    _read(module.train_dataloader())
    _read(module.val_dataloader())
    assert module.bad_clips.cut == {"04.wav", "05.wav"}
    other = BadClips(cut={"05.wav", "99.wav"}, silent={"x"})
    module.bad_clips.join(other)
    module.report_bad_clips()
    module.teardown("fit")
    (line,) = [record.message for record in printed.records if "bad clips" in record.message]
    assert line.startswith("bad clips: 1 silent, 0 shorter than one frame, 0 unreadable, 3 longer")


def test_frames_count_as_the_front_end_has_them():
    front_end = LogMel(rate=16_000, frames=200, mean=0.0, std=1.0)
    longest = input_samples(64, 16_000)
    for samples, frames in ((longest, 64), (longest + 1, 65)):
        wave = torch.zeros(1, samples)
        assert int(front_end(wave, torch.tensor([samples])).frames) == frames


@pytest.mark.parametrize(
    ("batch", "left", "size"), [(4, None, 4), (6, "2 of its 20", 6), (19, "1 of its 20", 19)]
)
def test_clips_that_an_epoch_leaves_out_are_said_once(tones, printed, batch, left, size):
    module = Tones(tones, batch_size=batch)
    for _ in range(2):
        module.train_dataloader()
    lines = [record.message for record in printed.records if "leaves out" in record.message]
    assert len(lines) == (left is not None)
    if left:
        assert left in lines[0]
        assert f"global batch of {size}" in lines[0]


@pytest.mark.parametrize(
    ("setting", "value"),
    [("mixup", 1.5), ("mixup", -0.1), ("batch_size", 0), ("eval_batch_size", 0), ("frames", 0)],
)
def test_impossible_settings_name_their_key(tones, setting, value):
    with pytest.raises(ConfigError, match=rf"data\.init_args\.{setting}"):
        Tones(tones, **{setting: value}) if setting != "frames" else ClipDataModule.__init__(
            Tones.__new__(Tones), tones, batch_size=1, mean=0.0, std=1.0, frames=value
        )


def test_training_set_smaller_than_a_batch(tones):
    with pytest.raises(DataError, match=r"20 clips.*global batch of 21"):
        Tones(tones, batch_size=21).train_dataloader()


def test_item_needs_no_state_in_the_worker(tones):
    table = Tones(tones).clips("train")
    settings = {"rate": 16_000, "classes": 3, "training": True, "mixup": 1.0}
    first = ClipDataset(table, seed=1, **settings)[ClipKey(3, 0, 7)]
    again = ClipDataset(table, seed=1, **settings)[ClipKey(3, 0, 7)]
    other = ClipDataset(table, seed=2, **settings)[ClipKey(3, 0, 7)]
    assert torch.equal(first.waveform, again.waveform)
    assert not torch.equal(first.waveform, other.waveform)


class Recorder(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.read = []

    def training_step(self, batch):
        self.read.append((self.current_epoch, batch["step"], tuple(batch["id"])))
        return self.weight * batch["waveform"].sum()

    def validation_step(self, batch):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def _fit(tones, workers, checkpoint=None, **settings):
    task = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing="callbacks" in settings,
        use_distributed_sampler=False,
        **settings,
    )
    trainer.fit(task, Tones(tones, num_workers=workers), ckpt_path=checkpoint, weights_only=True)
    return task.read


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "moment",
    [
        {"every_n_train_steps": 1},
        {"save_on_train_epoch_end": False},
        {"save_on_train_epoch_end": True},
    ],
    ids=["steps", "validation_end", "epoch_end"],
)
def test_trainer_goes_on_from_every_checkpoint(tones, tmp_path, workers, moment):
    folder = tmp_path / "checkpoints"
    saver = ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, **moment)
    whole = _fit(tones, workers, callbacks=[saver])
    assert len(whole) == 15
    saved = {int(Path(file).stem.split("=")[1]): file for file in folder.iterdir()}
    # After the first step, inside an epoch, at an epoch's end; all steps would take too long.
    for step in sorted(set(saved) & {1, 5, 8, 10}):
        assert _fit(tones, workers, saved[step]) == whole[step:], step
