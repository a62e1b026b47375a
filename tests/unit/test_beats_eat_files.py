"""Files of BEATs and EAT: what is taken, what is refused, and that nothing in them is executed."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toys  # noqa: F401 - the size `toy`
from safetensors.torch import save_file

import peas
from peas.cli.verbs import dispatch
from peas.data.labels import ClassTable
from peas.errors import CheckpointError
from peas.models import EAT, SSAST, BEATs, Encoder
from peas.models.weights import BEATS, family_of, load_pretrained, read_state
from peas.models.weights import EAT as EATS
from peas.models.weights.importer import Family
from peas.tasks import Classification

FAMILIES: dict[str, Family] = {"BEATs": BEATS, "EAT": EATS}
State = dict[str, Any]


def build(name: str, classes: int = 4, frames: int = 64, **settings: Any) -> Encoder:
    torch.manual_seed(1)
    model: Encoder = EAT("toy", **settings) if name == "EAT" else BEATs("toy", **settings)  # type: ignore[arg-type]
    return model.build(frames, 128, classes).eval()


def settings_of(model: Encoder) -> State:
    """What an official file says of its model."""
    if isinstance(model, BEATs):
        cfg: State = BEATS.beside(model.state_dict(), model.spec()["init_args"])["cfg"]
        return cfg
    return {"model_type": "eat", "num_heads": 2, "depth": 2, "embed_dim": 32, "norm_eps": 1e-6}


def official(name: str, classes: int = 4, **settings: Any) -> State:
    model = build(name, classes, **settings)
    layout = "fine-tuned" if classes else "pretrained"
    weights = FAMILIES[name].to_official(model.state_dict(), layout)  # type: ignore[arg-type]
    return {"cfg": settings_of(model), "model": weights}


def save(folder: Path, content: State, name: str = "weights.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def hub(folder: Path, content: State) -> Path:
    """A hub's folder of the same weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(content["cfg"]))
    save_file({k: v.clone() for k, v in content["model"].items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("classes", [0, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_files_and_hub_folders_hold_the_same(tmp_path: Path, name: str, classes: int) -> None:
    content, source = official(name, classes), build(name, classes)
    paths = [save(tmp_path, content), hub(tmp_path / "folder", content)]
    paths.append(paths[1] / "model.safetensors")
    for path in paths:
        state = read_state(path)
        assert family_of(state) is FAMILIES[name]
        info = FAMILIES[name].describe(state)
        assert (info.layout, info.size, info.num_classes) == ("official", "toy", classes)
        torch.manual_seed(2)
        model = build(name, classes, frames=96)
        for p in model.parameters():
            torch.nn.init.normal_(p)
        report = load_pretrained(model, path)
        assert not report.missing
        assert len(report.used) + len(report.ignored) == len(content["model"])
        ours, theirs = model.state_dict(), source.state_dict()
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    # A file without settings is taken, and the report names the gap.
    assert any("settings" in note for note in report.notes)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_classifier_of_other_classes_stays_new(tmp_path: Path, name: str) -> None:
    model = build(name, 7)
    head = model.head.weight.clone()
    report = load_pretrained(model, save(tmp_path, official(name)))
    assert torch.equal(model.head.weight, head)
    assert {key.split(".")[0] for key in report.missing} <= {"head", "fc_norm"}
    assert any("head" in key or "predictor" in key for key in report.ignored)


def drop(end: str) -> Callable[[State], None]:
    def change(content: State) -> None:
        key = next(key for key in content["model"] if key.endswith(end))
        del content["model"][key]

    return change


def put(end: str, value: Any) -> Callable[[State], None]:
    """Another value for the first key with that end, or a new key."""

    def change(content: State) -> None:
        keys = [key for key in content["model"] if key.endswith(end)]
        content["model"][keys[-1] if keys else end] = value

    return change


def say(key: str, value: Any) -> Callable[[State], None]:
    def change(content: State) -> None:
        content["cfg"][key] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("BEATs", drop("0.fc1.bias"), "encoder.layers.0.fc1.bias"),
        ("BEATs", drop("post_extract_proj.weight"), "post_extract_proj.weight"),
        ("BEATs", drop("patch_embedding.weight"), "patch_embedding.weight"),
        ("BEATs", drop("predictor.bias"), "predictor.bias"),
        ("BEATs", put("mask_emb", torch.ones(3)), "mask_emb"),
        ("BEATs", put("grep_a", torch.ones(1, 3, 1, 1)), "self_attn.grep_a"),
        ("BEATs", put("relative_attention_bias.weight", torch.ones(320, 2)), "layers.1.self_attn"),
        ("BEATs", put("1.fc1.bias", torch.full((128,), torch.nan)), "encoder.layers.1.fc1.bias"),
        ("BEATs", put("predictor.weight", "text"), "predictor.weight"),
        ("BEATs", put("patch_embedding.weight", torch.ones(512, 1, 8, 8)), "patch"),
        ("BEATs", say("deep_norm", False), "deep_norm"),
        ("BEATs", say("max_distance", 1280), "max_distance"),
        ("BEATs", say("encoder_attention_heads", 4), "encoder_attention_heads"),
        ("EAT", drop("blocks.1.mlp.fc2.weight"), "blocks.1.mlp.fc2.weight"),
        ("EAT", drop("pre_norm.bias"), "pre_norm.bias"),
        ("EAT", drop("extra_tokens"), "extra_tokens"),
        ("EAT", put("model.alibi_scale", torch.ones(1)), "alibi_scale"),
        ("EAT", put("positions", torch.zeros(1, 64, 32)), "fixed_positional_encoder.positions"),
        ("EAT", put("local_encoder.proj.bias", torch.ones(31)), "local_encoder.proj.bias"),
        ("EAT", say("layer_norm_first", True), "layer_norm_first"),
        ("EAT", say("num_heads", 4), "num_heads"),
    ],
)
def test_a_file_that_does_not_fit(
    tmp_path: Path, name: str, change: Callable[[State], None], told: str
) -> None:
    content = official(name)
    change(content)
    path = save(tmp_path, content)
    model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"weights\.pt.*{re.escape(told)}"):
        load_pretrained(model, path)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_model_of_another_size(tmp_path: Path) -> None:
    path = save(tmp_path, official("EAT"))
    with pytest.raises(CheckpointError, match=r"toy.*mini"):
        load_pretrained(EAT("mini").build(64, 128), path)
    content = official("EAT")
    content["model"] = {k: v for k, v in content["model"].items() if ".blocks.1." not in k}
    with pytest.raises(CheckpointError, match=r"blocks\.\* are 1 of width 32"):
        load_pretrained(build("EAT"), save(tmp_path, content))


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_of_another_family_are_named(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, official(name))
    other = "EAT" if name == "BEATs" else "BEATs"
    for model in (build(other), SSAST("toy").build(64, 128)):  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match=rf"peas\.models\.{name}"):
            load_pretrained(model, path)


