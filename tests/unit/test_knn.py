"""kNN while pretraining: the vote, what it leaves alone, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from made import masked_task, ssast_task
from toys import StandIn, data, quiet_trainer

from peas.audio.frontend import LogMel
from peas.callbacks import KNN
from peas.callbacks.progress import EpochLine
from peas.data import AudioFolder
from peas.data.synthetic import write_sounds
from peas.errors import ConfigError, DataError
from peas.evaluation.knn import nearest_classes
from peas.tasks import Pretraining
from peas.tasks.base import BaseTask


def ssast() -> Pretraining:
    return ssast_task(size="toy", masked=10, eval_masked=None, warmup_steps=0, lr=1e-3)


def mae() -> Pretraining:
    shape = {"decoder_width": 32, "decoder_depth": 2, "decoder_heads": 2}
    # Stochastic depth draws random numbers, which a callback must not move.
    return masked_task(size="toy", lr=1e-2, drop_path=0.2, **shape)


def fit(task: BaseTask, sounds: Path, folder: Path, *callbacks: Any, epochs: int = 2) -> Trainer:
    torch.manual_seed(0)
    trainer = quiet_trainer(
        folder, max_epochs=epochs, callbacks=list(callbacks), num_sanity_val_steps=0
    )
    trainer.fit(task, datamodule=data(sounds, num_workers=0))
    return trainer


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled set of clips twice as long as those of the pretraining."""
    folder = tmp_path_factory.mktemp("labelled") / "sounds"
    return write_sounds(folder, classes=3, clips_per_class=10, seconds=1.28, seed=4)


def labelled(root: Path, **settings: Any) -> Any:
    made = {"classes": 3, "seconds": 1.28, "frames": 128, "mean": 5.0, "std": 1.0, "seed": 4}
    return data(root, **made, **settings)


# --- the vote ------------------------------------------------------------------------------


def test_vote_is_that_of_scikit_learn() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    source = np.random.default_rng(0)
    classes = source.integers(0, 5, 200)
    train = source.standard_normal((200, 12)) * np.linspace(0.1, 5, 12) + classes[:, None] * 0.3
    test = source.standard_normal((90, 12)) * np.linspace(0.1, 5, 12) + 0.6
    # A clip that both have, and a feature that never varies.
    test[0] = train[7]
    train[:, 3] = test[:, 3] = 2.0
    found = nearest_classes(*map(torch.from_numpy, (train, classes, test)), 10)
    mean, std = train.mean(axis=0), train.std(axis=0)
    std[3] = 1.0
    model = KNeighborsClassifier(10, metric="cosine", weights="distance")
    wanted = model.fit((train - mean) / std, classes).predict((test - mean) / std)
    assert found.tolist() == wanted.tolist()
    assert found[0] == classes[7]
    assert len(set(found.tolist())) > 2


# --- in a run ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ssast, mae])
def test_a_run_does_not_notice(make: Any, sounds: Path, longer: Path, tmp_path: Path) -> None:
    plain, watched = make(), make()
    fit(plain, sounds, tmp_path / "plain")
    knn = KNN(labelled(longer), k=3, every_n_epochs=1)
    trainer = fit(watched, sounds, tmp_path / "watched", knn)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert 0 <= float(trainer.callback_metrics["knn/accuracy"]) <= 1
    assert watched.model.training is plain.model.training
    assert not any("knn" in name or "LogMel" in name for name in watched.state_dict())


