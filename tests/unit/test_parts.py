"""What a checkpoint says of a replaceable part."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from peas.errors import CheckpointError
from peas.masking import RandomPatches
from peas.models.weights.checking import check_run
from peas.objectives import FeatureDistillation, LabelClassification, Objective, Term, View
from peas.parts import Part, class_path, plain


class Holder(Part):
    """A part with settings of every kind."""

    unsaved = ("secret",)

    def __init__(self, count: int, *, inner: object = None, secret: str = "", **rest: object):
        self.count = count


class Odd(Objective):
    """An objective whose setting is no plain value."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, view: View) -> Term:
        return Term(view.tokens.mean())


def test_a_part_is_told_by_the_shortest_path_that_offers_it() -> None:
    assert class_path(LabelClassification) == "peas.objectives.LabelClassification"
    assert class_path(Holder) == f"{__name__}.Holder"


def test_settings_are_told_with_their_defaults_and_inner_parts() -> None:
    spec = Holder(3, inner=RandomPatches(0.5), secret="s", more=1).spec()
    inner = {"class_path": "peas.masking.RandomPatches", "init_args": {"ratio": 0.5}}
    assert spec["init_args"] == {"count": 3, "inner": inner, "more": 1}
    assert "teacher" not in FeatureDistillation(targets="x").spec()["init_args"]


def test_a_copy_says_the_same() -> None:
    part = LabelClassification(0.5, hidden=7)
    assert copy.deepcopy(part).spec() == part.spec()


def test_whatever_it_was_made_with_a_checkpoint_of_it_is_plain(tmp_path: Path) -> None:
    values = plain({"a": (1, Path("x")), "net": nn.Linear(2, 2), "odd": Odd(nn.ReLU())})
    assert values["a"] == [1, "x"]
    assert values["net"].endswith(".Linear")
    assert values["odd"]["init_args"]["net"].endswith(".ReLU")
    torch.save(values, tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt", weights_only=True) == values


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("masking", "sideways"),
        ("masking", {"class_path": 3, "init_args": {}}),
        ("objectives", ["reconstruction"]),
        ("objectives", {"a": None}),
        ("objectives", {"a": {"class_path": "x.Y"}}),
        ("objective_fingerprints", {"a": 1}),
    ],
)
def test_what_a_file_says_of_its_parts_is_checked(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=rf"^x\.ckpt.*{key}"):
        check_run({"hyper_parameters": {key: value}}, "x.ckpt")
    spec = RandomPatches().spec()
    good = {
        "masking": spec,
        "objectives": {"a": spec},
        "objective_fingerprints": {"a": {"width": 3}},
    }
    check_run({"hyper_parameters": good}, "x.ckpt")
    old = {"masking": "structured", "decoder_depth": 1}
    check_run({"hyper_parameters": old}, "x.ckpt")


@pytest.mark.parametrize("old", [{"optimizer": "adamw"}, {"front_end": [1], "mean": 0.0}])
def test_settings_of_old_that_cannot_be_told_name_the_file(old: dict[str, object]) -> None:
    settings = {"_class_path": "peas.tasks.Classification", **old}
    with pytest.raises(CheckpointError, match=r"^x\.ckpt: hyper_parameters: "):
        check_run({"hyper_parameters": settings}, "x.ckpt")
