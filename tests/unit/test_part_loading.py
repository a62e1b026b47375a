"""Which parts of a checkpoint are made; everything else is refused before it is imported."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import make_task

from peas import load
from peas.cli.verbs import dispatch
from peas.errors import CheckpointError, ConfigError, UsageError
from peas.masking import PatchMasking, RandomPatches, StructuredPatches
from peas.models.weights import read_state
from peas.objectives import LabelClassification, Objective, PatchContrast
from peas.parts import Part, make, make_parts
from peas.tasks import Pretraining
from peas.tasks.classification import Classification

FOREIGN = """
from pathlib import Path

from peas.masking import RandomPatches
from peas.parts import Part

(Path(__file__).parent / "imported").touch()


class Mine(RandomPatches):
    pass


class Stranger:
    def __init__(self, **given):
        (Path(__file__).parent / "called").touch()
"""


class Holder(Part):
    """A part that holds anything."""

    unsaved = ("teacher",)

    def __init__(self, inner: Any = None, teacher: Any = None, count: int = 1) -> None:
        self.inner = inner
        if count < 1:
            raise ConfigError("`count` is below 1")


class Open(Part):
    """A part that takes any argument but its teacher."""

    unsaved = ("teacher",)

    def __init__(self, **rest: Any) -> None:
        self.rest = rest


class Bare(Part):
    """A part without settings."""


class Broken(Part):
    """A part that cannot be made."""

    def __init__(self) -> None:
        raise ZeroDivisionError("of mine")


def spec(path: object, **given: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": given}


def refuse(wanted: object, *patterns: str, base: type[Part] = Part, modules: Any = ()) -> str:
    """The message of a refusal, which names the file and all that is given."""
    with pytest.raises(CheckpointError) as refusal:
        make(wanted, base, where="x.ckpt: encoder", modules=modules)
    message = str(refusal.value)
    assert message.startswith("x.ckpt: encoder")
    for pattern in patterns:
        assert pattern in message
    return message


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with a module, each of which leaves a file behind when it is imported."""
    package = tmp_path / "foreign_package"
    (package / "below").mkdir(parents=True)
    (package / "__init__.py").write_text(FOREIGN)
    (package / "below" / "__init__.py").write_text(FOREIGN)
    (package / "again.py").write_text(
        "from foreign_twin import Mine, Stranger\nfrom peas.masking import RandomPatches\n"
    )
    (package / "damaged.py").write_text("raise KeyError('of import')\n")
    (tmp_path / "foreign_twin.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package
    for name in [name for name in sys.modules if name.startswith("foreign_")]:
        del sys.modules[name]


def loaded() -> set[str]:
    return {name for name in sys.modules if name.startswith("foreign_")}


# --- what is made ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "base"),
    [
        (StructuredPatches(time_ratio=0.25), PatchMasking),
        (LabelClassification(0.5, hidden=7), Objective),
    ],
)
def test_a_part_comes_back_from_what_it_says_of_itself(part: Part, base: type[Part]) -> None:
    again = make(part.spec(), base, where="x.ckpt: encoder")
    assert type(again) is type(part)
    assert again.spec() == part.spec()


def test_parts_inside_a_part_are_made_wherever_they_stand() -> None:
    inner = spec("peas.masking.RandomPatches", ratio=0.5)
    made = make(
        spec(f"{__name__}.Holder", inner={"a": [inner, 3], "b": spec(f"{__name__}.Bare")}),
        Holder,
        where="x.ckpt: encoder",
        modules=[__name__],
    )
    assert isinstance(made, Holder)
    assert isinstance(made.inner["a"][0], RandomPatches)
    assert made.inner["a"][1] == 3
    assert isinstance(made.inner["b"], Bare)


def test_settings_are_parts_where_a_base_is_known() -> None:
    inner = spec("peas.masking.RandomPatches", ratio=0.5)
    given = {"masking": inner, "named": {"a": inner}, "patch": (16, 16), "labels": ["a"], "x": None}
    bases = {"masking": PatchMasking, "named": PatchMasking}
    made = make_parts(given, bases, where="x.ckpt")
    assert isinstance(made.pop("masking"), RandomPatches)
    assert isinstance(made.pop("named")["a"], RandomPatches)
    assert made == {"patch": (16, 16), "labels": ["a"], "x": None}


