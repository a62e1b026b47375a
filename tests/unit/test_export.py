"""`peas export` and the way back: every format, and what must be refused."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub.errors import LocalTokenNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor
from toys import Run

import peas
from peas.audio import BEATsLogMel, KaldiLogMel
from peas.cli.verbs import dispatch
from peas.errors import CheckpointError, ConfigError, PeasError, UsageError
from peas.inference import AudioModel
from peas.inference.export import OPSET, export_folder, export_onnx, export_torch
from peas.inference.graph import KaldiGraph, ModelGraph
from peas.models import EAT, SSAST, AudioMAE, BEATs
from peas.models.weights import read_state
from peas.tasks import Classification

FRAMES = 64
WINDOW = (FRAMES - 1) * 160 + 400
ENCODERS = {
    "ssast": lambda: SSAST("toy"),
    "frame_patches": lambda: SSAST("toy", patch=(128, 2)),
    "audiomae": lambda: AudioMAE("toy"),
    "cls": lambda: AudioMAE("toy", pooling="cls"),
    "beats": lambda: BEATs("toy", patch_width=16),
    "eat": lambda: EAT("toy"),
}
FAMILIES = ("ssast", "audiomae", "beats", "eat")
LENGTHS = (WINDOW, WINDOW // 2, 300, WINDOW + 5_000)


def build(kind: str = "audiomae", labels: tuple[str, ...] = ("a", "b", "c"), **options: Any):
    """A model whose scores depend on what it hears."""
    torch.manual_seed(0)
    front_end = BEATsLogMel(FRAMES) if kind == "beats" else KaldiLogMel(FRAMES, -6.8, 5.5)
    model = AudioModel(ENCODERS[kind](), front_end, labels, **options)
    if labels:
        torch.nn.init.normal_(model.encoder.head.weight)
    return model


def noise(clips: int, samples: int) -> Tensor:
    return 0.1 * torch.randn(clips, samples, generator=torch.Generator().manual_seed(samples))


@pytest.fixture
def model() -> AudioModel:
    return build()


@pytest.fixture
def folder(model: AudioModel, tmp_path: Path) -> Path:
    export_folder(model, tmp_path / "hf", "card")
    return tmp_path / "hf"


# --- the graph ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fft", [True, False])
@pytest.mark.parametrize("samples", [100, 400, 5_000, WINDOW, WINDOW + 777])
def test_the_front_end_s_graph_equals_it(fft: bool, samples: int) -> None:
    front_end = KaldiLogMel(FRAMES, -6.8, 5.5)
    tone = 0.5 * torch.sin(torch.arange(samples) * 0.17)[None]
    graph = KaldiGraph(front_end, fft=fft)
    for waveform in (noise(2, samples), noise(2, samples) + 0.3, torch.zeros(1, samples)):
        assert torch.allclose(graph(waveform), front_end(waveform).log_mel, atol=1e-4, rtol=0)
    # Between its harmonics a tone's bins are rounding errors.
    assert torch.allclose(graph(tone), front_end(tone).log_mel, atol=1e-3, rtol=0)


@pytest.mark.parametrize("rate", [8_000, 22_050])
def test_at_other_rates(rate: int) -> None:
    front_end = KaldiLogMel(20, -6.8, 5.5, rate=rate, n_mels=40)
    waveform = noise(2, front_end.samples())
    for fft in (True, False):
        found = KaldiGraph(front_end, fft=fft)(waveform)
        assert torch.allclose(found, front_end(waveform).log_mel, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", list(ENCODERS))
def test_the_graph_equals_scores_and_embeddings(kind: str) -> None:
    model = build(kind, scores="sigmoid")
    scores, embeddings = (ModelGraph(model, o, fft=True) for o in ("scores", "embeddings"))
    for samples in LENGTHS:
        waveform = noise(2, samples)
        with torch.no_grad():
            found = scores(waveform), embeddings(waveform)
        assert torch.allclose(found[0], model.scores(waveform, long="first"), atol=1e-5)
        if samples <= WINDOW:
            assert torch.allclose(found[1], model.embed(waveform), atol=1e-5)


def test_another_front_end_is_refused(tmp_path: Path) -> None:
    class Own(KaldiLogMel):
        pass

    model = AudioModel(AudioMAE("toy"), Own(FRAMES, -6.8, 5.5))
    with pytest.raises(ConfigError, match="Own"):
        export_torch(model, tmp_path / "x.pt2", output="embeddings")
    with pytest.raises(ConfigError, match="classifier"):
        export_torch(build(labels=()), tmp_path / "x.pt2")
    assert not list(tmp_path.iterdir())


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_program_of_torch(kind: str, tmp_path: Path) -> None:
    model, file = build(kind), tmp_path / "new" / "m.pt2"
    assert export_torch(model, file) <= 1e-5
    facts = {"peas.json": ""}
    program = torch.export.load(file, extra_files=facts).module()
    assert json.loads(facts["peas.json"])["labels"] == model.labels
    for clips, samples in ((1, WINDOW), (5, WINDOW), (3, 3_000)):
        waveform = noise(clips, samples)
        assert torch.allclose(program(waveform), model.scores(waveform), atol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("opset", [OPSET, 18])
def test_onnx(kind: str, opset: int, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, file = build(kind), tmp_path / "m.onnx"
    assert export_onnx(model, file, opset=opset) <= 1e-4
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["labels"]) == model.labels
    assert facts["sample_rate"] == "16000"
    assert facts["window_samples"] == str(WINDOW)
    assert facts["peas"] == peas.__version__
    for clips, samples in ((1, WINDOW), (5, WINDOW), (3, 3_000), (2, 100)):
        waveform = noise(clips, samples)
        (found,) = session.run(None, {"waveform": waveform.numpy()})
        assert np.abs(found - model.scores(waveform).numpy()).max() <= 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("kind", FAMILIES)
def test_onnx_of_embeddings(kind: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, file = build(kind, labels=()), tmp_path / "m.onnx"
    assert export_onnx(model, file, output="embeddings") <= 1e-4
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [out.name for out in session.get_outputs()] == ["embeddings"]
    waveform = noise(4, WINDOW // 3)
    (found,) = session.run(None, {"waveform": waveform.numpy()})
    assert np.abs(found - model.embed(waveform).numpy()).max() <= 1e-4


def test_an_opset_that_is_too_old(model: AudioModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--opset"):
        export_onnx(model, tmp_path / "m.onnx", opset=9)
    pytest.importorskip("onnxruntime")
    with pytest.raises(ConfigError, match="opset"):
        export_onnx(model, tmp_path / "m.onnx", opset=999)
    assert not list(tmp_path.iterdir())


def test_onnx_without_its_packages(
    model: AudioModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(PeasError, match=re.escape("pip install 'peas[onnx]'")):
        export_onnx(model, tmp_path / "m.onnx")


def test_a_file_that_gives_other_numbers_is_not_kept(
    model: AudioModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = KaldiGraph.prepare
    monkeypatch.setattr(KaldiGraph, "prepare", lambda self, x: broken(self, x) * 1.1)
    with pytest.raises(PeasError, match="differ"):
        export_torch(model, tmp_path / "m.pt2")
    monkeypatch.setattr(AudioModel, "embed", lambda self, x: torch.randn(len(x), 2))
    with pytest.raises(PeasError, match="differ"):
        export_folder(model, tmp_path / "hf", "card")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_folder_loads_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model, out = build(kind), tmp_path / "hf"
    assert export_folder(model, out, "card") == 0
    waveform = noise(2, 30_000)
    for loaded in (AudioModel.from_pretrained(out), peas.load(out), peas.load(str(out), "cpu")):
        assert loaded.labels == model.labels
        assert torch.equal(loaded.cpu().scores(waveform), model.scores(waveform))
        for key, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), key
    assert (out / "labels.txt").read_text().split() == model.labels
    names = {"README.md", "config.json", "labels.txt", "model.safetensors"}
    assert {path.name for path in out.iterdir()} == names
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize("export", [export_folder, export_torch])
def test_nothing_is_overwritten(model: AudioModel, tmp_path: Path, export: Any) -> None:
    out = tmp_path / "x.pt2"
    out.write_text("mine")
    more = ("card",) if export is export_folder else ()
    with pytest.raises(PeasError, match=re.escape(str(out))):
        export(model, out, *more)
    assert out.read_text() == "mine"


# --- damaged folders ----------------------------------------------------------------------------


def rewritten(folder: Path, change: Any) -> None:
    """Other tensors, and no checksum, as of a folder that another tool has saved."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    del config["peas"]
    (folder / "config.json").write_text(json.dumps(config))


