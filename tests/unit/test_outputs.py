"""What a run leaves behind: logits per clip, pictures, diagnostics; and untouched evaluation."""

import csv
import time
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from matplotlib.figure import Figure
from toys import Run, StandIn, clips, data, fit, heard, make_task, masked, quiet_trainer

from peas.callbacks import progress
from peas.callbacks.mask_plots import MaskPlots, _view, plot_clip
from peas.callbacks.outputs import ClipOutputs
from peas.callbacks.peas import PEAS
from peas.callbacks.plots import file_name, save_plot
from peas.callbacks.progress import EpochLine, Rate
from peas.callbacks.spec_augment import BlockMasking, RandomMasking, SpecAugment
from peas.errors import ConfigError
from peas.masking.peas.error_cache import due
from peas.tasks import Classification
from peas.tasks.augmentation import roll_time

# --- evaluation ----------------------------------------------------------------------------


def validation_logits(run: Run) -> dict[str, np.ndarray]:
    with np.load(run.folder / "logits" / "val_last.npz") as file:
        return dict(file)


def test_evaluation_inside_a_peas_run_sees_no_mask(peas_run: Run, tmp_path: Path) -> None:
    """Logits of the last validation equal those of the same weights without any strategy."""
    inside = validation_logits(peas_run)
    trainer = quiet_trainer(tmp_path, callbacks=[ClipOutputs(tmp_path)])
    trainer.validate(peas_run.task, datamodule=peas_run.module, verbose=False)
    with np.load(tmp_path / "logits" / "val.npz") as file:
        assert file["ids"].tolist() == inside["ids"].tolist()
        assert np.array_equal(file["logits"], inside["logits"])


@pytest.mark.parametrize(
    "strategy", [SpecAugment(20, 24), RandomMasking(2, 2, 20, 24), PEAS(1, 1, 20, 24)]
)
def test_strategies_leave_evaluation_alone(
    strategy: BlockMasking, peas_run: Run, tmp_path: Path
) -> None:
    found = []
    for folder, callbacks in ((tmp_path / "with", [strategy]), (tmp_path / "without", [])):
        trainer = quiet_trainer(folder, callbacks=[*callbacks, ClipOutputs(folder)])
        trainer.test(peas_run.task, datamodule=peas_run.module, verbose=False)
        with np.load(folder / "logits" / "test.npz") as file:
            found.append(file["logits"])
    assert np.array_equal(*found)


# --- logits per clip -----------------------------------------------------------------------


def test_logits_of_every_clip_once(peas_run: Run) -> None:
    table = peas_run.module.clips("validation")
    last = validation_logits(peas_run)
    assert last["ids"].tolist() == table.ids
    assert last["targets"].argmax(1).tolist() == table.targets.classes.tolist()
    assert last["labels"].tolist() == peas_run.module.labels
    assert last["logits"].shape == (8, 4)
    assert last["epoch"] == 1
    assert sorted(path.name for path in (peas_run.folder / "logits").iterdir()) == [
        "val_best.npz",
        "val_best_classes.csv",
        "val_last.npz",
        "val_last_classes.csv",
    ]


def test_best_epoch_is_kept_through_worse_ones_and_a_restart(tmp_path: Path) -> None:
    task = make_task()
    trainer: Any = StandIn(tmp_path, ckpt_path=None)
    trainer.state = type("State", (), {"fn": "fit"})
    callback = ClipOutputs(tmp_path)
    for epoch, score in enumerate((0.5, 0.25, 0.75, 0.75, 0.5)):
        if epoch == 3:
            state = callback.state_dict()
            callback = ClipOutputs(tmp_path)
            callback.load_state_dict(state)
        trainer.current_epoch = epoch
        trainer.callback_metrics = {"val/accuracy": torch.tensor(score)}
        outputs = {
            "id": ["a", "b"],
            "logits": torch.full((2, 4), epoch),
            "target": torch.eye(4)[:2],
        }
        callback.on_validation_batch_end(trainer, task, outputs, None, 0)
        callback.on_validation_end(trainer, task)
        for name, wanted in (("val_last", epoch), ("val_best", (0, 0, 2, 2, 2)[epoch])):
            with np.load(tmp_path / "logits" / f"{name}.npz") as file:
                assert file["epoch"] == wanted
                assert file["ids"].tolist() == ["a", "b"]
                assert (file["logits"] == wanted).all()


