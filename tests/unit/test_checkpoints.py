import json
import os
import pickle
import re

import pytest
import torch
from made import built_ssast
from torch import nn

from peas.errors import CheckpointError, NoReconstruction
from peas.models.patches import resize_positions
from peas.models.weights import SSAST, ImportReport, load_pretrained, read_state

FRAMES = 64


@pytest.fixture(scope="module")
def pretraining():
    torch.manual_seed(0)
    return built_ssast("tiny", frames=256)


@pytest.fixture(scope="module")
def official(pretraining):
    return SSAST.to_official(pretraining.state_dict())


def save(folder, state, name="weights.pth", **options):
    path = folder / name
    torch.save(state, path, **options)
    return path


def classifier(**settings):
    return built_ssast(
        "tiny", **{"num_classes": 5, "frames": FRAMES, "stride": (10, 10), **settings}
    )


def lightning(model, **extra):
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    return {"state_dict": state | extra, "hyper_parameters": {"frames": FRAMES}, "epoch": 3}


# Reading


def test_missing_file_says_where_weights_come_from(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.pth.*README.*SSAST-Base-Patch-400\.pth"):
        read_state(tmp_path / "absent.pth", pretrained=True)


@pytest.mark.parametrize("pretrained", [True, False])
def test_missing_file_of_a_run_names_those_that_are_there(tmp_path, pretrained):
    for number in range(7):
        (tmp_path / f"{number}.ckpt").touch()
    with pytest.raises(CheckpointError, match=r"bst\.ckpt.*0\.ckpt.*4\.ckpt and 2 more") as told:
        read_state(tmp_path / "bst.ckpt", pretrained=pretrained)
    assert "SSAST" not in str(told.value)
    assert "5.ckpt" not in str(told.value)


def test_missing_file_of_a_run_is_no_official_file(tmp_path):
    for path in (tmp_path / "bst.ckpt", tmp_path / "gone" / "best.ckpt"):
        with pytest.raises(CheckpointError, match=path.name) as told:
            read_state(path)
        assert "SSAST" not in str(told.value)
        assert str(path.parent) in str(told.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0, 3, 100, 600, -10])
def test_truncated(tmp_path, zipped, kept):
    path = save(tmp_path, {"a": torch.randn(1000)}, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"weights\.pth: .*cut short, damaged"):
        read_state(path)


def test_a_page_saved_in_the_place_of_weights(tmp_path):
    path = tmp_path / "page.pth"
    path.write_text("<!DOCTYPE html><html>Sign in to download</html>")
    with pytest.raises(CheckpointError, match="another format"):
        read_state(path)


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "old", "pickle0", "pickle2", "pickle4"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_is_refused_and_not_run(tmp_path, form):
    trap, path = tmp_path / "trap", tmp_path / "weights.pth"
    state = {"a": torch.zeros(2), "b": Code(trap)}
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps({"b": Code(trap)}, protocol=int(form[-1])))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match=r"weights\.pth: refused.*nothing was executed"):
        read_state(path)
    assert not trap.exists()
    if form.startswith("pickle"):
        pickle.loads(path.read_bytes())
        assert trap.exists(), "the file would not have run code anyway"


def test_whole_module_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="Linear"):
        read_state(save(tmp_path, nn.Linear(2, 2)))


def test_no_dictionary(tmp_path):
    with pytest.raises(CheckpointError, match="holds a list"):
        read_state(save(tmp_path, [torch.zeros(1)]))


@pytest.mark.parametrize(
    "state",
    [
        {"encoder.weight": torch.zeros(1), "lstm.bias": torch.zeros(1)},
        {"state_dict": {"model.encoder.pos_embed": "text"}},
        {},
    ],
)
def test_another_kind(tmp_path, state):
    path = save(tmp_path, state)
    with pytest.raises(CheckpointError, match=r"weights\.pth.*SSAST.*v\.pos_embed") as caught:
        load_pretrained(classifier(), path)
    for key in list(state.get("state_dict", state))[:1]:
        assert key.removeprefix("module.") in str(caught.value)


# Layouts