def test_folds_are_left_out_in_turn(sounds: Path, longer: Path, tmp_path: Path) -> None:
    knn = KNN(labelled(longer), k=3, split="folds")
    task = ssast()
    trainer = fit(task, sounds, tmp_path, knn, epochs=1)
    # By hand, from the embeddings of single clips with the pretraining run's own statistics.
    statistics = {key: task.front_end.setting(key) for key in ("mean", "std")}
    front_end = LogMel(frames=128, **statistics)
    module = labelled(longer)
    inventory = module.inventory()
    rows = [inventory.table.sounds.load(row) for row in range(len(inventory.table))]
    with torch.no_grad():
        task.model.eval()
        features = torch.cat([task.model.embedding(front_end(r[None]).log_mel) for r in rows])
    classes = torch.from_numpy(inventory.table.targets.classes.astype(np.int64))
    right = 0
    for fold in range(5):
        out = torch.from_numpy(inventory.part == fold)
        found = nearest_classes(features[~out], classes[~out], features[out], 3)
        right += int((found == classes[out]).sum())
    assert float(trainer.callback_metrics["knn/accuracy"]) == pytest.approx(right / 30)


def test_epochs_and_the_line(
    sounds: Path, longer: Path, tmp_path: Path, printed: pytest.LogCaptureFixture
) -> None:
    knn = KNN(labelled(longer), k=3, every_n_epochs=3)
    fit(ssast(), sounds, tmp_path, knn, EpochLine(), epochs=6)
    lines = [record.message for record in printed.records if record.message.startswith("epoch ")]
    assert ["knn" in line for line in lines] == [True, False, False, True, False, True]
    for line in lines:
        for part in ("lr ", "val loss ", "mse ", "(baseline ", "nce acc ", "clips/s"):
            assert part in line


def test_embedding_leaves_modes_as_they_were(sounds: Path, longer: Path, tmp_path: Path) -> None:
    task = mae()
    knn = KNN(labelled(longer), k=3)
    trainer = fit(task, sounds, tmp_path, knn, epochs=1)
    task.model.train()
    task.model.encoder.blocks[0].eval()
    assert knn._clips is not None
    features, classes, part = knn._embed(trainer, task, knn._clips)
    assert features.shape == (30, 32)
    assert classes.bincount().tolist() == [10, 10, 10]
    assert part.bincount().tolist() == [24, 6]
    assert task.model.training
    assert not task.model.encoder.blocks[0].training
    assert task.model.encoder.blocks[1].training


# --- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, r"KNN\.init_args\.k` is 0"),
        ({"every_n_epochs": 0}, r"KNN\.init_args\.every_n_epochs` is 0"),
        ({"split": "some"}, "choose validation, test or folds"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], message: str, longer: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        KNN(labelled(longer), **settings)


def stand_in() -> Any:
    def barrier(name: str) -> None: ...

    return StandIn(local_rank=0, strategy=type("S", (), {"barrier": staticmethod(barrier)})())


def test_too_few_voters(longer: Path) -> None:
    with pytest.raises(ConfigError, match=r"KNN\.init_args\.k"):
        KNN(labelled(longer), k=25).setup(stand_in(), ssast(), "fit")
    KNN(labelled(longer), k=24).setup(stand_in(), ssast(), "fit")


def test_a_set_without_folds_or_classes(longer: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for split in ("train", "validation", "test"):
        for number in range(4):
            (tree / split / "knock").mkdir(parents=True, exist_ok=True)
            clip = next((longer / "audio").glob(f"1-*-{number % 2}.wav"))
            (tree / split / "knock" / f"{split}{number}.wav").write_bytes(clip.read_bytes())
    folder = AudioFolder(str(tree), frames=128, mean=-5.0, std=4.0, num_workers=0, cache_dir="")
    with pytest.raises(ConfigError, match=r"split` is folds, .* \(its parts are train, valid"):
        KNN(folder, k=2, split="folds").setup(stand_in(), ssast(), "fit")
    several = labelled(longer)
    type(several).multi_label = property(lambda self: True)
    try:
        with pytest.raises(ConfigError, match="clips of several classes"):
            KNN(several, k=2).setup(stand_in(), ssast(), "fit")
    finally:
        del type(several).multi_label


def test_a_missing_set_stops_the_run_before_it_trains(sounds: Path, tmp_path: Path) -> None:
    from peas.data import ESC50

    with pytest.raises(DataError, match=r"there is no .*esc50\.csv"):
        fit(ssast(), sounds, tmp_path, KNN(ESC50(str(tmp_path / "nowhere"))))