def test_sanity_check_leaves_nothing(tmp_path: Path) -> None:
    callback = ClipOutputs(tmp_path)
    trainer: Any = StandIn(tmp_path, sanity_checking=True)
    task = make_task()
    callback.on_validation_batch_end(trainer, task, {"id": ["a"], "logits": torch.ones(1, 4)})
    callback.on_validation_end(trainer, task)
    assert not list(tmp_path.iterdir())
    assert not callback._rows


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_predictions(peas_run: Run, tmp_path: Path, loss: str) -> None:
    task = Classification.load_from_checkpoint(
        peas_run.checkpoint, loss=loss, weights_only=True, map_location="cpu"
    )
    trainer = quiet_trainer(tmp_path, callbacks=[ClipOutputs(tmp_path)])
    with torch.random.fork_rng():
        outputs = trainer.predict(task, datamodule=peas_run.module)
    assert outputs is not None
    logits = torch.cat([batch["logits"] for batch in outputs])
    scores = logits.softmax(1) if loss == "ce" else logits.sigmoid()
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = peas_run.module.labels
    table = peas_run.module.clips("test")
    origin = ["file", "set", "split", "true_label", "checkpoint"]
    assert list(rows[0]) == ["id", *origin, "label", "score", *labels]
    for place, row in enumerate(rows):
        assert Path(row["file"]) == peas_run.module.root / "audio" / row["id"]
        assert (row["set"], row["split"]) == (str(peas_run.module.root), "test")
        assert row["true_label"] == labels[int(table.targets[place][0])]
        assert row["checkpoint"] == ""
    assert [row["id"] for row in rows] == peas_run.module.clips("test").ids
    for row, score in zip(rows, scores, strict=True):
        assert row["label"] == labels[int(score.argmax())]
        assert [float(row[name]) for name in labels] == pytest.approx(score.tolist(), abs=1e-6)
        assert float(row["score"]) == pytest.approx(float(score.max()), abs=1e-6)


def test_other_predictions_are_never_overwritten(peas_run: Run, tmp_path: Path) -> None:
    task = make_task()
    trainer: Any = StandIn(tmp_path, ckpt_path="best.ckpt", datamodule=peas_run.module)
    clip = peas_run.module.clips("test").ids[0]
    for number, names in ((0, [clip]), (1, ["other"]), (0, [clip]), (2, [clip, "other"])):
        outputs = {"id": names, "logits": torch.zeros(len(names), 4)}
        callback = ClipOutputs(tmp_path)
        callback.on_predict_batch_end(trainer, task, outputs)
        callback.on_predict_end(trainer, task)
        path = tmp_path / ("predictions.csv" if number == 0 else f"predictions.{number}.csv")
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["id"] for row in rows] == names
        assert {row["checkpoint"] for row in rows} == {"best.ckpt"}
        assert [bool(row["true_label"]) for row in rows] == [name == clip for name in names]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "predictions.1.csv",
        "predictions.2.csv",
        "predictions.csv",
    ]


# --- the log -------------------------------------------------------------------------------


def test_log_tells_what_the_selector_did(peas_run: Run) -> None:
    rows = list(csv.DictReader((peas_run.folder / "logs/version_0/metrics.csv").open()))
    columns = {key for row in rows for key, value in row.items() if value}
    axes = ("time", "freq")
    assert columns >= {
        *("lr", "train/loss", "train/accuracy", "val/accuracy", "val/mAP", "val/AUC", "val/loss"),
        *("mask/fraction", "mask/adaptive_share", "peas/e_rec", "peas/e_pred"),
        *("peas/windows_on_padding", "peas/windows_on_empty_bins", "peas/seconds_per_pass"),
        *(f"peas/agree_rec_pred_{axis}" for axis in axes),
        *(f"peas/agree_pred_complementary_{axis}" for axis in axes),
    }
    assert "nan" not in {value for row in rows for value in row.values()}
    shares = [float(row["mask/adaptive_share"]) for row in rows if row["mask/adaptive_share"]]
    assert shares == [1.0, 1.0]
    starts = list(csv.DictReader((peas_run.folder / "mask_starts.csv").open()))
    for epoch in ("0", "1"):
        for axis, blocks in (("time", 2), ("freq", 1)):
            counts = [
                int(row["count"]) for row in starts if (row["epoch"], row["axis"]) == (epoch, axis)
            ]
            assert sum(counts) == 32 * blocks