class Payload:
    """What a hostile file would run."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, official("BEATs") | {"cfg": Payload()})
    with pytest.raises(CheckpointError, match=r"weights\.pt.*posix\.mkdir"):
        load_pretrained(build("BEATs"), path)
    assert not Path("executed").exists()


def test_settings_as_python_objects_lead_to_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some fairseq files hold omegaconf's tables."""
    table = type("DictConfig", (), {"__module__": "omegaconf.dictconfig"})
    module = type(os)("omegaconf.dictconfig")
    module.DictConfig = table  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "omegaconf", type(os)("omegaconf"))
    monkeypatch.setitem(__import__("sys").modules, "omegaconf.dictconfig", module)
    path = save(tmp_path, official("EAT") | {"cfg": table()})
    with pytest.raises(CheckpointError, match=r"omegaconf\.dictconfig.*model\.safetensors"):
        load_pretrained(build("EAT"), path)


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("config.json", None, "config.json"),
        ("config.json", b"{", "config.json"),
        ("config.json", b"[]", "config.json"),
        ("model.safetensors", b"\xff" * 40, "model.safetensors"),
        ("model.safetensors", b"", "model.safetensors"),
    ],
)
def test_a_damaged_hub_folder(tmp_path: Path, file: str, content: bytes | None, told: str) -> None:
    folder = hub(tmp_path / "folder", official("EAT"))
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(told)):
        load_pretrained(build("EAT"), folder)