HEAD = "encoder.head.weight"


def add(state: dict[str, Tensor]) -> None:
    state["encoder.more"] = torch.zeros(3)


def add_elsewhere(state: dict[str, Tensor]) -> None:
    state["more"] = torch.zeros(3)


def reshape(state: dict[str, Tensor]) -> None:
    state[HEAD] = torch.zeros(3, 5)


def retype(state: dict[str, Tensor]) -> None:
    state[HEAD] = state[HEAD].int()


def spoil(state: dict[str, Tensor]) -> None:
    state[HEAD][0, 0] = torch.nan


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop(HEAD), HEAD),
        (add, "encoder.more"),
        (add_elsewhere, "more"),
        (reshape, HEAD),
        (retype, HEAD),
        (spoil, HEAD),
    ],
)
def test_tensors_that_are_not_the_model_s(folder: Path, change: Any, named: str) -> None:
    rewritten(folder, change)
    with pytest.raises(CheckpointError, match=re.escape(named)) as caught:
        peas.load(folder)
    assert str(folder) in str(caught.value)


def test_a_tampered_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    damaged = {
        "length": (2**60).to_bytes(8, "little") + content[8:],
        "text": content[:8] + b"x" * size + content[8 + size :],
        "short": content[: len(content) // 2],
        "empty": b"",
        # Two tensors of one size change places: only a checksum tells.
        "swapped": None,
    }
    norms = [key for key in header if key.endswith(("norm1.weight", "norm2.weight"))][:2]
    offsets = [header[key]["data_offsets"] for key in norms]
    for key, place in zip(norms, reversed(offsets), strict=True):
        header[key]["data_offsets"] = place
    text = json.dumps(header, separators=(",", ":")).encode().ljust(size)
    damaged["swapped"] = len(text).to_bytes(8, "little") + text + content[8 + size :]
    for what, changed in damaged.items():
        file.write_bytes(changed or b"")
        for read in (peas.load, read_state):
            with pytest.raises(CheckpointError, match=r"model\.safetensors") as caught:
                read(folder)
            assert str(folder) in str(caught.value), what
    file.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        peas.load(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"encoder": {"class_path": "os.system", "init_args": {}}}, r"os\.system"),
        ({"front_end": {"class_path": "peas.models.SSAST", "init_args": {}}}, "front_end"),
        ({"encoder": None}, "encoder"),
        ({"labels": "abc"}, "labels"),
        ({"labels": ["a"]}, "labels|size mismatch|head"),
        ({"scores": "best"}, "scores"),
        ({"origin": 3}, "origin"),
        ({"peas": {"format": 99}}, "99"),
    ],
)
def test_settings_that_cannot_be_used(folder: Path, change: dict[str, Any], named: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=named) as caught:
        peas.load(folder)
    assert str(folder) in str(caught.value)