def test_cache_of_a_run_holds_every_training_clip(peas_run: Run) -> None:
    strategy = next(c for c in peas_run.trainer.callbacks if isinstance(c, PEAS))
    ids = peas_run.module.clips("train").ids
    assert not strategy.cache.missing(ids).any()
    assert len(strategy.cache) == 32
    # 32 clips of four synthetic classes: about every other one had its turn again.
    assert 6 <= int(due(ids, 1, 2).sum()) <= 26


# --- pictures ------------------------------------------------------------------------------


def pictures_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "plots").iterdir())


def test_pictures_of_the_first_and_the_last_epoch(peas_run: Run) -> None:
    names = pictures_of(peas_run.folder)
    stems = {name.rpartition(".")[0] for name in names}
    assert len(stems) == 2
    assert {stem[:9] for stem in stems} == {"epoch_001", "epoch_002"}
    assert len({stem[10:] for stem in stems}) == 1
    assert names == sorted(f"{stem}.{end}" for stem in stems for end in ("png", "pdf"))
    for name in names:
        path = peas_run.folder / "plots" / name
        if path.suffix == ".png":
            image = matplotlib.image.imread(path)
            assert image.shape[0] > 500
            assert image.shape[1] > 1000
            assert len(np.unique(image[..., 0] + 1000 * image[..., 1])) > 200
        else:
            assert path.read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    "strategy", [SpecAugment(20, 24), RandomMasking(2, 2, 20, 24, stage="before_noise")]
)
def test_every_strategy_has_pictures_of_chosen_clips(
    strategy: BlockMasking, sounds: Path, tmp_path: Path
) -> None:
    chosen = data(sounds).clips("train").ids[5]
    pictures = MaskPlots(clips=[chosen])
    # The order in the list of callbacks does not matter.
    order: list[Callback] = [strategy, pictures]
    fit(sounds, tmp_path, *(order if isinstance(strategy, SpecAugment) else order[::-1]))
    stem = f"epoch_001_{Path(chosen).stem}"
    assert pictures_of(tmp_path) == [f"{stem}.pdf", f"{stem}.png"]


def test_pictures_refuse_clips_that_do_not_train(sounds: Path, tmp_path: Path) -> None:
    table = data(sounds)
    tested, absent = table.clips("validation").ids[0], "gone.wav"
    pictures = MaskPlots(clips=[table.clips("train").ids[0], tested, absent])
    with pytest.raises(ConfigError, match=r"MaskPlots.*clips") as told:
        fit(sounds, tmp_path, SpecAugment(20, 24), pictures)
    assert tested in str(told.value)
    assert absent in str(told.value)
    assert table.clips("train").ids[0] not in str(told.value)


