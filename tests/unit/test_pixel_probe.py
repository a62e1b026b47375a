"""The pixel probe: what it is, who keeps it, and PEAS on weights without a pixel head."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from made import built_audiomae, built_ssast, classification
from toys import FACTS, StandIn, clips, data, fit, heard, make_task, quiet_trainer

from peas.audio import BEATsLogMel
from peas.callbacks import PEAS, MaskPlots
from peas.cli.results import _reading
from peas.errors import ConfigError, NoReconstruction
from peas.models import EAT, BEATs, Encoder
from peas.models.audiomae import AudioMAE
from peas.models.patches import patchify, resize_positions, sample_positions
from peas.models.reconstructor import PixelProbe, ProbeSums
from peas.models.ssast import SSAST
from peas.models.weights import AUDIOMAE, load_pretrained
from peas.recipes import AudioMAERecipe
from peas.tasks import Classification

MAE: dict[str, Any] = {"encoder": "audiomae", "stride": None, "noise_roll": False}


def mae(**settings: Any) -> AudioMAE:
    torch.manual_seed(1)
    return built_audiomae("toy", **{"frames": 64, **settings}).eval()


def ssast(**settings: Any) -> SSAST:
    torch.manual_seed(1)
    shape = {"frames": 64, "num_classes": 4, "stride": (10, 10), "pretrain": (96, 128)}
    return built_ssast("toy", **{**shape, **settings}).eval()


def random_probe(model: Any) -> Any:
    model.pixel_probe = PixelProbe(model.width, 256)
    torch.nn.init.normal_(model.pixel_probe.weight)
    torch.nn.init.normal_(model.pixel_probe.bias)
    return model


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as MAM-CLAP leaves them: an encoder alone."""
    path = tmp_path_factory.mktemp("weights") / "headless.ckpt"
    state = {f"model.{key}": value for key, value in mae(frames=96).state_dict().items()}
    torch.save({"state_dict": state}, path)
    return path


def strategy(**settings: Any) -> PEAS:
    return PEAS(1, 1, 16, 16, ramp="off", **settings)


# --- least squares -------------------------------------------------------------------------


def test_sums_give_the_least_squares_of_numpy_for_any_division() -> None:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(6, 50, 8, generator=source) + 3
    weight = torch.randn(8, 5, generator=source)
    y = x @ weight + 0.3 * torch.randn(6, 50, 5, generator=source) - 2
    fitted = []
    for parts in ([6], [1, 4, 1]):
        sums = ProbeSums(8, 5, torch.device("cpu"))
        for a, b in zip(x.split(parts), y.split(parts), strict=True):
            sums.add(a, b)
        fitted.append(sums.solve(ridge=0.0))
    flat = torch.cat((torch.ones(300, 1), x.flatten(0, 1)), dim=1).double()
    wanted = torch.linalg.lstsq(flat, y.flatten(0, 1).double()).solution
    for found in fitted:
        assert torch.allclose(found.probe.weight.T.double(), wanted[1:], atol=1e-5)
        assert torch.allclose(found.probe.bias.double(), wanted[0], atol=1e-4)
        left = (found.probe(x) - y).square().mean()
        assert found.error == pytest.approx(float(left), rel=1e-4)
        flatter = (y - y.mean((0, 1))).square().mean()
        assert found.variance == pytest.approx(float(flatter), rel=1e-5)
        assert found.patches == 300


def test_unused_directions_do_not_matter() -> None:
    x = torch.randn(1, 40, 6)
    x[..., 4:] = x[..., :2]
    sums = ProbeSums(6, 3, torch.device("cpu"))
    sums.add(x, x[..., :3])
    fitted = sums.solve()
    assert fitted.error < 1e-3 * fitted.variance
    assert fitted.probe.weight.abs().max() < 2


# --- both families -------------------------------------------------------------------------


@pytest.mark.parametrize("grid", ["nonoverlap", "finetune"])
@pytest.mark.parametrize("make", [mae, ssast])
def test_tokens_stand_for_their_patches(make: Any, grid: Any) -> None:
    model = make()
    log_mel = torch.randn(2, 70, 128)
    tokens, patches = model.patch_tokens(log_mel, grid)
    rows, columns = model.token_grid(70, grid)
    assert tokens.shape == (2, rows * columns, 32)
    assert patches.shape == (2, rows * columns, 256)
    # A probe that knew the patches would draw the spectrogram: places and orders fit.
    model.pixel_probe = random_probe(model).pixel_probe
    model.pixel_probe.forward = lambda _: patches
    drawn = model.reconstruct(log_mel, grid=grid)
    assert torch.allclose(drawn, log_mel, atol=1e-6)


