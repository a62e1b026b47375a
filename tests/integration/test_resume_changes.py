"""What a resumed run makes of an epoch that was cut, and of data and batches that changed."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_recorder import recorded
from drive import Outcome, Run, Write, call, fit, metrics, prepare

EVERY = ("--trainer.log_every_n_steps", "1")


def _state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def _resume(run: Run, *argv: object) -> Outcome:
    where = ("--trainer.default_root_dir", run.folder, "--ckpt_path", "last")
    return call("fit", "--config", run.config, *where, *argv)


def _trained_alike(run: Run, whole: Run) -> None:
    """Every batch once, in its order, and the same weights, moments and epoch means."""
    places = [(line["epoch"], line["step"]) for line in recorded(run.masks)]
    assert places == [(line["epoch"], line["step"]) for line in recorded(whole.masks)]
    assert recorded(run.masks) == recorded(whole.masks)
    ours, theirs = _state(run.last), _state(whole.last)
    for key, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][key], value), key
    assert ours["global_step"] == theirs["global_step"]
    losses = [
        [row["train/loss"] for row in metrics(path) if "train/loss" in row][-1]
        for path in (
            sorted(each.folder.glob("logs/version_*/metrics.csv"))[-1] for each in (run, whole)
        )
    ]
    assert losses[0] == losses[1]


CUTS = {
    "max_steps": ("--trainer.max_steps=6",),
    "max_time": ("--trainer.callbacks+=" + json.dumps({"class_path": "cli_recorder.Ender"}),),
}


@pytest.mark.parametrize("cut", list(CUTS))
def test_an_epoch_that_was_cut_is_trained_to_its_end(
    trained: Run, sounds: Path, tmp_path: Path, cut: str
) -> None:
    run, done = fit(tmp_path / "run", sounds, *CUTS[cut])
    assert done.code == 0, done.err
    last = _state(run.last)
    # Two steps of the second epoch's four; the run closed it, the checkpoint did not.
    assert last["global_step"] == 6
    progress = last["loops"]["fit_loop"]["epoch_progress"]["current"]
    assert (progress["started"], progress["processed"]) == (2, 1)
    done = _resume(run)
    assert done.code == 0, done.err
    _trained_alike(run, trained)


def test_an_end_waits_for_the_gradients_that_are_accumulated(sounds: Path, tmp_path: Path) -> None:
    argv = ("--trainer.accumulate_grad_batches=2", "--trainer.max_epochs=2")
    whole, done = fit(tmp_path / "whole", sounds, *argv)
    assert done.code == 0, done.err
    ender = json.dumps({"class_path": "cli_recorder.Ender", "init_args": {"at": [1, 0]}})
    run, done = fit(tmp_path / "run", sounds, *argv, f"--trainer.callbacks+={ender}")
    assert done.code == 0, done.err
    assert _state(run.last)["global_step"] == 3
    assert len(recorded(run.masks)) == 6
    done = _resume(run, *argv)
    assert done.code == 0, done.err
    _trained_alike(run, whole)


@pytest.fixture
def inside(trained: Run, sounds: Path, tmp_path: Path) -> Run:
    """A run that stands after two of the four batches of its second epoch."""
    run, done = fit(tmp_path / "run", sounds, "--trainer.max_steps=6")
    assert done.code == 0, done.err
    return run


def test_inside_an_epoch_a_batch_is_what_it_was(inside: Run) -> None:
    message = _resume(inside, "--data.init_args.batch_size=4").message
    assert "2 batches of 6 clips" in message
    assert "now 4" in message
    message = _resume(inside, "--data.init_args.sampling=balanced").message
    assert "label_fraction" in message
    message = _resume(inside, "--trainer.accumulate_grad_batches=2").message
    assert "`trainer.accumulate_grad_batches` is 2" in message
    message = _resume(inside, "--seed_everything=1").message
    assert "`seed_everything` is 1" in message
    # Nothing was trained meanwhile.
    assert len(recorded(inside.masks)) == 6
    assert _state(inside.last)["global_step"] == 6


def test_between_epochs_a_batch_may_have_another_size(
    trained: Run, sounds: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, done = fit(tmp_path / "run", sounds, "--trainer.max_epochs=1")
    assert done.code == 0, done.err
    argv = ("--data.init_args.batch_size=4", "--trainer.max_epochs=2")
    with pytest.warns(UserWarning, match=r"data\.init_args\.batch_size: 6 → 4"):
        done = _resume(run, *argv)
    assert done.code == 0, done.err
    second = [line["ids"] for line in recorded(run.masks) if line["epoch"] == 1]
    clips = [clip for ids in second for clip in ids]
    assert len(clips) == len(set(clips)) == 24


def test_another_fold_would_validate_on_trained_clips(copied: Run) -> None:
    prepare_again = ("--config", copied.config, "--trainer.default_root_dir", copied.folder)
    message = call(
        "fit",
        *prepare_again,
        "--ckpt_path=last",
        "--trainer.max_epochs=4",
        "--data.init_args.fold=2",
    ).message
    assert "6 of the 6 validation clips" in message
    assert "pretrained" in message
    message = call("test", *prepare_again, f"--ckpt_path={copied.last}", "--data.init_args.fold=2")
    assert "6 of the 6 test clips" in message.message


def test_clips_that_changed_are_counted(copied: Run, damaged: Path) -> None:
    table = damaged / "meta" / "esc50.csv"
    with table.open(newline="") as file:
        rows = list(csv.reader(file))
    head, clips = rows[0], rows[1:]
    # The first two clips of fold 2, which trains, exchange their classes; a third grows.
    fold, target, category = (head.index(name) for name in ("fold", "target", "category"))
    two = [row for row in clips if row[fold] == "2"]
    other = next(row for row in two if row[target] != two[0][target])
    for column in (target, category):
        two[0][column], other[column] = other[column], two[0][column]
    grown = next(row for row in two if row not in (two[0], other))
    with (damaged / "audio" / grown[0]).open("ab") as file:
        file.write(bytes(2))
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([head, *clips])
    prepare(copied.folder, damaged)
    config = copied.folder.with_suffix(".yaml")
    argv = ("--trainer.default_root_dir", copied.folder, "--trainer.max_epochs=4")
    with pytest.warns(UserWarning, match="changed settings") as said:
        done = call("fit", "--config", config, *argv, "--ckpt_path=last")
    assert done.code == 0, done.err
    told = "\n".join(str(warning.message) for warning in said)
    assert "2 clips with other classes, 1 clips with other sound" in told
    assert "data.init_args.root: " in told
    assert "trainer.max_epochs: 3 → 4" in told


def test_what_was_measured_stays_the_run_s_when_clips_are_added(
    write: Write, tmp_path: Path
) -> None:
    audio = tmp_path / "set"
    shutil.copytree(Path(_root(write())), audio)
    names = sorted(path.name for path in (audio / "audio").iterdir())
    lines = ["path,label,fold", *(f"audio/{n},{n[-5]},{n[0]}" for n in names)]
    extra = lines.pop()
    (audio / "clips.csv").write_text("\n".join(lines) + "\n")
    data = {"root": str(audio), "csv": "clips.csv", "fold": 1, "split": "official"}
    data |= {"frames": 64, "batch_size": 6, "num_workers": 0}
    config = write("own.yaml", data={"class_path": "peas.data.AudioFolder", "init_args": data})
    argv = ("fit", "--config", config, "--trainer.default_root_dir", tmp_path / "run")
    done = call(*argv, "--trainer.max_epochs=1")
    assert done.code == 0, done.err
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    before = _state(last)["hyper_parameters"]
    (audio / "clips.csv").write_text("\n".join([*lines, extra]) + "\n")
    with pytest.warns(
        UserWarning, match="the run keeps `model.init_args.front_end.init_args.mean"
    ) as said:
        done = call(*argv, "--trainer.max_epochs=2", "--ckpt_path=last")
    assert done.code == 0, done.err
    assert any("1 clips added" in str(warning.message) for warning in said)
    after = _state(last)
    assert after["hyper_parameters"]["front_end"] == before["front_end"]
    for key in ("mean", "std"):
        saved = before["front_end"]["init_args"][key]
        assert float(after["state_dict"][f"front_end.{key}"]) == pytest.approx(saved)
    # What a setting asks for is another matter.
    given = ("--data.init_args.mean=-5.0", "--data.init_args.std=4.0")
    message = call(*argv, "--trainer.max_epochs=3", "--ckpt_path=last", *given).message
    assert "`model.init_args.front_end.init_args.mean` is -5.0" in message


def test_a_metric_that_is_no_number_is_told_once(write: Write, tmp_path: Path) -> None:
    """No validation clip has a class, so the mean of average precisions is that of none."""
    audio = tmp_path / "set"
    shutil.copytree(Path(_root(write())), audio)
    names = sorted(path.name for path in (audio / "audio").iterdir())
    lines = ["path,labels,fold"]
    lines += [f"audio/{n},{'' if n[0] == '1' else 'x;y'},{n[0]}" for n in names]
    (audio / "clips.csv").write_text("\n".join(lines) + "\n")
    changes = {
        "data": {
            "class_path": "peas.data.AudioFolder",
            "init_args": {
                **{"root": str(audio), "csv": "clips.csv", "fold": 1, "split": "official"},
                **{"multi_label": True, "frames": 64, "batch_size": 6, "num_workers": 0},
                **{"mean": -5.0, "std": 4.0},
            },
        },
        "model.init_args.loss": "bce",
    }
    config = write("nan.yaml", **{"changes": {**changes}, "data.init_args.root": str(audio)})
    with pytest.warns(UserWarning, match=r"val/mAP, which selects best\.ckpt, is nan"):
        done = call(
            *("fit", "--config", config, "--trainer.max_epochs=2"),
            *("--trainer.default_root_dir", tmp_path / "run"),
        )
    assert done.code == 0, done.err


def _root(config: Path) -> str:
    import yaml

    root: str = yaml.safe_load(config.read_text())["data"]["init_args"]["root"]
    return root
