"""ImageNet weights: the same function of a grey picture, both families, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from made import built_audiomae, built_ssast
from safetensors.torch import save_file
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from toys import fit

from peas.errors import CheckpointError, NoReconstruction
from peas.models.weights.imagenet import load_imagenet


def picture_model(kind: type[VisionTransformer] = VisionTransformer, **settings: Any) -> Any:
    """A small model of pictures of 64 x 64 that has seen nothing."""
    torch.manual_seed(2)
    shape = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
    model = kind(**{**shape, **settings})
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def saved(model: torch.nn.Module, path: Path) -> str:
    torch.save(model.state_dict(), path)
    return str(path)


@pytest.fixture
def spectrogram() -> torch.Tensor:
    return torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))


def grey(log_mel: torch.Tensor) -> torch.Tensor:
    """`[B, T, F]` as upright pictures with three equal colours."""
    return log_mel.mT.unsqueeze(1).expand(-1, 3, -1, -1)


# --- the same function ---------------------------------------------------------------------


def test_ssast_is_the_distilled_model_of_a_grey_picture(
    tmp_path: Path, spectrogram: torch.Tensor
) -> None:
    theirs = picture_model(VisionTransformerDistilled)
    ours = built_ssast("toy", num_classes=3, frames=64, mels=64).eval()
    report = load_imagenet(ours, saved(theirs, tmp_path / "deit.pth"))
    with torch.no_grad():
        got = ours.forward_features(spectrogram)
        wanted = theirs.forward_features(grey(spectrogram))
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=0)
    assert set(report.ignored) == {
        "head.weight",
        "head.bias",
        "head_dist.weight",
        "head_dist.bias",
    }
    assert "encoder.pos_embed" not in report.missing
    assert {"fc_norm.weight", "head.weight", "generative_head.0.weight"} <= set(report.missing)
    with pytest.raises(NoReconstruction):
        ours.reconstruct(spectrogram)


def test_audiomae_is_the_model_of_a_grey_picture_with_its_own_positions(
    tmp_path: Path, spectrogram: torch.Tensor
) -> None:
    theirs = picture_model()
    ours = built_audiomae("toy", num_classes=3, frames=64, mels=64).eval()
    fixed = ours.encoder.pos_embed.clone()
    report = load_imagenet(ours, saved(theirs, tmp_path / "vit.pth"))
    assert torch.equal(ours.encoder.pos_embed, fixed)
    assert "fixed" in report.ignored["pos_embed"]
    # Their tokens run along the frequency first.
    by_place = fixed[0, 1:].view(4, 4, 32).transpose(0, 1).reshape(16, 32)
    with torch.no_grad():
        theirs.pos_embed[0, 1:] = by_place
        got = ours.tokens(spectrogram)
        wanted = theirs.forward_features(grey(spectrogram))
    torch.testing.assert_close(got[:, 0], wanted[:, 0], atol=2e-5, rtol=0)
    patches = wanted[:, 1:].view(2, 4, 4, 32).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(got[:, 1:], patches, atol=2e-5, rtol=0)


def test_ssast_gets_the_class_token_twice_from_a_model_with_one(tmp_path: Path) -> None:
    theirs = picture_model()
    ours = built_ssast("toy", frames=64, mels=32, stride=(16, 16))
    load_imagenet(ours, saved(theirs, tmp_path / "vit.pth"))
    state = theirs.state_dict()
    assert torch.equal(ours.encoder.dist_token, state["cls_token"])
    assert torch.equal(ours.encoder.pos_embed[:, 1], state["pos_embed"][:, 0])
    # Two of four rows of the picture: the middle ones.
    rows = state["pos_embed"][:, 1:].view(1, 4, 4, 32)[:, 1:3].flatten(1, 2)
    assert torch.equal(ours.encoder.pos_embed[:, 2:], rows)
    # A pretraining model begins with these weights and trains its own heads.
    assert ours.reconstructs


def test_audiomae_has_no_place_for_a_distillation_token(tmp_path: Path) -> None:
    ours = built_audiomae("toy", num_classes=3, frames=64, mels=64)
    file = saved(picture_model(VisionTransformerDistilled), tmp_path / "deit.pth")
    report = load_imagenet(ours, file)
    assert "no distillation token" in report.ignored["dist_token"]


@pytest.mark.parametrize("form", ["bare", "wrapped", "safetensors"])
def test_forms_of_a_file(form: str, tmp_path: Path) -> None:
    state = picture_model(VisionTransformerDistilled).state_dict()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state if form == "bare" else {"model": state, "epoch": 3}, path)
    ours = built_ssast("toy", num_classes=3, frames=64, mels=64)
    report = load_imagenet(ours, str(path))
    assert torch.equal(ours.encoder.norm.weight, state["norm.weight"])
    assert len(report.used) == len(state) - 4


@pytest.mark.parametrize("encoder", ["ssast", "audiomae"])
def test_a_run_starts_from_it(encoder: str, sounds: Path, tmp_path: Path) -> None:
    file = saved(picture_model(), tmp_path / "vit.pth")
    run = fit(sounds, tmp_path, encoder=encoder, pretrained=f"timm:{file}")
    assert float(run.trainer.callback_metrics["train/loss"]) < 4
    assert not run.task.model.reconstructs


# --- what is refused -----------------------------------------------------------------------


def refused(source: str, message: str, model: Any = None) -> None:
    model = model or built_ssast("toy", num_classes=3, frames=64, mels=64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_imagenet(model, source)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def file(**settings: Any) -> str:
        return saved(picture_model(**settings), tmp_path / "vit.pth")

    refused(file(embed_dim=192, num_heads=3), "is 192 wide .* 32; set size to tiny")
    refused(file(embed_dim=36), "is 36 wide .* 32; give one of a known size")
    refused(file(patch_size=8), r"has patches of \(8, 8\) .*set patch to \[8, 8\]")
    refused(file(depth=3), r"unexpected key blocks\.2\.")
    refused(file(depth=1), r"blocks\.1\.norm1\.weight")
    refused(file(qkv_bias=False), r"blocks\.0\.attn\.qkv\.bias")
    refused(file(mlp_ratio=2), r"mlp\.fc1\.weight has shape \[64, 32\] and the model needs")
    refused(file(reg_tokens=2), "which are not 1 special|unexpected key reg_token")
    refused(file(class_token=False, global_pool="avg"), "holds no vision transformer")
    mae = built_audiomae("toy", num_classes=3, frames=64, mels=64)
    refused(file(patch_size=8), r"has patches of \(8, 8\)", mae)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"conv1.weight": torch.zeros(3)}, path)
    refused(str(path), r"holds no vision transformer.*conv1\.weight")
    torch.save({"model": 3}, path)
    refused(str(path), "holds no vision transformer.*no tensors")
    refused(str(tmp_path / "none.pth"), "no such checkpoint file")
    refused(str(tmp_path / "none.safetensors"), "no such file of weights")
    broken = tmp_path / "broken.safetensors"
    save_file(picture_model().state_dict(), broken)
    broken.write_bytes(broken.read_bytes()[:5000])
    refused(str(broken), r"broken\.safetensors: cannot be read as safetensors")


def test_an_unknown_name_is_refused_without_asking_the_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import timm

    def asked(*_: Any, **__: Any) -> None:
        pytest.fail("the network was asked")

    monkeypatch.setattr(timm, "create_model", asked)
    refused("vit_of_nobody.in1k", "timm has no model 'vit_of_nobody'.*deit_base_distilled")


def test_a_name_without_a_network_names_the_way_by_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/nowhere")
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    refused(name, rf"timm:{name}: timm could not fetch.*timm:FILE.*\.safetensors or \.pth")
    refused("vit_tiny_patch16_224.never_made", r"timm could not fetch.*timm\.list_pretrained")
