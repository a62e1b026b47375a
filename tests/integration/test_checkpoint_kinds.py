"""Every verb that takes a checkpoint, tried with each kind of file: success, or one message."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from drive import BASE, Outcome, Run, Write, call, changed, prepare
from made import built_ssast
from test_stepping import SUPMAM

from peas.errors import CheckpointError
from peas.models.weights import SSAST
from peas.models.weights.checking import check_run

State = dict[str, Any]
GOOD = {
    # What the verbs do with a good file of its kind; every other pair is one message.
    "fine-tuned": {"fit", "test", "validate", "predict", "pretrained", "tag", "export"},
    "pretrained": {"pretrained", "import"},
    "official": {"pretrained", "import"},
    # `peas.load` and `peas export` take its best checkpoint.
    "folder": {"tag", "export"},
}


@pytest.fixture(scope="module")
def mae(trained: Run, sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a pretraining run, one step long."""
    import yaml

    folder = tmp_path_factory.mktemp("mae")
    changes = {"model": SUPMAM, "masking": None, "data.init_args.root": str(sounds)}
    config = changed(BASE, {**changes, "data.init_args.mixup": 0.0})
    (folder / "mae.yaml").write_text(yaml.safe_dump(config))
    where = ("--trainer.default_root_dir", folder / "run", "--trainer.max_steps=1")
    done = call("fit", "--config", folder / "mae.yaml", *where)
    assert done.code == 0, done.err
    return folder / "run/checkpoints/last.ckpt"


def kinds(folder: Path, trained: Run, mae: Path) -> dict[str, Path]:
    """A file of each kind."""
    folder.mkdir()
    torch.save(
        SSAST.to_official(built_ssast("mini", frames=64).state_dict()), folder / "official.pth"
    )
    clap = {"audio_branch.patch_embed.proj.weight": torch.zeros(96, 1, 4, 4)}
    torch.save({"state_dict": clap}, folder / "clap.pt")
    (folder / "cut.ckpt").write_bytes(trained.best.read_bytes()[:50_000])
    (folder / "pickle.ckpt").write_bytes(pickle.dumps({"state_dict": range(3)}))
    (folder / "text.ckpt").write_text("version: 1\n")
    (folder / "empty.ckpt").write_bytes(b"")
    names = ("official.pth", "clap.pt", "cut.ckpt", "pickle.ckpt", "text.ckpt", "empty.ckpt")
    found = {Path(name).stem: folder / name for name in names}
    own = {"fine-tuned": trained.best, "pretrained": mae, "folder": trained.folder}
    return {**own, **found, "absent": folder / "absent.ckpt"}


def verbs(config: Path, clip: Path, out: Path, path: Path) -> dict[str, list[object]]:
    """Command lines of the verbs, with a checkpoint."""
    run = ["--config", config, "--trainer.default_root_dir", out / "run"]
    quick = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]
    quick += ["--trainer.limit_val_batches=1"]
    # A run that goes on and one that begins do not share a folder.
    fresh = ["--config", config, "--trainer.default_root_dir", out / "fresh"]
    mae = "mae" in path.parent.parent.parent.name
    family = ["--model.init_args.encoder=peas.models.AudioMAE"] if mae else []
    return {
        "fit": ["fit", *run, "--ckpt_path", path],
        "pretrained": ["fit", *fresh, *quick, *family, "--model.init_args.pretrained", path],
        **{v: [v, *run, "--ckpt_path", path] for v in ("test", "validate", "predict")},
        "tag": ["tag", clip, "--checkpoint", path],
        "export": ["export", "--checkpoint", path, "--out", out / "out.pth"],
        "import": ["import", path],
    }


def test_every_verb_with_every_kind(
    trained: Run, mae: Path, write: Write, sounds: Path, tmp_path: Path
) -> None:
    config = write(changes={"masking": None, "model.init_args.encoder.init_args.drop_path": 0.1})
    clip = sorted(sounds.glob("audio/*.wav"))[0]
    for kind, path in kinds(tmp_path / "files", trained, mae).items():
        out = tmp_path / kind
        for verb, argv in verbs(config, clip, out, path).items():
            # Reading is one function for all verbs, and evaluation one path for its three.
            if kind in ("pickle", "text", "empty", "absent") and verb not in ("fit", "tag"):
                continue
            if kind != "fine-tuned" and verb in ("validate", "predict"):
                continue
            done = call(*argv)
            if verb in GOOD.get(kind, ()):
                assert done.code == 0, (kind, verb, done.err)
            else:
                assert str(path) in done.message, (kind, verb)


