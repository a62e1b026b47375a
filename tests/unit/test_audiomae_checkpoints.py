"""Files of AudioMAE: what is taken, cut, refused; and that nothing in them is ever run."""

import argparse
import os
import re

import pytest
import torch
import toys  # noqa: F401 - the size `toy`
from made import built_audiomae, built_ssast, classification

from peas.cli.verbs import dispatch
from peas.errors import CheckpointError, ConfigError, NoReconstruction
from peas.models.audiomae_layers import DecoderShape, position_table
from peas.models.weights import AUDIOMAE, SSAST, load_pretrained, read_state
from peas.tasks import Classification

LOCAL, GLOBAL = DecoderShape("local", 32, 2, 2), DecoderShape("global", 32, 2, 16)


def build(frames=128, **settings):
    torch.manual_seed(len(settings))
    return built_audiomae("toy", frames=frames, **settings).eval()


def official(model, **beside):
    """As the official code saves a pretrained model."""
    rest = {"epoch": 3, "optimizer": {}, "args": argparse.Namespace(mask_ratio=0.8), **beside}
    return {"model": AUDIOMAE.to_official(model.state_dict()), **rest}


def save(folder, state, name="weights.pth"):
    torch.save(state, folder / name)
    return folder / name


@pytest.fixture
def file(tmp_path):
    return save(tmp_path, official(build(decoder=LOCAL)))


# --- what a file is ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "kind", "grid"),
    [
        ({"decoder": LOCAL}, "pretrained", (8, 8)),
        ({"decoder": GLOBAL}, "pretrained", (8, 8)),
        ({"decoder": LOCAL, "frames": 400}, "pretrained", (8, 25)),
        ({"num_classes": 4, "frames": 64}, "fine-tuned", (8, 4)),
        (
            {"decoder": LOCAL._replace(window=6), "frames": 1024, "stride": (10, 10)},
            "pretrained",
            (12, 101),
        ),
    ],
)
def test_an_official_file_tells_what_it_is(tmp_path, settings, kind, grid):
    model = build(**settings)
    layout = "fine-tuned" if kind == "fine-tuned" else "pretrained"
    path = save(tmp_path, {"model": AUDIOMAE.to_official(model.state_dict(), layout)})
    facts = AUDIOMAE.describe(read_state(path))
    assert (facts.layout, facts.kind, facts.size, facts.grid) == ("official", kind, "toy", grid)
    assert (facts.patch, facts.stride) == (model.patch, model.stride)
    assert facts.num_classes == settings.get("num_classes", 0)
    assert facts.decoder == settings.get("decoder")


@pytest.mark.parametrize("wrapped", ["model", "state_dict", "bare", "module"])
def test_wrappers_of_an_official_file(tmp_path, wrapped):
    state = AUDIOMAE.to_official(build(decoder=LOCAL).state_dict())
    content = {
        "model": {"model": state},
        "state_dict": {"state_dict": state},
        "bare": state,
        "module": {"model": {f"module.{key}": value for key, value in state.items()}},
    }[wrapped]
    report = load_pretrained(model := build(decoder=LOCAL, norm_pix=True), save(tmp_path, content))
    assert len(report.used) == len(state)
    assert not report.missing
    assert all(
        torch.equal(AUDIOMAE.to_official(model.state_dict())[key], state[key]) for key in state
    )


def test_what_lay_beside_the_model_is_reported_and_left(file):
    report = load_pretrained(build(decoder=LOCAL), file)
    assert "pretrained AudioMAE (toy)" in str(report)
    assert "positions: the stored raster" in str(report)


# --- lengths and positions -----------------------------------------------------------------