def test_ssast_without_a_pretraining_table_reads_its_own_between_patches() -> None:
    model = ssast()
    model.reconstructs.fill_(False)
    with pytest.raises(NoReconstruction, match="reconstruction: probe"):
        model.reconstruct(torch.randn(1, 64, 128))
    random_probe(model)
    table = torch.arange(64).float().view(1, 1, 8, 8)
    flat = torch.cat((torch.zeros(1, 2, 1), table.flatten(2).transpose(1, 2)), dim=1)
    read = sample_positions(flat, (8, 8), (3, 4), special=2, step=(1.6, 0.5))[0, 2:, 0].view(3, 4)
    assert torch.allclose(read[1], 12.8 + torch.arange(4) * 0.5, atol=1e-5)
    assert torch.allclose(
        sample_positions(flat, (8, 8), (8, 8), special=2, step=(1.0, 1.0)),
        resize_positions(flat, 2, (8, 8), (8, 8)),
        atol=1e-5,
    )
    log_mel = torch.randn(1, 64, 128)
    before = model.reconstruct(log_mel)
    torch.nn.init.normal_(model.pretrain_pos_embed)
    assert torch.equal(model.reconstruct(log_mel), before)
    model.reconstructs.fill_(True)
    assert not torch.equal(model.reconstruct(log_mel), before)


@pytest.mark.parametrize("make", [mae, ssast])
def test_a_probe_draws_visible_patches_alone(make: Any) -> None:
    model = random_probe(make())
    hidden = torch.zeros(1, 32, dtype=torch.bool)
    with pytest.raises(NoReconstruction, match="visible patches"):
        model.reconstruct(torch.randn(1, 64, 128), hidden)


@pytest.mark.parametrize("make", [mae, ssast])
def test_a_state_brings_its_probe(make: Any) -> None:
    model, other = random_probe(make()), make()
    assert not dict(model.named_parameters()).keys() - dict(other.named_parameters()).keys()
    other.load_state_dict(model.state_dict())
    log_mel = torch.randn(1, 64, 128)
    assert torch.equal(other.reconstruct(log_mel), model.reconstruct(log_mel))
    with pytest.raises(RuntimeError, match=r"pixel_probe\.weight"):
        model.load_state_dict(make().state_dict())


@pytest.mark.parametrize("make", [mae, ssast])
def test_weights_for_a_new_run_leave_the_probe_behind(make: Any, tmp_path: Path) -> None:
    torch.save(random_probe(make()).state_dict(), tmp_path / "weights.pth")
    model = make()
    report = load_pretrained(model, tmp_path / "weights.pth")
    assert model.pixel_probe is None
    assert "pixel_probe.weight" in report.ignored


def test_official_layouts_have_no_probe() -> None:
    state = random_probe(mae(num_classes=3)).state_dict()
    assert not any("probe" in key for key in AUDIOMAE.to_official(state, "fine-tuned"))


# --- runs ----------------------------------------------------------------------------------