def tagged(path: Path, sounds: Path, *more: object) -> Outcome:
    return call("tag", sorted(sounds.glob("audio/*.wav"))[0], "--checkpoint", path, *more)


def _set(*keys: Any, value: Any) -> Callable[[State], None]:
    def change(content: State) -> None:
        *path, last = keys
        for key in path:
            content = content[key]
        content[last] = value(content[last]) if callable(value) else value

    return change


def _geometry(place: int, value: int) -> Callable[[State], None]:
    def change(content: State) -> None:
        content["state_dict"]["model.geometry"][place] = value

    return change


_nan = _set("state_dict", "model.head.weight", value=lambda w: torch.full_like(w, torch.nan))
FRONT_END = ("hyper_parameters", "front_end", "init_args")
ENCODER = ("hyper_parameters", "encoder", "init_args")
EIGHT_BITS = torch.float8_e5m2
CHANGES: dict[str, tuple[Callable[[State], None], str]] = {
    "huge geometry": (_geometry(4, 10**9), "geometry"),
    "another geometry": (_geometry(0, 65), "geometry|frames"),
    "float geometry": (_set("state_dict", "model.geometry", value=lambda g: g.float()), "geometry"),
    "a list of settings": (_set("hyper_parameters", value=[1]), "hyper_parameters"),
    "no version": (_set("pytorch-lightning_version", value="seven"), "lightning_version"),
    "a number of a version": (_set("pytorch-lightning_version", value=7), "lightning_version"),
    "not a number": (_nan, "head.weight holds NaN"),
    "labels of numbers": (_set("hyper_parameters", "labels", value=[1, 2, 3]), "labels"),
    "fewer labels": (_set("hyper_parameters", "labels", value=["a"]), "labels"),
    "no spread": (_set(*FRONT_END, "std", value=0.0), "std"),
    "a mean of no number": (
        _set(*FRONT_END, "mean", value=float("inf")),
        "mean",
    ),
    "a mean of 400 digits": (
        _set(*FRONT_END, "mean", value=10**400),
        "mean",
    ),
    "another size": (
        _set(*ENCODER, "size", value="large"),
        "size is large",
    ),
    "no geometry": (
        lambda content: content["state_dict"].pop("model.geometry"),
        "geometry is missing",
    ),
    "NaN of eight bits": (
        _set("state_dict", "model.head.weight", value=lambda w: (w * torch.nan).to(EIGHT_BITS)),
        "head.weight holds NaN",
    ),
    "text frames": (
        _set(*FRONT_END, "frames", value="64"),
        "frames",
    ),
    "an unknown size": (
        _set(*ENCODER, "size", value="huge"),
        "size",
    ),
    "a stride of 0": (
        _set(*ENCODER, "stride", value=[0, 16]),
        "stride",
    ),
    "no tensors": (_set("state_dict", value={"model.head.weight": "x"}), "head.weight"),
    "an expanded tensor": (
        _set("state_dict", "model.head.weight", value=torch.zeros(1).expand(10**12)),
        "head.weight claims shape",
    ),
    "no table": (lambda content: content["state_dict"].pop("model.encoder.pos_embed"), ""),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_field_is_named_before_it_is_used(
    trained: Run, sounds: Path, tmp_path: Path, name: str
) -> None:
    change, words = CHANGES[name]
    content = torch.load(trained.best, weights_only=True)
    change(content)
    path = tmp_path / "changed.ckpt"
    torch.save(content, path)
    for message in (
        tagged(path, sounds).message,
        call("test", "--config", trained.config, "--ckpt_path", path).message,
    ):
        assert str(path) in message
        assert any(word in message for word in words.split("|")), message


FIT_CHANGES = {
    "another shape of moments": _set(
        "optimizer_states",
        0,
        "state",
        0,
        value=lambda s: {**s, "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)},
    ),
    "moments of two shapes": _set(
        "optimizer_states", 0, "state", 0, "exp_avg", value=torch.ones(2)
    ),
    "moments without a dimension": lambda content: [
        state.update(exp_avg=torch.tensor(0.0), exp_avg_sq=torch.tensor(0.0))
        for state in content["optimizer_states"][0]["state"].values()
    ],
    "no first moment": lambda content: [
        state.pop("exp_avg") for state in content["optimizer_states"][0]["state"].values()
    ],
    "another kind of Adam": _set("optimizer_states", 0, "param_groups", 0, "amsgrad", value=True),
    "moments of no number": _set(
        "optimizer_states", 0, "state", 0, "exp_avg", value=lambda m: m * torch.nan
    ),
    "an optimizer of no state": _set("optimizer_states", 0, value={"state": 5}),
    "loops of nothing": _set("loops", value={}),
    "a step of text": _set("global_step", value="4"),
    "callbacks of a list": _set("callbacks", value=[1]),
}


FIELDS = {
    "loops of nothing": "fit_loop",
    "a step of text": "global_step",
    "callbacks of a list": "callbacks",
}


@pytest.mark.parametrize("name", FIT_CHANGES)
def test_a_changed_training_state_is_refused(trained: Run, tmp_path: Path, name: str) -> None:
    content = torch.load(trained.last, weights_only=True)
    FIT_CHANGES[name](content)
    path = tmp_path / "changed.ckpt"
    torch.save(content, path)
    where = ("--trainer.default_root_dir", tmp_path / "run", "--trainer.max_epochs=4")
    message = call("fit", "--config", trained.config, *where, "--ckpt_path", path).message
    assert str(path) in message
    assert FIELDS.get(name, "optimizer_states") in message


def test_moments_of_two_shapes_are_found_without_the_model(trained: Run) -> None:
    content = torch.load(trained.last, weights_only=True)
    check_run(content, "x.ckpt")
    FIT_CHANGES["moments of two shapes"](content)
    with pytest.raises(CheckpointError, match=r"^x\.ckpt: optimizer_states\[0\]: state\[0\]"):
        check_run(content, "x.ckpt")


def test_a_model_whose_scores_are_no_numbers_tags_nothing(
    trained: Run, sounds: Path, tmp_path: Path
) -> None:
    content = torch.load(trained.best, weights_only=True)
    content["state_dict"]["model.head.weight"].fill_(3e38)
    path = tmp_path / "loud.ckpt"
    torch.save(content, path)
    done = tagged(path, sounds)
    assert str(path) in done.message
    assert "nan" not in done.out


def test_no_class_that_a_checkpoint_names_is_imported_or_called(
    trained: Run, sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trap.py").write_text("open(__file__ + '.ran', 'w')\ndef Task(*a, **k): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for key in ("_class_path", "_instantiator"):
        content = torch.load(trained.best, weights_only=True)
        content["hyper_parameters"][key] = "trap.Task"
        path = tmp_path / f"{key}.ckpt"
        torch.save(content, path)
        tagged(path, sounds)
        call("test", "--config", trained.config, "--ckpt_path", path)
        where = ("--trainer.default_root_dir", tmp_path / key, "--trainer.max_steps=1")
        call("fit", "--config", trained.config, *where, "--ckpt_path", path)
        # Lightning's own would follow these keys.
        from peas.tasks import Classification

        assert Classification.load_from_checkpoint(path, weights_only=True).built
        assert not (tmp_path / "trap.py.ran").exists(), key


def test_an_archive_that_grows_is_refused(trained: Run, sounds: Path, tmp_path: Path) -> None:
    path = tmp_path / "grows.ckpt"
    with (
        zipfile.ZipFile(trained.best) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for item in source.infolist():
            packed.writestr(item.filename, source.read(item.filename))
    assert "compressed" in tagged(path, sounds).message


def test_labels_cannot_control_the_terminal(trained: Run, sounds: Path, tmp_path: Path) -> None:
    content = torch.load(trained.best, weights_only=True)
    labels = content["hyper_parameters"]["labels"]
    content["hyper_parameters"]["labels"] = ["\x1b[2Jgone\n\x07", *labels[1:]]
    path = tmp_path / "escape.ckpt"
    torch.save(content, path)
    done = tagged(path, sounds)
    assert done.code == 0
    assert "\\x1b[2Jgone\\n\\x07" in done.out
    assert "\x1b" not in done.out
    out = tmp_path / "out.pth"
    assert "\x1b" not in call("export", "--checkpoint", path, "--out", out).out
    message = call("test", "--config", trained.config, "--ckpt_path", path).message
    assert "\x1b" not in message
    assert "\\x1b[2J" in message


# --- channels and windows ----------------------------------------------------------------------


def test_tag_hears_the_channels_that_trained_and_the_window_that_is_tested(
    sounds: Path, tmp_path: Path
) -> None:
    import shutil

    root = Path(shutil.copytree(sounds, tmp_path / "stereo"))
    clips = sorted(root.glob("audio/*.wav"))
    rng = np.random.default_rng(0)
    for place, clip in enumerate(clips):
        sound, rate = soundfile.read(clip)
        # Several times the input's length for some, with another mean at the end.
        sound = np.r_[sound, *([rng.normal(0.2, 0.1, 4 * len(sound))] if place % 2 else [])]
        soundfile.write(clip, np.c_[sound, -sound], rate)
    run = prepare(tmp_path / "run", root)
    where = ("--config", run.config, "--trainer.default_root_dir", run.folder)
    first = "--data.init_args.channels=first"
    assert call("fit", *where, first, "--trainer.max_epochs=1").code == 0
    content = torch.load(run.last, weights_only=True)
    assert content["hyper_parameters"]["front_end"]["init_args"]["channels"] == "first"
    message = call("predict", *where, "--ckpt_path", run.last).message
    assert "data.init_args.channels" in message
    done = call("predict", *where, first, "--ckpt_path", run.last)
    assert done.code == 0, done.err
    import csv
    import json

    with (run.folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    where = ("--checkpoint", run.last, "--json", "--long", "first")
    found = call("tag", *(root / "audio" / row["id"] for row in rows), *where)
    for row, line in zip(rows, found.out.splitlines(), strict=True):
        for tag in json.loads(line)["tags"]:
            assert tag["score"] == pytest.approx(float(row[tag["label"]]), abs=2e-6)
    # Checkpoints of before keep what they did.
    del content["hyper_parameters"]["front_end"]["init_args"]["channels"]
    torch.save(content, tmp_path / "old.ckpt")
    done = call("tag", clips[1], "--checkpoint", tmp_path / "old.ckpt", "--long", "first")
    assert done.code == 0
    assert "scored by its first" in done.out


# --- what a shell gives ------------------------------------------------------------------------


def test_tag_goes_on_behind_a_bad_clip(trained: Run, sounds: Path, tmp_path: Path) -> None:
    import os

    good = sorted(sounds.glob("audio/*.wav"))[0]
    name = tmp_path / os.fsdecode(b"bad\xff.wav")
    name.write_bytes(good.read_bytes())
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    missing = tmp_path / "missing.wav"
    done = call("tag", missing, pipe, tmp_path, name, good, "--checkpoint", trained.best)
    assert done.out.count("0.64 s") == 2
    assert "bad\\udcff.wav" in done.out
    for path in (missing, pipe, tmp_path):
        assert f"{path}: " in done.message
    assert done.code == 1


def test_a_full_disk_behind_standard_output(
    trained: Run, sounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    from peas.cli.verbs import dispatch
    from peas.errors import PeasError

    clip = sorted(sounds.glob("audio/*.wav"))[0]
    # Line by line, so that the stream has nothing left when it is closed.
    with open("/dev/full", "w", encoding="ascii", errors="strict") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(PeasError, match=r"standard output: .*No space left"):
            dispatch(["tag", str(clip), "--checkpoint", str(trained.best)])


@pytest.mark.parametrize("top", ["-1", "0", "x"])
def test_a_number_of_labels_below_one(trained: Run, sounds: Path, top: str) -> None:
    done = tagged(trained.best, sounds, "--top", top)
    assert done.code == 2
    assert "--top" in done.err


@pytest.mark.parametrize("name", ["x.safetensors", "x.json", "x"])
def test_export_writes_pytorch_files_alone(trained: Run, tmp_path: Path, name: str) -> None:
    argv = ("export", "--checkpoint", trained.best, "--out", tmp_path / name)
    assert ".pth" in call(*argv).message
    assert not list(tmp_path.iterdir())


def test_an_export_without_room_leaves_nothing(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "out" / "w.pth"
    message = call("export", "--checkpoint", trained.best, "--out", out).message
    assert str(out) in message
    assert "No space left" in message
    assert not list(out.parent.iterdir())
