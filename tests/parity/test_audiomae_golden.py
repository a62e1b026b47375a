"""Our model against numbers of the official AudioMAE code for the same weights and inputs."""

import argparse
import json

import numpy as np
import pytest
import torch
from made import built_audiomae
from test_ssast_golden import rule, sound

from peas.models.audiomae_layers import DecoderShape, position_table, raster_of
from peas.models.weights import AUDIOMAE, load_pretrained, read_state
from peas.objectives import masked_patch_error

TOLERANCE = {"rtol": 0, "atol": 2e-5}
RATIOS = {80: 0.8, 40: 0.4, 20: 0.2}


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared / "golden" / "audiomae_base_seed0.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def official(shared, tmp_path_factory):
    """Files as the official code saves them, its arguments and optimiser beside the model."""
    kinds = json.loads((shared / "golden" / "official_state_dict_shapes.json").read_text())
    folder = tmp_path_factory.mktemp("official")
    for name in ("pretrain", "finetune_527"):
        state = {k: rule(k, shape) for k, shape in kinds[f"audiomae_base_{name}"].items()}
        beside = {"epoch": 3, "optimizer": {}, "args": argparse.Namespace(mask_ratio=0.8)}
        torch.save({"model": state, **beside}, folder / f"{name}.pth")
    return folder


@pytest.fixture(scope="module")
def pretrained(official):
    model = built_audiomae("base", decoder=DecoderShape())
    report = load_pretrained(model, official / "pretrain.pth")
    assert len(report.used) == 430
    assert not report.missing
    return model.eval()


@pytest.fixture(scope="module")
def log_mel():
    return sound("audiomae", 1, 1, 1024, 128)[:, 0]


def test_fresh_tables_are_those_of_the_official_constructor(golden):
    rows = [0, 1, 2, 9, 64, 65, 300, 512]
    for width, name in ((768, "sincos_pos_embed_rows"), (512, "sincos_decoder_pos_embed_rows")):
        table = position_table(width, 64, 8)
        torch.testing.assert_close(table[0, rows], golden[name].view(-1, width), rtol=0, atol=1e-6)
        assert raster_of(table, 8) == "stored"
        assert not torch.allclose(table, position_table(width, 64, 8, "geometric"))


@pytest.mark.parametrize("percent", RATIOS)
@torch.no_grad()
def test_encoder_decoder_and_loss_are_the_official_ones(golden, pretrained, log_mel, percent):
    kept = golden[f"mask{percent}_ids_keep"].view(1, -1).long()
    assert kept.shape[1] == int(512 * (1 - RATIOS[percent]))
    hidden = torch.ones(1, 512, dtype=torch.bool).scatter(1, kept, False)
    visible = kept.sort().values
    patches = pretrained.encoder.patches(log_mel)
    tokens = pretrained.encoder.norm(pretrained.encoder(patches, visible))
    torch.testing.assert_close(
        tokens.mean(dim=1).flatten(),
        golden[f"mask{percent}_encoder_mean_over_tokens"].flatten(),
        **TOLERANCE,
    )
    first = golden[f"mask{percent}_encoder_first_tokens"].view(-1, 768)
    place = torch.searchsorted(visible[0], kept[0, : len(first) - 1]) + 1
    ours = torch.cat((tokens[0, :1], tokens[0, place]))
    torch.testing.assert_close(ours, first, **TOLERANCE)
    drawn = pretrained.decoder.pred(pretrained.decoder(tokens, visible, 512))
    theirs = golden[f"mask{percent}_decoder_tokens_0_43_511"].view(3, 256)
    torch.testing.assert_close(drawn[0, [0, 43, 511]], theirs, **TOLERANCE)
    loss = masked_patch_error(drawn, pretrained.targets(patches), hidden)
    assert abs(loss.item() - golden[f"mask{percent}_loss"].item()) < 2e-5


@torch.no_grad()
def test_classifier_of_an_official_fine_tuned_file_gives_its_logits(golden, official, log_mel):
    model = built_audiomae("base", num_classes=527)
    report = load_pretrained(model, official / "finetune_527.pth")
    assert len(report.used) == 152
    assert set(report.missing) == {"encoder.norm.weight", "encoder.norm.bias"}
    logits = model.eval()(log_mel)
    torch.testing.assert_close(logits, golden["finetune_logits_527"].view(1, -1), **TOLERANCE)


@pytest.mark.parametrize(
    ("name", "layout"), [("pretrain", "pretrained"), ("finetune_527", "fine-tuned")]
)
def test_official_files_come_back_whole(official, name, layout):
    theirs = read_state(official / f"{name}.pth")["model"]
    classes = 527 if layout == "fine-tuned" else 0
    decoder = None if classes else DecoderShape()
    model = built_audiomae("base", num_classes=classes, decoder=decoder)
    load_pretrained(model, official / f"{name}.pth")
    ours = AUDIOMAE.to_official(model.state_dict(), layout)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_an_official_pretrained_file_becomes_a_classifier_that_can_draw(official, pretrained):
    model = built_audiomae("base", num_classes=50, frames=1024)
    report = load_pretrained(model, official / "pretrain.pth")
    assert {key.split(".")[0] for key in report.missing} == {"fc_norm", "head"}
    x = sound("drawn", 1, 1024, 128)
    with torch.no_grad():
        assert torch.equal(model.eval().reconstruct(x), pretrained.reconstruct(x))
