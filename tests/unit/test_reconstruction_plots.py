"""Plots of pretraining: what they show, of which clips, and when."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from made import built_audiomae, masked_task, ssast_task
from target_toys import Maps, maps_of, write
from toys import FACTS, StandIn, clips, data, fit, heard, quiet_trainer

from peas.callbacks import ReconstructionPlots
from peas.callbacks.reconstruction_plots import (
    _take,
    masked_bins,
    mel_bin,
    plot_clip,
    reconstruction_views,
)
from peas.errors import ConfigError
from peas.models.patches import patchify
from peas.tasks import Pretraining
from peas.tasks.base import BaseTask
from peas.teachers.grid import patch_edges

SMALL: dict[str, Any] = {"decoder_width": 32, "decoder_depth": 2, "decoder_heads": 2}


def ssast(**settings: Any) -> Pretraining:
    few = {"size": "toy", "masked": 10, "eval_masked": None, "warmup_steps": 0}
    return ssast_task(**{**few, **settings})


def mae(**settings: Any) -> Pretraining:
    return masked_task(**{"size": "toy", "lr": 1e-2, **SMALL, **settings})


def built(task: Any) -> Any:
    torch.manual_seed(3)
    task.build(initialise=False)
    task._trainer = StandIn(training=False)
    return task.eval()


def names(folder: Path, ending: str = ".png") -> list[str]:
    return sorted(path.name for path in (folder / "plots").glob(f"*{ending}"))


@pytest.fixture(scope="module")
def targets(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's maps of all sounds, at random."""
    ids = list(data(sounds).inventory().table.ids)
    folder = tmp_path_factory.mktemp("targets") / "cache"
    write(folder, Maps(maps_of(len(ids))), ids, shard_clips=len(ids))
    return folder