@pytest.mark.parametrize("kind", ["tiny_patch", "tiny_frame", "small_patch", "base_patch"])
def test_round_trip_of_official_files(shared, kind):
    """Official to ours to official: the same keys, shapes and values of all that is used."""
    name = "official_state_dict_shapes.json"
    shapes = json.loads((shared / "golden" / name).read_text())[f"ssast_{kind}_pretrain"]
    # One constant for each key: cheap, and any mix-up of keys shows.
    state = {
        key: torch.empty(shape).fill_(index) for index, (key, shape) in enumerate(shapes.items())
    }
    state["module.p_input_fdim"], state["module.p_input_tdim"] = (
        torch.tensor(128),
        torch.tensor(1024),
    )
    facts = SSAST.describe(state)
    patch = (128, 2) if kind.endswith("frame") else (16, 16)
    assert (facts.size, facts.patch, facts.kind) == (kind.split("_")[0], patch, "pretrained")
    assert (facts.frames, facts.mels, facts.num_classes) == (1024, 128, 0)
    ours = SSAST.to_ours(state)
    with torch.device("meta"):
        model = built_ssast(facts.size, patch=patch)
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }
    again = SSAST.to_official(ours)
    assert {key: list(value.shape) for key, value in again.items()} == shapes
    for key, value in state.items():
        if not key.startswith(("module.v.head.", "module.v.head_dist.")):
            assert torch.equal(again[key], value), key
            assert again[key].dtype == value.dtype


def test_fine_tuned_layout():
    """159 tensors, as the official fine-tuning saves; the positions are the fine-tuning ones."""
    model = classifier()
    state = SSAST.to_official(model.state_dict(), "fine-tuned")
    assert len(state) == 159
    assert torch.equal(state["module.mlp_head.1.weight"], model.head.weight)
    assert torch.equal(state["module.v.pos_embed"], model.encoder.pos_embed)
    facts = SSAST.describe(state)
    assert (facts.layout, facts.kind, facts.num_classes) == ("official", "fine-tuned", 5)


def test_pretrained_layout_of_a_fine_tuned_model():
    model = classifier(pretrain=(256, 128))
    state = SSAST.to_official(model.state_dict())
    assert len(state) == 166
    assert torch.equal(state["module.v.pos_embed"], model.pretrain_pos_embed)
    assert state["module.p_input_tdim"] == 256
    assert not any("mlp_head" in key for key in state)


def test_export_refuses_what_was_never_trained(pretraining):
    with pytest.raises(CheckpointError, match="fine-tuned"):
        SSAST.to_official(pretraining.state_dict(), "fine-tuned")
    model = classifier()
    model.reconstructs.fill_(False)
    with pytest.raises(NoReconstruction, match="generative head"):
        SSAST.to_official(model.state_dict())


# Filling a model


@pytest.mark.parametrize("prefix", ["module.", "", "wrapped"])
def test_official_pretrained(tmp_path, pretraining, official, prefix):
    bare = {key.removeprefix("module."): value for key, value in official.items()}
    wrapped = {"state_dict": {f"model.{key}": value for key, value in bare.items()}}
    state = {"module.": official, "": bare, "wrapped": wrapped}[prefix]
    model = classifier()
    fresh = model.head.weight.clone()
    report = load_pretrained(model, save(tmp_path, state))
    table = pretraining.encoder.pos_embed
    assert torch.equal(model.pretrain_pos_embed, table)
    assert model.pretraining_grid == (8, 16)
    wanted = resize_positions(table, 2, (8, 16), model.encoder.grid)
    assert torch.equal(model.encoder.pos_embed, wanted)
    for key, value in pretraining.state_dict().items():
        if "pos_embed" not in key and key != "geometry":
            assert torch.equal(model.state_dict()[key], value), key
    assert torch.equal(model.head.weight, fresh)
    assert set(report.missing) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert set(report.ignored) == {
        f"v.{head}.{part}" for head in ("head", "head_dist") for part in ("weight", "bias")
    }
    assert len(report.used) == 162
    assert model.geometry.tolist() == [FRAMES, 128, 10, 10, 256, 128]


def test_official_fine_tuned(tmp_path):
    source = classifier()
    path = save(tmp_path, SSAST.to_official(source.state_dict(), "fine-tuned"))
    model = classifier()
    report = load_pretrained(model, path)
    x = torch.randn(1, FRAMES, 128)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), source.eval()(x))
    assert not model.reconstructs
    assert "mask_embed" in report.missing
    assert "pretrain_pos_embed" in report.missing
    with pytest.raises(NoReconstruction):
        model.reconstruct(x)

    other = classifier(num_classes=3)
    report = load_pretrained(other, path)
    assert report.ignored["mlp_head.1.weight"] == "the file has 5 classes and the model 3"
    assert "head.weight" in report.missing
    with pytest.raises(CheckpointError, match=r"v\.pos_embed has shape.*stride"):
        load_pretrained(classifier(frames=128), path)


def test_our_pretraining_checkpoint(tmp_path, pretraining):
    """The live table, not the stale frozen one, is what the heads were trained with."""
    state = lightning(pretraining, **{"frontend.mean": torch.zeros(1)})
    state["state_dict"]["model.pretrain_pos_embed"] = torch.zeros(1, 130, 192)
    model = classifier()
    report = load_pretrained(model, save(tmp_path, state))
    assert torch.equal(model.pretrain_pos_embed, pretraining.encoder.pos_embed)
    assert model.reconstructs
    assert "frontend.mean" in report.ignored
    assert set(report.missing) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert "8 x 16" in report.notes[0]


