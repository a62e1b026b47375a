"""The key `masking`: any strategy by its class path, overlays, and runs of before the key."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_recorder import recorded
from drive import BASE, SSAST, Run, Write, call, changed, metrics, prepare
from torch import Tensor

from peas.callbacks import MaskingStrategy
from peas.callbacks.masking import MaskingContext

MASKS = BASE["masking"]
ARGS = MASKS["init_args"]


class Ellipse(MaskingStrategy):
    """Masks an ellipse around a random bin of each clip.

    Args:
        radii: Of the ellipse, in frames and mel bins.
        stage: As of any strategy.
    """

    def __init__(self, radii: tuple[int, int] = (12, 30), stage: Any = "after_noise") -> None:
        super().__init__(stage)
        self.radii = radii

    def mask(self, log_mel: Tensor, valid: Tensor, context: MaskingContext) -> Tensor:
        _, frames, mels = log_mel.shape
        u = context.rand("centre", 2)
        time = (torch.arange(frames) - u[:, :1] * frames) / self.radii[0]
        freq = (torch.arange(mels) - u[:, 1:] * mels) / self.radii[1]
        return time[:, :, None] ** 2 + freq[:, None, :] ** 2 < 1


class Lines(MaskingStrategy):
    """Gives a mask of frames alone, which is none."""

    def mask(self, log_mel: Tensor, valid: Tensor, context: MaskingContext) -> Tensor:
        return valid


@pytest.mark.parametrize("stage", ["after_noise", "before_noise"])
def test_a_strategy_of_any_shape_trains_and_is_plotted(
    sounds: Path, tmp_path: Path, stage: str
) -> None:
    pictures = {"class_path": "peas.callbacks.MaskPlots", "init_args": {"clips": 1}}
    run = prepare(tmp_path / "run", sounds, pictures)
    masks = {"class_path": "test_masking_key.Ellipse", "init_args": {"stage": stage}}
    settings = changed(yaml.safe_load(run.config.read_text()), {"masking": masks})
    settings["trainer"] |= {"max_epochs": 1, "limit_train_batches": 2}
    run.config.write_text(yaml.safe_dump(settings))
    where = ("--trainer.default_root_dir", run.folder, "--masking.init_args.radii", "[20, 40]")
    done = call("fit", "--config", run.config, *where)
    assert done.code == 0, done.err
    lines = recorded(run.masks)
    assert len(lines) == 2
    (row,) = [
        row for row in metrics(run.folder / "logs/version_0/metrics.csv") if "mask/fraction" in row
    ]
    share = sum(line["hidden"] for line in lines) / (2 * 6 * 64 * 128)
    assert float(row["mask/fraction"]) == pytest.approx(share, abs=1e-5)
    assert share > 0.1
    assert "mask/adaptive_share" not in row
    assert len(list((run.folder / "plots").glob("epoch_001_*.png"))) == 1
    saved = yaml.safe_load((run.folder / "config.yaml").read_text())["masking"]
    assert saved["init_args"] == {"radii": [20, 40], "stage": stage}
    done = call("test", "--config", run.folder / "config.yaml", "--ckpt_path", run.last)
    assert done.code == 0, done.err


def test_what_is_no_mask_of_the_batch_is_refused(write: Write, tmp_path: Path) -> None:
    config = write(changes={"masking": {"class_path": "test_masking_key.Lines"}})
    done = call("fit", "--config", config, "--trainer.default_root_dir", tmp_path / "run")
    for word in ("`masking`", "Lines", "[6, 64]", "[6, 64, 128]"):
        assert word in done.message


def test_the_base_masks_nothing(write: Write, tmp_path: Path) -> None:
    config = write(changes={"masking": {"class_path": "peas.callbacks.MaskingStrategy"}})
    done = call("fit", "--config", config, "--trainer.default_root_dir", tmp_path / "run")
    assert "MaskingStrategy" in done.message


# --- overlays and flags -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overlay", "argv", "wanted"),
    [
        ({}, ["--masking.init_args.n_time", "1"], {**ARGS, "n_time": 1}),
        ({"init_args": {"n_time": 1}}, [], {**ARGS, "n_time": 1}),
        (
            {"class_path": "peas.callbacks.PEAS", "init_args": {"n_freq": 1}},
            ["--masking.init_args.n_time", "1"],
            {**ARGS, "n_freq": 1, "n_time": 1},
        ),
        ({}, ["--masking", "null"], None),
        (None, [], None),
        (
            {},
            ["--masking.class_path=peas.callbacks.SpecAugment"],
            {"max_time": 24, "max_freq": 24, "stage": "before_noise"},
        ),
    ],
)
def test_an_overlay_names_what_it_changes(
    write: Write, tmp_path: Path, overlay: Any, argv: list[str], wanted: dict[str, Any] | None
) -> None:
    path = tmp_path / "overlay.yaml"
    path.write_text(yaml.safe_dump({"masking": overlay} if overlay != {} else {}))
    settings = ["fit", "--config", write(), "--config", path, *argv, "--print_config"]
    found = yaml.safe_load(call(*settings).out)["masking"]
    if wanted is None:
        assert found is None
    else:
        assert {key: found["init_args"][key] for key in wanted} == wanted


# --- runs of before the key ---------------------------------------------------------------------


def test_a_run_with_its_strategy_in_the_list_resumes_under_the_key(
    trained: Run, sounds: Path, tmp_path: Path
) -> None:
    run = prepare(tmp_path / "run", sounds)
    new = yaml.safe_load(run.config.read_text())
    old = changed(new, {"masking-": None})
    # In front: nothing depends on its place in the list.
    old["trainer"]["callbacks"].insert(0, MASKS)
    run.config.write_text(yaml.safe_dump(old))
    argv = ["fit", "--config", run.config, "--trainer.default_root_dir", run.folder]
    stop = {
        "class_path": "cli_recorder.Signaller",
        "init_args": {"name": "SIGTERM", "at": [1, 1]},
    }
    with pytest.warns(FutureWarning, match="`masking`"):
        assert call(*argv, f"--trainer.callbacks+={json.dumps(stop)}").code == 143
    run.config.write_text(yaml.safe_dump(new))
    with pytest.warns(UserWarning, match="Signaller") as told:
        done = call(*argv, "--ckpt_path", "last")
    assert done.code == 0, done.err
    assert not any("masking" in str(one.message) for one in told)
    assert recorded(run.masks) == recorded(trained.masks)
    ours, theirs = (torch.load(one.last, weights_only=True) for one in (run, trained))
    assert all(torch.equal(ours["state_dict"][k], v) for k, v in theirs["state_dict"].items())
    caches = [state["callbacks"]["PEAS"]["cache"] for state in (ours, theirs)]
    assert caches[0]["ids"] == caches[1]["ids"]
    assert torch.equal(caches[0]["time"], caches[1]["time"])


def test_pretraining_takes_no_masks(write: Write, tmp_path: Path) -> None:
    config = write(changes={"model": SSAST})
    done = call("fit", "--config", config, "--trainer.default_root_dir", tmp_path / "run")
    assert "`masking`" in done.message
    assert "`model.init_args.masking`" in done.message