@pytest.mark.parametrize("raster", ["stored", "geometric"])
@pytest.mark.parametrize("frames", [64, 128, 512])
def test_positions_are_cut_or_continued_in_the_files_own_raster(tmp_path, raster, frames):
    path = save(tmp_path, official(build(decoder=LOCAL, positions=raster)))
    model = build(frames, decoder=LOCAL)
    report = load_pretrained(model, path)
    for table, width in ((model.encoder.pos_embed, 32), (model.decoder.pos_embed, 32)):
        expected = position_table(width, frames // 16, 8, raster)
        torch.testing.assert_close(table, expected, rtol=0, atol=1e-6)
    change = "" if frames == 128 else f", 8 to {frames // 16} in time"
    assert f"positions: the {raster} raster{change}" in report.notes


def test_a_table_of_neither_raster_is_taken_as_it_is_and_never_stretched(tmp_path):
    source = build(decoder=LOCAL)
    source.encoder.pos_embed.normal_()
    path = save(tmp_path, official(source))
    model = build(decoder=LOCAL)
    report = load_pretrained(model, path)
    assert "of neither raster, taken as it is" in str(report)
    assert torch.equal(model.encoder.pos_embed, source.encoder.pos_embed)
    with pytest.raises(CheckpointError, match=r"weights\.pth: the file's table of 64 positions"):
        load_pretrained(build(64, decoder=LOCAL), path)
    source = build(decoder=LOCAL)
    source.decoder.pos_embed.normal_()
    with pytest.raises(CheckpointError, match="its decoder's table of 64 positions"):
        load_pretrained(build(64, decoder=LOCAL), save(tmp_path, official(source)))
    # And another length of clip has no such positions either.
    with pytest.raises(ConfigError, match="neither AudioMAE's stored raster"):
        model.embedding(torch.randn(1, 64, 128))


# --- what is left --------------------------------------------------------------------------


def test_a_decoder_of_another_shape_is_left_and_the_encoder_taken(file):
    for shape in (LOCAL._replace(depth=1), LOCAL._replace(window=2), GLOBAL):
        model = build(decoder=shape)
        before = model.decoder.embed.weight.clone()
        report = load_pretrained(model, file)
        assert "the decoder is new: the file's decoder is" in str(report)
        assert torch.equal(model.decoder.embed.weight, before)
        theirs = read_state(file)["model"]["blocks.0.attn.qkv.weight"]
        assert torch.equal(model.encoder.blocks[0].attn.qkv.weight, theirs)


def test_a_file_without_pixels_leaves_the_pixel_layer_new(tmp_path):
    """SupMAM after MAM-CLAP."""
    source = build(decoder=LOCAL, pixels=False)
    path = save(tmp_path, {"state_dict": {f"model.{k}": v for k, v in source.state_dict().items()}})
    model = build(decoder=LOCAL)
    report = load_pretrained(model, path)
    assert {key.rpartition(".")[0] for key in report.missing} == {"decoder.pred"}
    assert torch.equal(model.decoder.embed.weight, source.decoder.embed.weight)
    assert model.reconstructs
    # The other way round the pixel layer is not wanted.
    back = build(decoder=LOCAL, pixels=False)
    report = load_pretrained(back, save(tmp_path, official(model)))
    assert {"decoder_pred.weight", "decoder_pred.bias"} <= set(report.ignored)
    assert not back.reconstructs


def test_a_classifier_of_other_classes_is_left(tmp_path):
    path = save(
        tmp_path, {"model": AUDIOMAE.to_official(build(num_classes=4).state_dict(), "fine-tuned")}
    )
    model = build(num_classes=7)
    report = load_pretrained(model, path)
    assert "the file has 4 classes and the model 7" in str(report)
    assert "fc_norm" in report.missing["encoder.norm.weight"]
    with pytest.raises(NoReconstruction):
        model.reconstruct(torch.randn(1, 128, 128))


# --- what is refused -----------------------------------------------------------------------


def change(state, key, value):
    state["model"][key] = value
    if value is None:
        del state["model"][key]


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"size": "mini"}, {}, "holds a toy model and the model to fill is mini; set size to toy"),
        ({"patch": (16, 8)}, {}, r"has patches of \(16, 16\) .* set patch to \[16, 16\]"),
        ({"stride": (10, 10)}, {}, r"at steps of \(16, 16\).*stride to \[16, 16\]"),
        ({"mels": 64}, {}, "has 8 rows of patches along frequency and the model 4"),
        ({}, {"blocks.1.mlp.fc1.weight": None}, r"blocks\.1\.mlp\.fc1\.weight .* is missing"),
        ({}, {"blocks.7.mlp.fc1.weight": torch.zeros(2)}, r"unexpected key blocks\.7\.mlp"),
        ({}, {"momentum_blocks.0.x": torch.zeros(2)}, "unexpected key momentum_blocks"),
        ({}, {"norm.weight": torch.zeros(7)}, r"norm\.weight has shape \[7\] .* needs \[32\]"),
        ({}, {"pos_embed": torch.zeros(1, 64, 32)}, "63 positions, which do not fill 8 rows"),
        ({}, {"pos_embed": torch.zeros(1, 65, 48)}, "one of the widths"),
        ({}, {"patch_embed.proj.weight": torch.zeros(32, 3, 16, 16)}, "one input channel"),
        ({}, {"cls_token": None}, "AudioMAE.*cls_token"),
        ({}, {"decoder_blocks.1.attn.tau": None}, r"decoder_blocks\.1\.attn\.tau .* is missing"),
    ],
)
def test_another_or_incomplete_file_is_refused_and_changes_nothing(
    tmp_path, settings, changes, message
):
    state = official(build(decoder=LOCAL))
    for key, value in changes.items():
        change(state, key, value)
    path = save(tmp_path, state)
    size = settings.pop("size", "toy") if settings else "toy"
    model = built_audiomae(size, frames=128, decoder=LOCAL, **settings)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(model, path)
    assert str(path) in str(caught.value)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("kept", [0, 100, 5000, -20])