def run(task: BaseTask, sounds: Path, folder: Path, callback: Any, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    trainer = quiet_trainer(
        folder, callbacks=[callback], **{"max_epochs": 1, "num_sanity_val_steps": 1, **settings}
    )
    trainer.fit(task, datamodule=data(sounds))
    return trainer


# --- views ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ssast, mae])
def test_views_show_the_mask_and_the_drawing_of_evaluation(make: Any) -> None:
    task = built(make(**FACTS))
    batch = heard(task, clips(3))
    with torch.no_grad():
        views = reconstruction_views(task, batch)
        again = reconstruction_views(task, _take(batch, [2]))[0]
    # Where each objective has a pass of its own, the mask is that of the reconstruction.
    hidden = task.losses(batch, "val").views["reconstruction" if make is mae else "mse"].masked
    if task.model.time_major:
        by_time = hidden
        hidden = hidden.view(3, 8, 8).transpose(1, 2).flatten(1)
        assert not torch.equal(hidden, by_time)
    for row, view in enumerate(views):
        cells = patchify(view.masked[None].float(), (16, 16))[0]
        assert torch.equal(cells.amin(1), cells.amax(1))
        assert torch.equal(cells[:, 0] > 0, hidden[row])
        assert view.prediction is not None
        assert torch.equal(view.log_mel, batch["log_mel"][row])
        assert view.own_level is (make is mae)
        assert view.features is None
    assert views[2].prediction is not None
    assert again.prediction is not None
    assert torch.equal(again.masked, views[2].masked)
    assert torch.allclose(again.prediction, views[2].prediction, atol=1e-5)
    # What is drawn follows from the visible patches alone, but for norm_pix's level.
    if not views[2].own_level:
        batch["log_mel"] = batch["log_mel"].masked_fill(torch.stack([v.masked for v in views]), 9.0)
        with torch.no_grad():
            blind = reconstruction_views(task, batch)[2].prediction
        assert blind is not None
        assert torch.allclose(blind, views[2].prediction, atol=1e-5)


def test_cells_under_overlapping_patches() -> None:
    model = built_audiomae("toy", frames=48, mels=48, stride=(8, 8))
    assert model.grid == (5, 5)
    hidden = torch.zeros(1, 25, dtype=torch.bool)
    # Two neighbours along time: what they share with visible patches is seen.
    hidden[0, [11, 12]] = True
    cells = masked_bins(model, hidden, 48, 48)[0]
    assert not cells.any()
    rows = torch.arange(25).view(5, 5)
    hidden[0, rows[1:4, 1:4].flatten()] = True
    cells = masked_bins(model, hidden, 48, 48)[0]
    assert cells.nonzero().min(0).values.tolist() == [16, 16]
    assert cells.nonzero().max(0).values.tolist() == [31, 31]
    assert int(cells.sum()) == 16 * 16


def test_features_of_a_perfect_prediction(sounds: Path, targets: Path, tmp_path: Path) -> None:
    task = mae(reconstruction=0.0, distillation=1.0, targets=str(targets))
    run(task, sounds, tmp_path, ReconstructionPlots(clips=1))
    module = data(sounds)
    batch = next(iter(module.loader(module.clips("validation"))))
    task.eval()
    task._trainer = StandIn(training=False)  # type: ignore[assignment]
    batch = task.on_after_batch_transfer(task.on_before_batch_transfer(batch, 0), 0)
    part = task.parts["distillation"]
    part.forward = _perfect(part.forward)  # type: ignore[method-assign]
    with torch.no_grad():
        view = reconstruction_views(task, batch)[0]
    found = view.features
    assert view.prediction is None
    assert found is not None
    assert found.target.shape == (8, 4)
    assert torch.allclose(found.target.nan_to_num(), found.predicted.nan_to_num())
    sound = ~found.cosine.isnan()
    assert torch.allclose(found.cosine[sound], torch.ones(int(sound.sum())), atol=1e-5)
    # The last patches hold padding: 62 frames of 64.
    assert sound.any(dim=0).tolist() == [True, True, True, False]
    assert 0 < found.share < 1
    assert found.constant < 1 - 1e-3
    assert len(plot_clip(view).axes) == 2 * 5


def _perfect(forward: Any) -> Any:
    def called(view: Any) -> Any:
        term = forward(view)
        return replace(term, predicted=term.rows.targets)

    return called


def test_frequencies_lie_where_the_patches_do() -> None:
    for number, hertz in enumerate(patch_edges(8).tolist()):
        assert mel_bin(hertz, 128) == pytest.approx(16 * number, abs=1e-6)


# --- in a run ------------------------------------------------------------------------------


def test_epochs_and_clips(sounds: Path, tmp_path: Path) -> None:
    run(ssast(), sounds, tmp_path, ReconstructionPlots(clips=2, every_n_epochs=3), max_epochs=6)
    first = list(data(sounds).clips("validation").ids)[:2]
    stems = [Path(clip).stem for clip in first]
    wanted = [
        f"epoch_{epoch:03}_reconstruction_{stem}" for epoch in (1, 4, 6) for stem in sorted(stems)
    ]
    assert names(tmp_path) == [f"{name}.png" for name in wanted]
    assert names(tmp_path, ".pdf") == [f"{name}.pdf" for name in wanted]


def test_named_clips_and_rare_validation(sounds: Path, targets: Path, tmp_path: Path) -> None:
    clip = list(data(sounds).clips("validation").ids)[7]
    callback = ReconstructionPlots(clips=[clip], every_n_epochs=2)
    task = mae(distillation=1.0, classification=0.1, targets=str(targets))
    run(task, sounds, tmp_path, callback, max_epochs=4, check_val_every_n_epoch=3)
    stem = Path(clip).stem
    # Epoch 2 is the only one with a validation.
    assert names(tmp_path) == [f"epoch_003_reconstruction_{stem}.png"]
    resumed = ReconstructionPlots(clips=[clip], every_n_epochs=2)
    resumed.load_state_dict(callback.state_dict())
    assert not resumed._due(StandIn(current_epoch=3))  # type: ignore[arg-type]
    assert resumed._due(StandIn(current_epoch=4))  # type: ignore[arg-type]


def test_pictures_change_nothing(sounds: Path, targets: Path, tmp_path: Path) -> None:
    keys = {"distillation": 1.0, "targets": str(targets), "drop_path": 0.2}
    plain, drawn = mae(**keys), mae(**keys)
    run(plain, sounds, tmp_path / "plain", ReconstructionPlots(clips=1, every_n_epochs=99))
    run(drawn, sounds, tmp_path / "drawn", ReconstructionPlots(clips=4, every_n_epochs=1))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, drawn.state_dict()[name]), name


# --- bad input -----------------------------------------------------------------------------


def test_refusals(sounds: Path, tmp_path: Path) -> None:
    for settings in ({"clips": 0}, {"every_n_epochs": 0}):
        with pytest.raises(ConfigError, match="give 1 or more"):
            ReconstructionPlots(**settings)
    with pytest.raises(ConfigError, match=r"names nowhere\.wav"):
        run(ssast(), sounds, tmp_path, ReconstructionPlots(clips=["nowhere.wav"]))
    with pytest.raises(ConfigError, match="predict neither patches nor"):
        run(ssast(objective="discriminative"), sounds, tmp_path, ReconstructionPlots())
    with pytest.raises(ConfigError, match=r"use `peas\.callbacks\.MaskPlots`"):
        fit(sounds, tmp_path, ReconstructionPlots())
