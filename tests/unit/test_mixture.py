"""Several sets as one: names, labels, weights, order, restarts, and what is shared."""

import logging
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer

from peas.data.clips import ClipTable, Inventory
from peas.data.columns import Strings, Targets
from peas.data.librispeech import LibriSpeech
from peas.data.mixture import Mixture
from peas.data.module import ClipDataModule
from peas.errors import AudioError, ConfigError, DataError


class Tones(ClipDataModule):
    """Made-up clips of given classes; their recordings and statistics are the test's to choose."""

    def __init__(
        self,
        root,
        *,
        classes=("a", "b"),
        train=6,
        evaluation=2,
        multi=False,
        recordings=None,
        mean=-6.0,
        std=5.0,
        frames=64,
    ):
        super().__init__(root, batch_size=1, mean=mean, std=std, frames=frames, cache_dir="")
        self.classes = list(classes)
        self.sizes = {"train": train, "validation": evaluation, "test": evaluation}
        self.multi = multi
        self.recordings = recordings
        for split, count in self.sizes.items():
            for clip in range(count):
                path = self.root / split / f"{clip:02}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                noise = np.random.default_rng(clip).uniform(-0.5, 0.5, 600 + 10 * clip)
                soundfile.write(path, noise, 16_000)

    @property
    def labels(self):
        return self.classes

    @property
    def multi_label(self):
        return self.multi

    def clips(self, split):
        names = [f"{split}/{clip:02}.wav" for clip in range(self.sizes[split])]
        classes = len(self.classes) or 1
        targets = Targets.one_each([clip % classes for clip in range(len(names))])
        if self.multi:
            both = [[clip % classes, (clip + 1) % classes] for clip in range(len(names))]
            targets = Targets.several(both)
        return self.files(names, names, targets)

    def inventory(self):
        plain = super().inventory()
        if self.recordings is None:
            return plain
        return Inventory(
            plain.table,
            plain.parts,
            plain.part,
            Strings(self.recordings),
            absent=["lost.wav"],
            notes=["made up"],
        )


@pytest.fixture
def pair(tmp_path):
    """Ten clips of three classes and eight of two, one of which both have."""
    return [
        Tones(tmp_path / "one", classes=("a", "b", "c"), train=10),
        Tones(tmp_path / "two", classes=("d", "b"), train=8, evaluation=3),
    ]


@pytest.fixture
def speech(tmp_path):
    root = tmp_path / "libri"
    chapter = root / "train-clean-100" / "103" / "1240"
    chapter.mkdir(parents=True)
    for clip in range(4):
        soundfile.write(chapter / f"103-1240-{clip:04}.flac", np.full(800, 0.1), 16_000)
    return LibriSpeech(str(root), subsets=("train-clean-100",), cache_dir="")


def mixture(sets, **settings):
    return Mixture(sets, **{"batch_size": 3, "num_workers": 0, **settings})


def test_clips_have_the_names_of_their_sets(pair):
    data = mixture(pair)
    data.setup("fit")
    table = data.clips("train")
    assert len(table) == 18
    assert data.names == ["test_mixture", "test_mixture-2"]
    assert table.ids[0] == "test_mixture/train/00.wav"
    assert table.ids[10] == "test_mixture-2/train/00.wav"
    assert len(set(table.ids)) == 18
    for row in (0, 9, 10, 17):
        own = pair[0] if row < 10 else pair[1]
        place = row if row < 10 else row - 10
        assert table.sounds.source(row) == own.clips("train").sounds.source(place)
    assert table.sounds.load(17).shape == (670,)


def test_labels_are_joined_by_name(pair):
    data = mixture(pair)
    assert data.labels == ["a", "b", "c", "d"]
    assert not data.multi_label
    classes = data.clips("train").targets.classes
    assert [data.labels[c] for c in classes[:4]] == ["a", "b", "c", "a"]
    assert [data.labels[c] for c in classes[10:13]] == ["d", "b", "d"]
    batch = next(iter(data.train_dataloader()))
    assert batch["target"].shape == (3,)