def test_truncated(file, kept):
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="cut short, damaged"):
        load_pretrained(build(decoder=LOCAL), file)


class Payload:
    """What a foreign file might hold among its arguments."""

    def __init__(self, where):
        self.where = where

    def __reduce__(self):
        return os.mkdir, (self.where,)


class Foreign:
    """A class that the file names and nobody has allowed."""


@pytest.mark.parametrize("what", ["payload", "class"])
def test_a_namespace_that_holds_something_foreign_is_refused_and_not_run(tmp_path, what):
    trap = tmp_path / "executed"
    inside = Payload(str(trap)) if what == "payload" else Foreign()
    path = save(tmp_path, official(build(decoder=LOCAL), args=argparse.Namespace(log=inside)))
    with pytest.raises(CheckpointError, match=r"refused, because .* nothing was executed"):
        load_pretrained(build(decoder=LOCAL), path)
    assert not trap.exists()


def test_a_namespace_of_plain_values_is_read(tmp_path):
    args = argparse.Namespace(mask_ratio=0.8, blr=2e-4, dist_url="env://", betas=(0.9, 0.95))
    path = save(tmp_path, official(build(decoder=LOCAL), args=args))
    assert read_state(path)["args"] == args
    # Elsewhere in the process torch still refuses the class.
    with pytest.raises(Exception, match=r"argparse\.Namespace"):
        torch.load(path, weights_only=True)


def test_the_other_familys_files_are_refused_by_name(tmp_path, file):
    ssast = built_ssast("toy", frames=128)
    with pytest.raises(
        CheckpointError,
        match=r"holds AudioMAE weights.*encoder\.class_path: peas\.models\.AudioMAE`",
    ):
        load_pretrained(ssast, file)
    for state in (SSAST.to_official(ssast.state_dict()), {"state_dict": ssast.state_dict()}):
        path = save(tmp_path, state, "ssast.pth")
        with pytest.raises(CheckpointError, match=r"SSAST weights.*peas\.models\.SSAST`"):
            load_pretrained(build(decoder=LOCAL), path)