def test_peas_on_weights_without_a_pixel_head(
    sounds: Path, headless: Path, tmp_path: Path, printed: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(NoReconstruction, match=r"model\.init_args\.reconstruction: probe"):
        fit(sounds, tmp_path / "head", strategy(), pretrained=str(headless), **MAE)
    keys = {"pretrained": str(headless), "reconstruction": "probe", **MAE}
    run = fit(
        sounds,
        tmp_path / "probe",
        MaskPlots(clips=1),
        strategy(aux_encoder="frozen"),
        epochs=2,
        **keys,
    )
    assert "reconstruction: errors of a linear pixel probe" in printed.text
    assert len(list((tmp_path / "probe" / "plots").glob("*.png"))) == 2
    probe = run.task.model.pixel_probe
    assert probe is not None
    file = torch.load(tmp_path / "probe" / "checkpoints" / "pixel_probe.pt", weights_only=True)
    assert torch.equal(file["weight"], probe.weight)
    assert file["pretrained"] == str(headless)
    # Four folds of eight clips, each of eight by four patches.
    assert (file["clips"], file["patches"]) == (32, 32 * 32)
    assert file["error"] < 0.9 * file["variance"]
    # It was fitted on the encoder as it started: by hand, from the training clips.
    fresh = classification(**{"size": "toy", **keys, **FACTS, "frames": 64})
    fresh.build(initialise=True)
    module = data(sounds)
    sums = ProbeSums(32, 256, torch.device("cpu"))
    with torch.no_grad():
        for batch in module.loader(module.clips("train")):
            log_mel = fresh.front_end(batch["waveform"], batch["length"]).log_mel
            tokens = fresh.model.eval().tokens(log_mel)[:, 1:]
            patches = patchify(log_mel, (16, 16)).view(-1, 8, 4, 16, 16)
            # Time-major, and patches in (time, frequency) order.
            patches = patches.permute(0, 2, 1, 4, 3).reshape(-1, 32, 256)
            sums.add(tokens, patches)
    assert torch.allclose(sums.solve().probe.weight, probe.weight, rtol=1e-3, atol=1e-4)


def test_a_run_with_a_probe_goes_on(sounds: Path, headless: Path, tmp_path: Path) -> None:
    keys = {"size": "toy", "pretrained": str(headless), "reconstruction": "probe", **MAE}

    def go(folder: Path, start: Path | None = None) -> Classification:
        torch.manual_seed(0)
        task = classification(**keys)
        keep = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        trainer = quiet_trainer(
            folder, max_epochs=2, callbacks=[strategy(), keep], enable_checkpointing=True
        )
        trainer.fit(task, datamodule=data(sounds), ckpt_path=start, weights_only=True)
        return task

    whole = go(tmp_path / "whole")
    resumed = go(tmp_path / "resumed", tmp_path / "whole" / "epoch=0.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert not (tmp_path / "resumed" / "checkpoints").exists()
    loaded = Classification.load_from_checkpoint(
        tmp_path / "whole" / "epoch=1.ckpt", weights_only=True
    )
    assert loaded.model.can_reconstruct


def test_ssast_of_a_fine_tuned_file(sounds: Path, tmp_path: Path) -> None:
    model = ssast(num_classes=2)
    model.reconstructs.fill_(False)
    torch.save(model.state_dict(), tmp_path / "tuned.pth")
    keys = {"pretrained": str(tmp_path / "tuned.pth"), "stride": (10, 10)}
    for grid in ("nonoverlap", "finetune"):
        run = fit(sounds, tmp_path / grid, strategy(aux_grid=grid), reconstruction="probe", **keys)
        file = torch.load(tmp_path / grid / "checkpoints" / "pixel_probe.pt", weights_only=True)
        # Patches of both grids: 8 x 4 and 12 x 5.
        assert file["patches"] == 32 * (32 + 60)
        assert run.task.model.can_reconstruct


@pytest.mark.parametrize("name", ["BEATs", "EAT"])
def test_peas_on_an_encoder_without_a_pixel_head(name: str, sounds: Path, tmp_path: Path) -> None:
    """One step of fine-tuning, masked by the errors of a probe."""
    encoder: Encoder = EAT("toy") if name == "EAT" else BEATs("toy")  # type: ignore[arg-type]
    front_end = BEATsLogMel() if name == "BEATs" else None

    def run(folder: str, **settings: Any) -> Classification:
        torch.manual_seed(0)
        task = Classification(
            None, copy.deepcopy(encoder), copy.deepcopy(front_end), AudioMAERecipe(), **settings
        )
        trainer = quiet_trainer(
            tmp_path / folder, max_steps=1, max_epochs=5, callbacks=[strategy(), MaskPlots(clips=1)]
        )
        trainer.fit(task, datamodule=data(sounds))
        assert trainer.callback_metrics["mask/adaptive_share"] == 1
        return task

    with pytest.raises(NoReconstruction, match=r"model\.init_args\.reconstruction: probe"):
        run("head")
    task = run("probe", reconstruction="probe")
    assert task.model.can_reconstruct
    file = torch.load(tmp_path / "probe" / "checkpoints" / "pixel_probe.pt", weights_only=True)
    assert file["patches"] == 32 * 32
    # Even random tokens of 32 numbers know a patch's loudness.
    assert file["error"] < 0.9 * file["variance"]


# --- bad input -----------------------------------------------------------------------------


def test_refusals(sounds: Path, headless: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fitted once and never trained, and .*aux_loss_weight"):
        classification(pretrained=None, reconstruction="probe", aux_loss_weight=0.1)
    with pytest.raises(ConfigError, match="choose head or probe"):
        classification(pretrained=None, reconstruction="some")  # type: ignore[arg-type]
    task = make_task(StandIn())
    heard(task, clips(1))
    task.hparams["reconstruction"] = "probe"
    with pytest.raises(ConfigError, match="no data module gives the clips to fit it on"):
        task.prepare_reconstruction()
    masking = strategy(aux_input_mask="complementary")
    with pytest.raises(NoReconstruction, match="aux_input_mask: none"):
        fit(sounds, tmp_path, masking, pretrained=str(headless), reconstruction="probe", **MAE)


def test_results_name_the_probe() -> None:
    paper = {"paper": {"preset": "reference_code"}}
    assert _reading(paper) == "reference_code"
    model = {"init_args": {"reconstruction": "probe"}}
    assert _reading({**paper, "model": model}) == "reference_code, pixel probe"
    assert _reading({"model": model}) == "-, pixel probe"