def test_facts_are_the_first_sets_or_given(pair):
    pair[1].mean = 9.0
    info = mixture(pair).info
    assert (info.mean, info.std, info.frames) == (-6.0, 5.0, 64)
    info = mixture(pair, mean=-1.0, std=2.0, frames=100).info
    assert (info.mean, info.std, info.frames) == (-1.0, 2.0, 100)
    info = mixture(pair, frames=100).info
    assert (info.mean, info.std, info.frames) == (-6.0, 5.0, 100)


def test_a_set_with_several_classes_a_clip(pair, tmp_path):
    data = mixture([pair[0], Tones(tmp_path / "m", classes=("b", "e"), multi=True)])
    assert data.info.multi_label
    table = data.clips("train")
    assert [data.labels[c] for c in table.targets[10]] == ["b", "e"]
    targets = torch.cat([batch["target"] for batch in data.train_dataloader()])
    assert targets.shape[1] == 4
    assert sorted(targets.sum(dim=1).tolist())[-1] == 2.0


def test_a_set_without_classes(pair, speech):
    data = mixture([pair[0], speech])
    assert data.labels == ["a", "b", "c"]
    assert data.multi_label
    found = {
        name: target
        for batch in mixture([pair[0], speech], batch_size=2).train_dataloader()
        for name, target in zip(batch["id"], batch["target"], strict=True)
    }
    assert len(found) == 14
    assert found["librispeech/103-1240-0002"].tolist() == [0.0, 0.0, 0.0]
    assert found["test_mixture/train/01.wav"].tolist() == [0.0, 1.0, 0.0]


def test_a_set_without_classes_that_calls_itself_single_label(pair, tmp_path):
    class Plain(Tones):
        def clips(self, split):
            table = super().clips(split)
            return ClipTable(table.ids, Targets.none(len(table)), table.sounds)

    bare = Plain(tmp_path / "bare")
    bare.classes = []
    data = mixture([pair[0], bare])
    assert data.multi_label
    targets = torch.cat([batch["target"] for batch in data.train_dataloader()])
    assert sorted(targets.sum(dim=1).tolist())[:5] == [0.0] * 5


def test_sets_without_classes_alone(speech):
    batch = next(iter(mixture([speech]).train_dataloader()))
    assert batch["target"].shape == (3, 0)


def test_mixup_across_sets(pair, speech):
    dataset = mixture([pair[0], speech], mixup=1.0).train_dataloader().dataset
    sums = Counter(round(float(dataset[clip].target.sum()), 1) for clip in range(14))
    assert dataset[0].mixed
    assert len(sums) > 1


# --- validation and test ------------------------------------------------------------------------


def test_evaluation_is_that_of_the_first_set_that_has_any(pair, speech):
    assert len(mixture(pair).clips("validation")) == 2
    assert len(mixture(pair[::-1]).clips("test")) == 3
    data = mixture([speech, *pair])
    assert data.clips("validation").ids == [f"test_mixture/validation/0{n}.wav" for n in range(2)]
    targets = next(iter(data.val_dataloader()))["target"]
    assert targets.tolist() == [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]