def test_a_missing_file_and_one_of_neither_family(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_pretrained(build(decoder=LOCAL), tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match=r"weights\.pth.*AudioMAE.*holds a"):
        load_pretrained(build(decoder=LOCAL), save(tmp_path, {"a": torch.zeros(2)}))


# --- export and import ---------------------------------------------------------------------


def checkpoint(folder, model, labels=None, prefix="model."):
    """As Lightning saves a run, with the heads of pretraining beside the model."""
    state = {prefix + key: value for key, value in model.state_dict().items()}
    state["heads.label.fc1.weight"] = torch.zeros(3, 3)
    hparams = {"labels": labels or [], "frames": 128}
    return save(folder, {"state_dict": state, "hyper_parameters": hparams}, "run.ckpt")


def test_export_of_a_pretraining_run(tmp_path, capsys):
    model = build(decoder=LOCAL)
    path = checkpoint(tmp_path, model, ["a", "b"])
    out = tmp_path / "out" / "official.pth"
    argv = ["--checkpoint", str(path), "--out", str(out)]
    with pytest.raises(CheckpointError, match=r"run\.ckpt: these weights have no classifier"):
        dispatch(["export", *argv])
    assert not out.exists()
    dispatch(["export", *argv, "--layout", "pretrained"])
    assert "pretrained layout" in capsys.readouterr().out
    theirs = torch.load(out, weights_only=True)
    assert set(theirs) == {"model"}
    assert not any("heads" in key for key in theirs["model"])
    again = build(decoder=LOCAL, norm_pix=True)
    load_pretrained(again, out)
    x = torch.randn(1, 128, 128)
    with torch.no_grad():
        assert torch.equal(again.reconstruct(x), model.reconstruct(x))
    # It is official already.
    with pytest.raises(CheckpointError, match="in the official layout already"):
        dispatch(
            [
                "export",
                "--checkpoint",
                str(out),
                "--out",
                str(out.with_name("second.pth")),
                "--layout",
                "pretrained",
            ]
        )


def test_export_without_a_pixel_decoder_names_the_file(tmp_path):
    path = checkpoint(tmp_path, build(decoder=LOCAL, pixels=False), ["a"])
    argv = ["--checkpoint", str(path), "--out", str(tmp_path / "o.pth"), "--layout", "pretrained"]
    with pytest.raises(NoReconstruction, match=rf"{re.escape(str(path))}: .*pixel decoder"):
        dispatch(["export", *argv])


def test_fine_tuned_weights_go_out_and_come_back(tmp_path, capsys):
    from peas.data.labels import read_labels

    labels = read_labels("esc50")
    torch.manual_seed(0)
    task = classification(
        None,
        size="toy",
        encoder="audiomae",
        labels=labels,
        mean=-6.6268077,
        std=5.358466,
        frames=512,
        multi_label=False,
    )
    task.build(initialise=False)
    torch.nn.init.normal_(task.model.head.weight)
    own, out, back = (tmp_path / name for name in ("own.ckpt", "out.pth", "back.ckpt"))
    torch.save({"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}, own)
    dispatch(["export", "--checkpoint", str(own), "--out", str(out)])
    assert labels[0] in capsys.readouterr().out
    dispatch(["import", str(out)])
    assert "official fine-tuned AudioMAE (toy)" in capsys.readouterr().out
    dispatch(["import", str(out), "--out", str(back), "--dataset", "esc50"])
    made = Classification.load_from_checkpoint(back, weights_only=True, map_location="cpu").eval()
    encoder = made.hparams["encoder"]
    assert encoder["class_path"] == "peas.models.AudioMAE"
    assert encoder["init_args"]["stride"] == [16, 16]
    x = torch.randn(2, 512, 128)
    with torch.no_grad():
        assert torch.equal(made(x), task.eval()(x))
    with pytest.raises(CheckpointError, match="leave --stride out"):
        dispatch(["import", str(out), "--stride", "10", "10"])
    with pytest.raises(CheckpointError, match="50 classes and audioset 527"):
        dispatch(["import", str(out), "--dataset", "audioset"])
    with pytest.raises(CheckpointError, match="holds a toy model") as caught:
        load_pretrained(built_audiomae("mini", num_classes=50, frames=512), out)
    assert str(out) in str(caught.value)


def test_import_of_a_pretrained_file_says_what_to_do(tmp_path, file, capsys):
    from peas.errors import PeasError

    dispatch(["import", str(file), "--dataset", "speech_commands_v2"])
    assert "pretrained AudioMAE" in capsys.readouterr().out
    with pytest.raises(PeasError, match=r"has no classifier.*Fine-tune it"):
        dispatch(["import", str(file), "--out", str(tmp_path / "o.ckpt")])