def test_our_fine_tuned_checkpoint(tmp_path):
    source = classifier(pretrain=(256, 128))
    path = save(tmp_path, lightning(source))
    model = classifier()
    report = load_pretrained(model, path)
    assert model.state_dict().keys() == source.state_dict().keys()
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    assert not report.missing
    assert not report.notes

    longer = classifier(frames=128)
    report = load_pretrained(longer, path)
    wanted = resize_positions(source.pretrain_pos_embed, 2, (8, 16), longer.encoder.grid)
    assert torch.equal(longer.encoder.pos_embed, wanted)
    assert "pretraining grid of 8 x 16" in report.notes[0]
    assert torch.equal(longer.head.weight, source.head.weight)


def test_our_checkpoint_without_trained_heads(tmp_path):
    """Weights that came from an official fine-tuned file stay unable to reconstruct."""
    source = classifier()
    source.reconstructs.fill_(False)
    model = classifier(frames=128)
    report = load_pretrained(model, save(tmp_path, lightning(source)))
    assert not model.reconstructs
    assert "generative_head.0.weight" in report.ignored
    assert "generative_head.0.weight" in report.missing
    wanted = resize_positions(source.encoder.pos_embed, 2, source.encoder.grid, model.encoder.grid)
    assert torch.equal(model.encoder.pos_embed, wanted)


def test_pretraining_goes_on_from_a_longer_input(tmp_path, pretraining, official):
    model = built_ssast("tiny", frames=128)
    load_pretrained(model, save(tmp_path, official))
    wanted = resize_positions(pretraining.encoder.pos_embed, 2, (8, 16), (8, 8))
    assert torch.equal(model.encoder.pos_embed, wanted)
    x = torch.randn(1, 128, 128)
    table = classifier(frames=128)
    load_pretrained(table, tmp_path / "weights.pth")
    with torch.no_grad():
        assert torch.equal(model.reconstruct(x), table.reconstruct(x))


def test_wrong_size_and_patch(tmp_path, official):
    path = save(tmp_path, official)
    with pytest.raises(CheckpointError, match=r"tiny model.*set size to tiny"):
        load_pretrained(built_ssast("small", frames=FRAMES), path)
    with pytest.raises(CheckpointError, match=r"set patch to \[16, 16\]"):
        load_pretrained(built_ssast("tiny", frames=FRAMES, patch=(128, 2)), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v.norm.weight": torch.zeros(7)}, r"v\.norm\.weight has shape \[7\].*\[192\]"),
        ({"v.blocks.12.norm1.weight": torch.zeros(192)}, r"unexpected key v\.blocks\.12\.norm1"),
        ({"decoder.weight": torch.zeros(2, 3)}, r"unexpected key decoder\.weight.*\[2, 3\]"),
        ({"gpredlayer.2.bias": None}, r"gpredlayer\.2\.bias \(shape \[256\]\) is missing"),
        ({"v.blocks.3.attn.qkv.bias": None}, r"v\.blocks\.3\.attn\.qkv\.bias.* is missing"),
        ({"v.pos_embed": torch.zeros(1, 99, 192)}, r"v\.pos_embed has shape \[1, 99, 192\].*130"),
        ({"p_input_tdim": None}, r"v\.pos_embed has shape \[1, 130, 192\].*514"),
        ({"v.pos_embed": torch.zeros(1, 130, 200)}, r"\[1, 130, 200\].*tiny 192"),
    ],
)
def test_strict(tmp_path, official, change, message):
    state = {**official, **{f"module.{key}": value for key, value in change.items()}}
    path = save(tmp_path, {key: value for key, value in state.items() if value is not None})
    model = classifier()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(model, path)
    assert str(path) in str(caught.value)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("key", ["geometry", "pretrain_pos_embed", "encoder.pos_embed"])
def test_our_checkpoint_that_contradicts_itself(tmp_path, key):
    state = classifier().state_dict()
    if key == "geometry":
        del state[key]
    else:
        state[key] = state[key][:, 1:]
    with pytest.raises(CheckpointError, match=re.escape(key)):
        load_pretrained(classifier(), save(tmp_path, state))


def test_report_in_words():
    report = ImportReport("a.pth", "official pretrained SSAST (tiny)", used=["x"])
    report.missing = {f"head.{index}": "the classifier is new" for index in range(6)}
    report.ignored = {"v.head.weight": "never used"}
    text = str(report)
    assert "a.pth: official pretrained SSAST (tiny); 1 tensors used, 1 ignored, 6 missing" in text
    assert "ignored: v.head.weight: never used" in text
    assert "missing: head.0, head.1, head.2, head.3, … (6): the classifier is new" in text