@pytest.mark.parametrize("path", ["os.system", "peas.masking.RandomPatches"])
def test_a_part_where_none_belongs_is_refused(path: str) -> None:
    for value in (spec(path), [spec(path)], {"a": spec(path)}):
        with pytest.raises(CheckpointError, match=rf"^x\.ckpt: labels.*{re.escape(path)}"):
            make_parts({"labels": value}, {"masking": PatchMasking}, where="x.ckpt")


# --- what is refused by name -------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "builtins.eval",
        "builtins.object",
        "subprocess.Popen",
        "pathlib.Path",
        "torch.nn.Linear",
        "torch.hub.load",
        "peas_of_another.Part",
    ],
)
def test_a_part_of_another_module_is_refused_by_name(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("called or imported")

    monkeypatch.setattr("os.system", never)
    monkeypatch.setattr("subprocess.Popen", never)
    monkeypatch.setattr("peas.parts.importlib.import_module", never)
    module = path.rpartition(".")[0]
    refuse(spec(path), path, f"module {module}")


@pytest.mark.parametrize(
    ("path", "base"),
    [
        # Names of other modules, seen from one of ours.
        ("peas.parts.os.system", Part),
        ("peas.parts.os", Part),
        ("peas.errors.printable", Part),
        ("peas.parts.class_path", Part),
        ("peas.cli.embed.Path", Part),
        ("peas.parts.Mapping", Part),
        # Classes of ours that are no such part.
        ("peas.parts.Part", Part),
        ("peas.parts.CheckpointError", Part),
        ("peas.tasks.Classification", Part),
        ("peas.teachers.base.Teacher", Part),
        ("peas.masking.RandomPatches", Objective),
        # Bases, which are no part by themselves.
        ("peas.masking.PatchMasking", PatchMasking),
        ("peas.masking.NoSuchPatches", PatchMasking),
        ("peas.no_such_module.Patches", PatchMasking),
    ],
)
def test_what_is_no_part_of_ours_is_refused_by_name(path: str, base: type[Part]) -> None:
    refuse(spec(path), path, base=base)


def test_the_entry_of_the_command_is_not_imported_anew() -> None:
    before = sys.modules.pop("peas.__main__", None)
    try:
        refuse(spec("peas.__main__.Part"), "peas.__main__.Part")
        assert "peas.__main__" not in sys.modules
    finally:
        if before is not None:
            sys.modules["peas.__main__"] = before


@pytest.mark.parametrize(
    "wanted",
    [
        lambda evil: evil,
        lambda evil: spec("peas.masking.RandomPatches", ratio=evil),
        lambda evil: spec("peas.masking.RandomPatches", ratio=[{"a": (evil,)}]),
    ],
    ids=["itself", "inside", "deep inside"],
)
@pytest.mark.parametrize("path", ["foreign_package.Mine", "foreign_package.below.Mine"])
def test_nothing_of_a_module_that_nobody_named_is_imported(
    wanted: Any, path: str, foreign: Path
) -> None:
    # Nor by a name that only begins alike.
    for modules in [(), ("foreign",), ("foreign_package.belo",), ("below",)]:
        refuse(wanted(spec(path)), path, "module", modules=modules)
    assert loaded() == set()
    assert not list(foreign.rglob("imported"))


def test_a_part_of_a_module_that_the_user_named_is_made(foreign: Path) -> None:
    for path in ("foreign_package.Mine", "foreign_package.below.Mine"):
        wanted = spec(path, ratio=0.25)
        made = make(wanted, PatchMasking, where="x.ckpt", modules=["other", "foreign_package"])
        assert made.spec() == wanted
        assert isinstance(made, RandomPatches)


def test_a_module_that_was_named_is_not_those_above_and_beside_it(foreign: Path) -> None:
    named = ["foreign_package.below"]
    make(spec("foreign_package.below.Mine"), PatchMasking, where="x.ckpt", modules=named)
    for path in ("foreign_package.Mine", "foreign_package.again.Mine", "foreign_twin.Mine"):
        refuse(spec(path), path, "module", modules=named)
    assert "foreign_package.again" not in loaded()
    assert "foreign_twin" not in loaded()


def test_a_module_that_was_named_offers_parts_alone(foreign: Path) -> None:
    for name in ("Stranger", "Path", "no_such_name", "below"):
        path = f"foreign_package.{name}"
        refuse(spec(path), path, modules=["foreign_package"])
        refuse(spec(path), path, base=PatchMasking, modules=["foreign_package", "pathlib"])
    assert not list(foreign.rglob("called"))


def test_a_class_that_comes_from_elsewhere_is_refused(foreign: Path) -> None:
    path = "foreign_package.again.Mine"
    refuse(spec(path), path, "module foreign_twin", modules=["foreign_package"])
    named = ["foreign_package", "foreign_twin"]
    assert isinstance(make(spec(path), PatchMasking, where="x", modules=named), RandomPatches)
    # Ours is good from wherever.
    ours = spec("foreign_package.again.RandomPatches")
    assert type(make(ours, PatchMasking, where="x", modules=named[:1])) is RandomPatches


def test_a_module_that_cannot_be_imported_is_named(foreign: Path) -> None:
    refuse(spec("foreign_missing.Mine"), "foreign_missing.Mine", modules=["foreign_missing"])
    path = "foreign_package.damaged.Mine"
    refuse(spec(path), path, "of import", modules=["foreign_package"])


def test_a_teacher_is_no_part() -> None:
    path = "peas.teachers.LaionClapTeacher"
    teacher = spec(path, checkpoint="x")
    refuse(spec(f"{__name__}.Holder", inner=teacher), "inner", path, modules=[__name__])
    for name in ("Holder", "Open"):
        refuse(spec(f"{__name__}.{name}", teacher=teacher), "teacher", modules=[__name__])
        refuse(spec(f"{__name__}.{name}", teacher="x"), "teacher", modules=[__name__])


# --- what is malformed -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "eval",
        "peas",
        ".parts.Part",
        "..peas.parts.Part",
        "peas..parts.Part",
        "peas.parts.",
        "peas.parts.Part ",
        "peas.parts:Part",
        "peas/parts.Part",
        "peas.parts.1",
        "peas.parts.<locals>.Part",
        "peas.parts.Part\x00",
        "peas.parts.\udc80",
        "peas.parts.__builtins__.eval",
        "peas.__builtins__.eval",
        "peas.masking.RandomPatches.__init__",
        "__main__.Part",
        "peas.masking." + "R" * 10_000_000,
        3,
        None,
        b"peas.masking.RandomPatches",
        ["peas.masking", "RandomPatches"],
    ],
    ids=lambda path: repr(path)[:40],
)
def test_a_text_that_names_no_class_is_refused(
    path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(name: str) -> None:
        raise AssertionError(f"{name} is imported")

    monkeypatch.setattr("peas.parts.importlib.import_module", never)
    # Nor does it help that somebody named it.
    message = refuse(spec(path), "class_path", modules=["__main__", "eval", "", "."])
    assert len(message) < 500


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        (None, "None"),
        ("peas.masking.RandomPatches", "peas.masking.RandomPatches"),
        (["peas.masking.RandomPatches"], "class_path"),
        ({}, "class_path"),
        ({"class_path": "peas.masking.RandomPatches"}, "init_args"),
        ({"init_args": {}}, "class_path"),
        ({**spec("peas.masking.RandomPatches"), "dict_kwargs": {}}, "dict_kwargs"),
        ({"class_path": "peas.masking.RandomPatches", "init_args": None}, "init_args"),
        ({"class_path": "peas.masking.RandomPatches", "init_args": [0.5]}, "init_args"),
        (spec("peas.masking.RandomPatches", rate=0.5), "rate"),
        (spec("peas.masking.RandomPatches", self=0.5), "self"),
        ({"class_path": "peas.masking.RandomPatches", "init_args": {3: 0.5}}, "3"),
        (spec("peas.masking.RandomPatches", ratio=1.5), "ratio"),
        (spec("peas.masking.RandomPatches", ratio="much"), "peas.masking.RandomPatches"),
        (spec("peas.masking.RandomPatches", ratio=torch.ones(2)), "ratio"),
        (spec("peas.masking.RandomPatches", ratio={"class_path": "os.system"}), "init_args"),
        (spec(f"{__name__}.Holder", count=0), "count"),
        (spec(f"{__name__}.Holder", args=0), "args"),
        (spec(f"{__name__}.Bare", junk=0), "junk"),
        (spec(f"{__name__}.Broken"), "of mine"),
        ({"class_path": f"{__name__}.Open", "init_args": {"cls": 1}}, "cls"),
        ({"class_path": f"{__name__}.Open", "init_args": {3: 1}}, "3"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_malformed_part_is_one_error_that_names_the_field(wanted: object, named: str) -> None:
    refuse(wanted, named, modules=[__name__])


def test_a_part_without_end_is_refused() -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    refuse(spec(f"{__name__}.Holder", inner=value), "inner", modules=[__name__])
    refuse(value)
    wanted = spec(f"{__name__}.Bare")
    for _ in range(100_000):
        wanted = spec(f"{__name__}.Holder", inner=wanted)
    assert len(refuse(wanted, modules=[__name__])) < 1000


# --- from a file -------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a fine-tuned checkpoint with a setting of one's own in place of `pretrained`."""
    monkeypatch.setitem(Classification.part_bases, "pretrained", PatchMasking)
    task = make_task()

    def write(**settings: Any) -> Path:
        content = {
            "hyper_parameters": {**task.hparams, **settings},
            "state_dict": task.state_dict(),
        }
        torch.save(content, tmp_path / "best.ckpt")
        return tmp_path / "best.ckpt"

    return write


def test_a_checkpoint_is_loaded_with_its_parts(saved: Any) -> None:
    def restored(path: Path) -> Any:
        return Classification.restore(read_state(path), str(path)).hparams["pretrained"]

    assert restored(saved()) is None
    part = spec("peas.masking.RandomPatches", ratio=0.5)
    made = restored(saved(pretrained=part))
    assert isinstance(made, RandomPatches)
    assert made.ratio == 0.5


@pytest.mark.parametrize("key", ["pretrained", "freeze", "augmentation"])
def test_a_command_in_the_place_of_a_part_is_never_run(
    saved: Any, key: str, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    for path in ("os.system", "builtins.eval", "subprocess.Popen", "peas.parts.os.system"):
        file = saved(**{key: spec(path, command=f"touch {trace}", args=["touch", str(trace)])})
        with pytest.raises(CheckpointError) as refusal:
            load(file)
        assert str(refusal.value).startswith(f"{file}: hyper_parameters: {key}")
        assert path in str(refusal.value)
    assert not trace.exists()


def test_a_command_line_says_which_modules_are_trusted(
    saved: Any, foreign: Path, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = saved(pretrained=spec("foreign_package.below.Mine"))
    argv = [str(sorted(sounds.glob("audio/*.wav"))[0]), "--checkpoint", str(file)]
    for words in ([], ["--allow_module", "foreign_twin"]):
        with pytest.raises(CheckpointError, match=r"--allow.module foreign_package\.below"):
            dispatch(["tag", *argv, *words])
    assert loaded() == set()
    assert not list(foreign.rglob("imported"))
    dispatch(
        ["tag", *argv, "--allow_module", "foreign_package.below", "--allow_module", "foreign_twin"]
    )
    assert "%" in capsys.readouterr().out
    # What is trusted and not needed stays where it is.
    assert "foreign_twin" not in loaded()


@pytest.mark.parametrize("name", ["", "my-part", "./mine.py", "mine.", "__main__"])
def test_a_name_that_no_module_has_is_refused(
    name: str,
) -> None:
    with pytest.raises(UsageError, match="--allow_module"):
        dispatch(["tag", "x.wav", "--checkpoint", "x.ckpt", f"--allow_module={name}"])


def test_python_executes_nothing_of_a_checkpoint_either(saved: Any, foreign: Path) -> None:
    """Lightning's own `load_from_checkpoint` would import the module first."""
    evil = {"encoder": {"class_path": "foreign_twin.Mine", "init_args": {}}}
    path = saved(**evil, _instantiator="lightning.pytorch.cli.instantiate_module")
    with pytest.raises(CheckpointError, match=r"foreign_twin\.Mine"):
        Classification.load_from_checkpoint(path)
    assert not loaded()
    assert not (foreign.parent / "imported").exists()
    assert Classification.load_from_checkpoint(saved()).built


def test_two_objectives_do_not_share_a_figure() -> None:
    with pytest.raises(ConfigError, match="nce_accuracy"):
        Pretraining(objectives={"a": PatchContrast(), "b": PatchContrast()})