def test_an_offset_beyond_the_file(tmp_path: Path) -> None:
    folder = hub(tmp_path / "folder", official("EAT"))
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    last = max(header, key=lambda key: header[key]["data_offsets"][1])
    header[last]["data_offsets"][1] += 4096
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_pretrained(build("EAT"), folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_import_and_export(tmp_path: Path, name: str) -> None:
    """An official fine-tuned file to a checkpoint that scores, and back."""
    source = hub(tmp_path / "folder", official(name, 50))
    made, back = tmp_path / "made.ckpt", tmp_path / "back.pt"
    assert dispatch(["import", str(source), "--out", str(made)]) == 0
    task = Classification.load_from_checkpoint(made).eval()
    front_end = {"BEATs": "BEATsLogMel", "EAT": "KaldiLogMel"}[name]
    assert type(task.front_end).__name__ == front_end
    log_mel, *_ = task.front_end(torch.randn(2, 16_000))
    assert task.model(log_mel).shape == (2, 50)
    assert dispatch(["export", "--checkpoint", str(made), "--out", str(back)]) == 0
    again = read_state(back)
    model = build(name, 50)
    load_pretrained(model, back)
    theirs = build(name, 50).state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in model.state_dict().items())
    assert ("cfg" in again) == (name == "BEATs")
    pretrained = tmp_path / "pretrained.pt"
    words = ["export", "--checkpoint", str(made), "--out", str(pretrained)]
    assert dispatch([*words, "--layout", "pretrained"]) == 0
    assert FAMILIES[name].describe(read_state(pretrained)).num_classes == 0


def test_classes_in_an_order_of_their_own_are_brought_into_audiosets(tmp_path: Path) -> None:
    """BEATs's fine-tuned files name the class of each output."""
    table, content = ClassTable.shipped(), official("BEATs", 527)
    count = len(table)
    torch.nn.init.normal_(content["model"]["predictor.bias"])
    ordered = peas.load(save(tmp_path, content, "ordered.pt"))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    for key in ("predictor.weight", "predictor.bias"):
        content["model"][key] = content["model"][key][order]
    content["label_dict"] = {new: table.mids[old] for new, old in enumerate(order)}
    file = save(tmp_path, content)
    model = peas.load(file)
    waveform = torch.randn(8000)
    assert model.labels == table.names
    assert torch.equal(model.scores(waveform), ordered.scores(waveform))
    assert (
        dispatch(
            [
                "import",
                str(file),
                "--out",
                str(tmp_path / "a.ckpt"),
                "--dataset",
                "audioset",
                "--loss",
                "bce",
            ]
        )
        == 0
    )
    imported = peas.load(tmp_path / "a.ckpt").encoder.state_dict()
    assert torch.equal(imported["head.bias"], ordered.encoder.state_dict()["head.bias"])
    # A run's classes have the order of its data.
    report = load_pretrained(build("BEATs", count), file)
    assert {"predictor.weight", "predictor.bias"} <= set(report.ignored)


def test_other_classes_have_the_names_of_the_file(tmp_path: Path) -> None:
    content = official("BEATs", 4)
    content["label_dict"] = dict(enumerate("dcba"))
    assert peas.load(save(tmp_path, content)).labels == list("dcba")
    del content["label_dict"][2]
    with pytest.raises(CheckpointError, match="label_dict"):
        peas.load(save(tmp_path, content))