# --- the command line ---------------------------------------------------------------------------


def test_a_run_goes_out_and_comes_back(
    peas_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, back = str(peas_run.checkpoint), tmp_path / "hf", tmp_path / "back.ckpt"
    dispatch(["export", source, "--format", "hf", "--out", str(out)])
    assert str(out) in capsys.readouterr().out
    card = (out / "README.md").read_text()
    matter = yaml.safe_load(card.split("---")[1])
    assert matter["library_name"] == "peas"
    assert matter["pipeline_tag"] == "audio-classification"
    assert "unknown: fill in" in card
    waveform = noise(2, 12_000)
    expected = peas.load(source, "cpu").scores(waveform)
    assert torch.equal(peas.load(out, "cpu").scores(waveform), expected)
    # As weights of another run, by the folder or its file.
    for path in (out, out / "model.safetensors"):
        assert read_state(path)["hyper_parameters"]["labels"] == peas_run.task.hparams["labels"]
    dispatch(["import", str(out)])
    assert "tensors" in capsys.readouterr().out
    dispatch(["import", str(out), "--out", str(back)])
    assert torch.equal(peas.load(back, "cpu").scores(waveform), expected)
    task = Classification.load_from_checkpoint(back)
    assert task.hparams["encoder"] == peas_run.task.hparams["encoder"]
    with pytest.raises(PeasError, match="exists"):
        dispatch(["import", str(out), "--out", str(back)])


def test_the_card_has_what_the_run_s_files_say(peas_run: Run, tmp_path: Path) -> None:
    from peas.inference.card import card

    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "logits").mkdir()
    (run / "logs" / "version_0").mkdir(parents=True)
    data = {"class_path": "peas.data.ESC50", "init_args": {"fold": 3}}
    config = {"data": data, "seed_everything": 17, "trainer": {"max_epochs": 25}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "environment.json").write_text(json.dumps({"commit": "abc123"}))
    (run / "labels.csv").write_text("index,name,training_clips\n0,a,5\n1,b,6\n")
    np.savez(run / "logits" / "test.npz", ids=np.array(["x", "y", "y"]))
    (run / "logs" / "version_0" / "metrics.csv").write_text(
        "epoch,val/accuracy,test/accuracy\n0,0.125,\n1,0.75,\n1,,0.625\n2,0.25,\n"
    )
    model = build(origin={"epoch": 1})
    text = card(model, str(run / "checkpoints" / "best.ckpt"), tmp_path / "out", "me/mine")
    for words in ("CC BY-NC 3.0", "17", "abc123", '"fold": 3', "0.75", "0.625", "hf://me/mine"):
        assert words in text, words
    assert "| training clips, summed over classes | 11 |" in text
    assert "| test clips | 2 |" in text
    assert "0.125" not in text, "an epoch that is not exported"