class Recorder(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.read = []

    def training_step(self, batch):
        self.read.append((self.current_epoch, batch["step"], tuple(batch["id"])))
        return self.weight * batch["waveform"].sum()

    def validation_step(self, batch):
        self.read.append("validation")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def trainer(epochs=1):
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


@pytest.mark.filterwarnings("ignore:Total length of")
def test_no_set_with_validation(speech):
    task = Recorder()
    trainer().fit(task, mixture([speech], batch_size=2))
    assert len(task.read) == 2
    with pytest.raises(DataError, match=r"none of the sets librispeech has clips for validation"):
        trainer().validate(task, mixture([speech]))
    with pytest.raises(DataError, match="has clips for test"):
        mixture([speech]).setup("test")


# --- order --------------------------------------------------------------------------------------


def drawn(data, epochs):
    sampler = data.train_dataloader().sampler
    found = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        found.append([key.clip for key in sampler])
    return found


def test_weights(pair):
    data = mixture(pair, weights=[2, 0.25], batch_size=2)
    assert data.epoch_sampler(data.clips("train")).count == 22
    epochs = drawn(data, range(40))
    for clips in epochs:
        counts = Counter(clips)
        assert [counts[clip] for clip in range(10)] == [2] * 10
        assert sum(counts[clip] for clip in range(10, 18)) == 2
        assert max(counts[clip] for clip in range(10, 18)) == 1
    quarters = {tuple(sorted(clip for clip in clips if clip >= 10)) for clips in epochs}
    assert len(quarters) > 10
    assert epochs == drawn(mixture(pair, weights=[2, 0.25], batch_size=2), range(40))


def test_without_weights_every_clip_comes_once(pair):
    first, second = drawn(mixture(pair), range(2))
    assert sorted(first) == sorted(second) == list(range(18))
    assert first != second
    # The sets are mixed, not one after the other.
    assert min(first[:9]) < 10 <= max(first[:9])


def test_balanced_sampling_over_the_joined_classes(pair):
    data = mixture(pair, sampling="balanced", epoch_clips=900)
    (clips,) = drawn(data, [0])
    counts = data.clips("train").targets.take(clips).counts(4)
    assert np.all(np.abs(counts - 225) < 5 * 13)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_out_one_order(pair, world):
    settings = {"weights": [1, 0.75]}
    expected = list(mixture(pair, batch_size=6, **settings).train_dataloader().sampler)
    got = {}
    for rank in range(world):
        data = mixture(pair, batch_size=6 // world, **settings)
        data._rank = lambda rank=rank: (rank, world)
        for key in data.train_dataloader().sampler:
            assert key.position not in got
            got[key.position] = key
    assert [got[position] for position in range(12)] == expected
    assert len({key.clip for key in expected}) == 12


def read(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return [(batch["id"], batch["waveform"], batch["target"]) for batch in loader]


def equal(left, right):
    return len(left) == len(right) and all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2])
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_goes_on_inside_an_epoch(pair, speech, workers):
    settings = {"weights": [1.5, 0.5, 1], "mixup": 0.5}
    sets = [*pair, speech]
    whole = read(mixture(sets, **settings).train_dataloader(), 2)
    assert len(whole) == (15 + 4 + 4) // 3
    stopped = mixture(sets, num_workers=workers, **settings).train_dataloader()
    stopped.sampler.set_epoch(2)
    batches = iter(stopped)
    before = [next(batches)["id"] for _ in range(3)]
    state = stopped.state_dict()
    resumed = mixture(sets, num_workers=workers, **settings).train_dataloader()
    resumed.load_state_dict(state)
    assert before == [batch[0] for batch in whole[:3]]
    assert equal(read(resumed, 2), whole[3:])


def test_broken_clip_names_its_file(pair):
    (pair[1].root / "train" / "03.wav").write_bytes(b"no sound")
    with pytest.raises(AudioError, match=r"two/train/03\.wav"):
        read(mixture(pair).train_dataloader(), 0)
    data = mixture(pair, on_error="skip")
    read(data.train_dataloader(), 0)
    assert data.bad_clips.unreadable == {"test_mixture-2/train/03.wav"}


# --- inventory ----------------------------------------------------------------------------------


def test_inventory(tmp_path, speech):
    sizes = {"train": 3, "evaluation": 1}
    one = Tones(
        tmp_path / "1", recordings=["freesound:1", "freesound:2", "", "x:3", "x:4"], **sizes
    )
    two = Tones(
        tmp_path / "2", recordings=["freesound:2", "", "freesound:1", "y:3", "y:4"], **sizes
    )
    inventory = mixture([one, speech, two]).inventory()
    assert inventory.parts == ["train", "validation", "test"]
    assert inventory.part.tolist() == [0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 1, 2]
    assert len(inventory.table) == len(inventory.recordings) == len(inventory.speakers) == 14
    assert inventory.table.ids[5] == "librispeech/103-1240-0000"
    assert inventory.recordings[5] == "librispeech:103-1240"
    assert inventory.speakers[5] == "librispeech:103"
    assert (inventory.recordings[9], inventory.speakers[9]) == ("freesound:2", "")
    assert inventory.absent == ["test_mixture/lost.wav", "test_mixture-2/lost.wav"]
    assert "test_mixture: made up" in inventory.notes
    (shared,) = [note for note in inventory.notes if "recordings are in both" in note]
    assert shared == (
        "2 recordings are in both test_mixture and test_mixture-2: freesound:1, freesound:2"
    )


def test_parts_of_other_names(pair, tmp_path):
    other = Tones(tmp_path / "folds")
    plain = ClipDataModule.inventory(other)
    other.inventory = lambda: Inventory(plain.table, ["fold 1", "fold 2", "test"], plain.part)
    inventory = mixture([pair[0], other]).inventory()
    assert inventory.parts == ["train", "validation", "test", "fold 1", "fold 2"]
    assert sorted(Counter(inventory.part.tolist()).items()) == [
        *((0, 10), (1, 2), (2, 4), (3, 6), (4, 2))
    ]


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": [1]}, r"data\.init_args\.weights has 1 entries for 2 sets"),
        ({"weights": [1, 1], "sampling": "balanced"}, r"data\.init_args\.weights say how often"),
        ({"mean": 1.0}, r"one of data\.init_args\.mean and data\.init_args\.std is null"),
        ({"batch_size": 0}, r"data\.init_args\.batch_size is 0"),
    ],
)
def test_impossible_settings(pair, settings, message):
    with pytest.raises(ConfigError, match=message):
        mixture(pair, **settings)