def _stand_ins(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> None:
    monkeypatch.setattr("peas.callbacks.mask_plots._view", lambda *_: time.sleep(seconds))
    monkeypatch.setattr("peas.callbacks.mask_plots.plot_clip", lambda _: Figure(figsize=(1, 1)))


def test_pictures_take_more_clips_than_a_batch_has(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stand_ins(monkeypatch)
    size = data(sounds).batch_size
    fit(sounds, tmp_path / "a", SpecAugment(20, 24), MaskPlots(clips=size + 2))
    drawn = [name for name in pictures_of(tmp_path / "a") if name.endswith("png")]
    assert len(drawn) == size + 2
    with pytest.warns(UserWarning, match=r"MaskPlots.*clips. is 1000"):
        fit(sounds, tmp_path / "b", SpecAugment(20, 24), MaskPlots(clips=1000))


def test_clips_that_are_named_win_over_those_of_a_checkpoint() -> None:
    pictures = MaskPlots(clips=["b"])
    pictures.load_state_dict({"ids": ["a"]})
    assert pictures.state_dict() == {"ids": ["b"]}


def test_the_rate_leaves_out_what_pictures_take(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stand_ins(monkeypatch, seconds=0.5)
    lines: list[str] = []
    monkeypatch.setattr(progress, "rank_zero_info", lines.append)
    line, pictures = EpochLine(), MaskPlots(clips=4)
    fit(sounds, tmp_path, SpecAugment(20, 24), pictures, line)
    assert pictures.seconds > 2.0
    assert line._training < 2.0
    rate = Rate()
    rate.reset()
    time.sleep(0.1)
    rate.add(1, plotting=0.1)
    assert rate.value > 20


def test_without_reconstruction_the_picture_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task()
    task.model.reconstructs.fill_(False)
    trainer = task.trainer
    trainer.default_root_dir = str(tmp_path)
    strategy, pictures = RandomMasking(2, 1, 40, 30), MaskPlots(clips=["yes/a.wav", "no/a.wav"])
    trainer.callbacks = [strategy, pictures]
    loaded = clips(2)
    loaded["id"] = ["yes/a.wav", "no/a.wav"]
    batch = masked(strategy, task, heard(task, loaded))
    view = _view(trainer, task, strategy, batch, 1)
    assert view.reconstruction is None
    texts = [text.get_text() for axes in plot_clip(view).axes for text in axes.texts]
    assert texts == ["this model has no reconstruction head"]
    monkeypatch.setattr("peas.callbacks.mask_plots.plot_clip", lambda _: Figure(figsize=(1, 1)))
    pictures.on_train_batch_start(trainer, task, batch, 0)
    pictures.on_before_backward(trainer, task, torch.zeros(()))
    # Equal file names in two folders are two clips.
    assert [name for name in pictures_of(tmp_path) if name.endswith("png")] == [
        "epoch_001_no_a.png",
        "epoch_001_yes_a.png",
    ]


@pytest.mark.parametrize("stage", ["after_noise", "before_noise"])
def test_picture_shows_the_training_steps_own_input(stage: str) -> None:
    task = make_task(noise_roll=True, drop_path=0.5)
    strategy = PEAS(2, 1, 40, 30, ramp="off", stage=stage, exclude_padding=True)  # type: ignore[arg-type]
    loaded = clips()
    loaded["length"][2] = 400 + 79 * 160
    batch = masked(strategy, task, heard(task, loaded))
    seen: list[torch.Tensor] = []
    task.model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    task.train()
    task.training_step(batch, 0)
    view = _view(task.trainer, task, strategy, batch, 2)
    assert task.model.training
    shift = batch["roll"][2:3] if stage == "before_noise" else torch.zeros(1, dtype=torch.long)
    torch.testing.assert_close(roll_time(view.masked[None], shift)[0], seen[0][2])
    # Errors are those of the passes: without stochastic depth, and before the noise if masks are.
    shown = batch["log_mel"][2]
    if stage == "before_noise":
        shown = task.front_end(loaded["waveform"], loaded["length"]).log_mel[2]
    torch.testing.assert_close(view.log_mel, shown, atol=1e-6, rtol=0)
    task.model.eval()
    with torch.no_grad():
        drawn = task.model.reconstruct(view.log_mel[None])[0]
    torch.testing.assert_close(view.reconstruction, drawn)
    # Blocks, scores and cells agree: the best window that is allowed is the chosen one.
    start = int(view.time.window_start[0, 0])
    assert view.time_scores is not None
    assert int(view.time_scores.argmax()) == start
    assert view.time_scores.isinf().any()
    first, width = int(view.time.blocks.start[0, 0]), int(view.time.blocks.width[0, 0])
    hidden = view.masked[first : first + width]
    assert width > 0
    spread = hidden.amax() - hidden.amin()
    assert spread <= (0.1 if stage == "before_noise" else 0.0)


@pytest.mark.parametrize(
    ("clip", "name"),
    [
        ("yes/a.wav", "yes_a"),
        ("a.WAVE", "a"),
        ("long.wav#1.5-2.5", "long.wav#1.5-2.5"),
        ("a.b", "a.b"),
    ],
)
def test_names_of_files_that_stand_for_clips(clip: str, name: str) -> None:
    assert file_name(clip) == name


def test_no_clip_is_too_long_or_odd_for_a_file_name(tmp_path: Path) -> None:
    odd = ["x" * 300 + ".wav", "x" * 301 + ".wav", "é" * 200, "a\nb", "a\tb", "\0", "$\\frac$^.wav"]
    assert len({file_name(clip) for clip in odd}) == len(odd)
    for clip in odd:
        figure = Figure(figsize=(1, 1))
        figure.suptitle(clip, parse_math=False)
        save_plot(StandIn(tmp_path), figure, clip, "reconstruction")  # type: ignore[arg-type]
    assert len(pictures_of(tmp_path)) == 2 * len(odd)


def test_pictures_are_drawn_in_due_epochs_only() -> None:
    task = make_task()
    pictures = MaskPlots(every_n_epochs=10)
    task.trainer.max_epochs = 25
    due_in = []
    for epoch in range(25):
        task.trainer.current_epoch = epoch
        pictures.on_train_batch_start(task.trainer, task, clips(1), 0)
        due_in += [epoch] if pictures._batch is not None else []
    assert due_in == [0, 10, 20, 24]
    later = MaskPlots()
    later.load_state_dict({"ids": ["a"]})
    assert later.state_dict() == {"ids": ["a"]}