def test_official_files_as_before(peas_run: Run, tmp_path: Path) -> None:
    source, one, two = str(peas_run.checkpoint), tmp_path / "1.pth", tmp_path / "2.pth"
    dispatch(["export", source, "--out", str(one)])
    dispatch(["export", "--checkpoint", source, "--format", "official", "--out", str(two)])
    first, second = read_state(one), read_state(two)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_labels_of_one_s_own(peas_run: Run, tmp_path: Path) -> None:
    """An official file of four classes, which are no known set."""
    file, back, labels = tmp_path / "1.pth", tmp_path / "back.ckpt", tmp_path / "labels.txt"
    dispatch(["export", str(peas_run.checkpoint), "--out", str(file)])
    for read in (lambda: peas.load(file), lambda: dispatch(["import", str(file)])):
        with pytest.raises(CheckpointError, match="--labels"):
            read()
    argv = ["import", str(file), "--stride", "16", "16", "--labels", str(labels)]
    for text, named in (("a\nb\n", "4 classes"), ("a\n\nc\nd", "line 2"), ("a\nb\nb\nc", "line 3")):
        labels.write_text(text)
        with pytest.raises(PeasError, match=named):
            dispatch([*argv, "--out", str(back)])
    labels.write_text("a\nb\nc\nd\n")
    facts = ["--mean", "-5.2", "--std", "4.1", "--frames", "64"]
    dispatch([*argv, *facts, "--out", str(back)])
    model = peas.load(back, "cpu")
    assert (model.front_end.frames, float(model.front_end.mean)) == (64, pytest.approx(-5.2))
    assert model.labels == ["a", "b", "c", "d"]
    state = peas_run.task.cpu().state_dict()
    assert torch.equal(model.encoder.state_dict()["head.weight"], state["model.head.weight"])


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "--checkpoint"),
        (["x", "--checkpoint", "x"], "--checkpoint"),
        (["x", "--opset", "18"], "--opset"),
        (["x", "--format", "torch", "--push", "a/b"], "--push"),
        (["x", "--output", "scores"], "--output"),
        (["x", "--format", "hf", "--push", "a/b/c"], "--push"),
        (["x", "--format", "hf", "--push", "alone"], "--push"),
    ],
)
def test_a_wrong_command_line(argv: list[str], named: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=named):
        dispatch(["export", *argv, "--out", str(tmp_path / "out")])


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_wrong_extension(format: str, tmp_path: Path) -> None:
    with pytest.raises(PeasError, match=r"\.onnx|\.pt2"):
        dispatch(["export", "x", "--format", format, "--out", str(tmp_path / "out.pth")])


def test_a_checkpoint_without_an_encoder(tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(2)}, "hyper_parameters": {"labels": ["a"]}}, file)
    for format, out in (("hf", "hf"), ("torch", "x.pt2"), ("official", "x.pth")):
        with pytest.raises(CheckpointError, match=re.escape(str(file))):
            dispatch(["export", str(file), "--format", format, "--out", str(tmp_path / out)])
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]


# --- the hub ------------------------------------------------------------------------------------


class Hub:
    """A hub that takes what it is given, or refuses."""

    fails: Exception | None = None

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def __call__(self, **_: Any) -> "Hub":
        return self

    def create_repo(self, name: str, **options: Any) -> None:
        if self.fails:
            raise self.fails
        self.calls.append(("create_repo", name))

    def upload_folder(self, **options: Any) -> SimpleNamespace:
        self.calls.append(
            (options["repo_id"], sorted(p.name for p in options["folder_path"].iterdir()))
        )
        return SimpleNamespace()


def test_a_folder_is_uploaded_only_when_asked(
    peas_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    monkeypatch.setattr("peas.inference.hub.HfApi", hub)
    argv = ["export", str(peas_run.checkpoint), "--format", "hf", "--out"]
    dispatch([*argv, str(tmp_path / "a")])
    assert not hub.calls
    dispatch([*argv, str(tmp_path / "b"), "--push", "me/mine"])
    files = ["README.md", "config.json", "labels.txt", "model.safetensors"]
    assert hub.calls == [("create_repo", "me/mine"), ("me/mine", files)]
    hub.fails = LocalTokenNotFoundError("Token is required")
    with pytest.raises(PeasError, match=r"me/mine.*Token"):
        dispatch([*argv, str(tmp_path / "c"), "--push", "me/mine"])
    assert (tmp_path / "c" / "config.json").is_file()


def test_an_upload_without_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peas.inference.hub import upload

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PeasError, match="me/mine"):
        upload(folder, "me/mine")