@pytest.mark.parametrize("weights", [[1, -1], [0, 0]])
def test_impossible_weights_are_found_before_training(pair, weights):
    with pytest.raises(ConfigError, match=r"data\.init_args\.weights"):
        mixture(pair, weights=weights).setup("fit")


def test_no_sets():
    with pytest.raises(ConfigError, match=r"data\.init_args\.sets is empty"):
        Mixture([])


def test_fault_of_a_set_shows_before_training(pair, tmp_path):
    missing = LibriSpeech(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere has no folder train-clean-100"):
        mixture([pair[0], missing]).setup("fit")


def test_example_in_the_docstring_is_what_the_parser_reads():
    from jsonargparse import ArgumentParser

    text = Mixture.__doc__.split("\n\n")[1]
    example = yaml.safe_load("\n".join(line[8:] for line in text.splitlines()))["data"]
    for one in example["init_args"]["sets"]:
        if one["class_path"] == "peas.data.AudioSet":
            one["class_path"] = "peas.data.ESC50"
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=ClipDataModule)
    data = parser.instantiate_classes(parser.parse_object({"data": example})).data
    assert isinstance(data, Mixture)
    assert data.names == ["esc50", "librispeech"]
    assert (data.weights, data.batch_size) == ([1.0, 0.5], 24)


def test_statistics_that_a_set_measures(pair, caplog):
    class Measured(Tones):
        @property
        def info(self):
            logging.getLogger("peas").warning("measured")
            return super().info

    pair[0].__class__ = Measured
    data = mixture(pair)
    assert not caplog.records
    data.prepare_data()
    assert len(caplog.records) == 1
    mixture(pair, mean=0.0, std=1.0, frames=9).prepare_data()
    assert len(caplog.records) == 1
