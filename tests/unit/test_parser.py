"""Every null and every choice of every class, on the command line and in YAML."""

import contextlib
import inspect
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from jsonargparse import Namespace
from jsonargparse._typehints import ActionTypeHint
from lightning.pytorch import Callback

import peas.callbacks
import peas.data
import peas.masking
import peas.objectives
import peas.recipes
from peas.__main__ import main
from peas.audio.frontend import FrontEnd, KaldiLogMel
from peas.cli.configs import read_config
from peas.cli.fit_parser import PeasParser
from peas.cli.verbs import LIGHTNING, VERBS
from peas.data.module import ClipDataModule
from peas.errors import ConfigError
from peas.masking import PatchMasking
from peas.models import SSAST, AudioMAE, Encoder
from peas.objectives import Objective
from peas.recipes import Recipe
from peas.tasks import Classification, Pretraining
from peas.tasks.base import BaseTask
from peas.teachers import LaionClapTeacher, Teacher

KINDS: dict[str, type] = {"model": BaseTask, "data": ClipDataModule, "callback": Callback}
# Parts of a task, and the tasks that have them.
PARTS: dict[str, tuple[type, list[type]]] = {
    "encoder": (Encoder, [SSAST, AudioMAE]),
    "front_end": (FrontEnd, [KaldiLogMel]),
    "recipe": (Recipe, [getattr(peas.recipes, name) for name in peas.recipes.__all__]),
    "masking": (PatchMasking, [getattr(peas.masking, name) for name in peas.masking.__all__]),
    "eval_masking": (PatchMasking, [peas.masking.ClusteredPatches]),
    "objectives.a": (Objective, [getattr(peas.objectives, n) for n in peas.objectives.__all__]),
}
OF_PARTS = [
    pytest.param(task, key, one, id=f"{task.__name__}-{key}-{one.__name__}")
    for task, keys_ in ((Classification, ["encoder", "front_end", "recipe"]), (Pretraining, PARTS))
    for key in keys_
    for one in PARTS[key][1]
    if inspect.isclass(one) and issubclass(one, PARTS[key][0]) and not inspect.isabstract(one)
]
CLASSES: dict[str, list[type]] = {
    "model": [Classification, Pretraining],
    "data": [getattr(peas.data, name) for name in peas.data.__all__],
    "callback": [getattr(peas.callbacks, name) for name in peas.callbacks.__all__],
}
ALL = [
    pytest.param(kind, one, id=one.__name__)
    for kind, classes in CLASSES.items()
    for one in classes
    if inspect.isclass(one)
    and issubclass(one, KINDS[kind])
    and not inspect.isabstract(one)
    # They need other sets.
    and one.__name__ not in ("KNN", "Mixture", "OnlineProbes")
]


@pytest.fixture(scope="module")
def parser() -> PeasParser:
    made = PeasParser(exit_on_error=True)
    for kind, base in KINDS.items():
        made.add_subclass_arguments(base, kind, required=False)
    return made


def keys(one: type) -> dict[str, Any]:
    """Type of every argument of a class, those of its bases too."""
    made = PeasParser(exit_on_error=False)
    made.add_class_arguments(one)
    return {
        action.dest: action._typehint
        for action in made._actions
        if isinstance(action, ActionTypeHint) and "." not in action.dest
    }


def options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def required(one: type) -> dict[str, Any]:
    """A value for every argument without default."""
    values: dict[str, Any] = {}
    for name, parameter in inspect.signature(one).parameters.items():
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
            first = options(keys(one)[name])[0]
            values[name] = {str: "x", int: 3, float: 0.5}.get(first, "x")
    return values


@pytest.mark.parametrize(("kind", "one"), ALL)
def test_null_is_null_where_it_may_be_and_refused_elsewhere(
    parser: PeasParser, kind: str, one: type
) -> None:
    types = keys(one)
    nullable = [key for key, kind_ in types.items() if NoneType in options(kind_)]
    made = f"{one.__module__}.{one.__name__}"
    base = [f"--{kind}", made]
    base += [f"--{kind}.init_args.{key}={value}" for key, value in required(one).items()]
    words = [word for key in nullable for word in (f"--{kind}.init_args.{key}", "null")]
    got = parser.parse_args([*base, *words])[kind].init_args
    from_yaml = {**required(one), **dict.fromkeys(nullable)}
    text = yaml.safe_dump({kind: {"class_path": made, "init_args": from_yaml}})
    read = parser.parse_string(text)[kind].init_args
    for key in nullable:
        assert got[key] is None, key
        assert read[key] is None, key
    # One of each class: a parse takes a while.
    for key in [key for key in types if key not in nullable and types[key] is not Any][:1]:
        with pytest.raises(ConfigError, match=key):
            parser.parse_args([*base, f"--{kind}.init_args.{key}", "null"])


@pytest.mark.parametrize(("kind", "one"), ALL)
def test_every_choice_is_taken(parser: PeasParser, kind: str, one: type) -> None:
    choices = {
        key: [
            value
            for part in options(type_)
            if get_origin(part) is Literal
            for value in get_args(part)
        ]
        for key, type_ in keys(one).items()
    }
    base = [f"--{kind}", f"{one.__module__}.{one.__name__}"]
    base += [f"--{kind}.init_args.{key}={value}" for key, value in required(one).items()]
    for at in range(max(map(len, choices.values()), default=0)):
        chosen = {key: values[at] for key, values in choices.items() if at < len(values)}
        words = [f"--{kind}.init_args.{key}={value}" for key, value in chosen.items()]
        got = parser.parse_args([*base, *words])[kind].init_args
        assert {key: got[key] for key in chosen} == chosen


def nested(parser: PeasParser, *words: str) -> Namespace:
    model = "peas.tasks.Pretraining"
    found: Namespace = parser.parse_args(["--model", model, *words]).model.init_args
    return found


def test_null_inside_a_class_inside_a_class(parser: PeasParser) -> None:
    name = "model.init_args.objectives.a"
    objective = [f"--{name}", "peas.objectives.FeatureDistillation"]
    inner = f"{name}.init_args.teacher"
    teacher = [*objective, f"--{inner}", "peas.teachers.LaionClapTeacher"]
    for key, kind in keys(LaionClapTeacher).items():
        if NoneType not in options(kind):
            continue
        for word in (f"init_args.{key}", key):
            got = nested(parser, *teacher, f"--{inner}.{word}", "null").objectives["a"]
            assert got.init_args.teacher.init_args[key] is None, key
    assert issubclass(LaionClapTeacher, Teacher)
    knn = ["--callback", "peas.callbacks.KNN", "--callback.init_args.data", "peas.data.ESC50"]
    knn += ["--callback.init_args.data.init_args.root=x"]
    for key, kind in keys(peas.data.ESC50).items():
        if NoneType in options(kind):
            words = [f"--callback.init_args.data.init_args.{key}", "null"]
            got = parser.parse_args([*knn, *words]).callback.init_args.data.init_args
            assert got[key] is None, key


@pytest.mark.parametrize(("task", "key", "one"), OF_PARTS)
def test_null_and_choices_of_a_part(parser: PeasParser, task: type, key: str, one: type) -> None:
    """Dotted, with and without `init_args`, and in a file."""
    types, path = keys(one), f"{one.__module__}.{one.__name__}"
    base = ["--model", f"peas.tasks.{task.__name__}", f"--model.init_args.{key}", path]
    nullable = [name for name, kind in types.items() if NoneType in options(kind)]

    def read(*words: str) -> Any:
        found: Any = parser.parse_args([*base, *words]).model.init_args
        for name in key.split("."):
            found = found[name]
        return found.init_args

    for inner in ("init_args.", ""):
        where = f"--model.init_args.{key}.{inner}"
        got = read(*(word for name in nullable for word in (f"{where}{name}", "null")))
        assert all(got[name] is None for name in nullable)
    choices = {
        name: get_args(kind)[-1] for name, kind in types.items() if get_origin(kind) is Literal
    }
    where = f"--model.init_args.{key}.init_args."
    got = read(*(f"{where}{name}={value}" for name, value in choices.items()))
    assert {name: got[name] for name in choices} == choices
    part = {"class_path": path, "init_args": dict.fromkeys(nullable)}
    *outer, last = key.split(".")
    settings = {outer[0]: {last: part}} if outer else {last: part}
    text = yaml.safe_dump(
        {"model": {"class_path": f"peas.tasks.{task.__name__}", "init_args": settings}}
    )
    found: Any = parser.parse_string(text).model.init_args
    for name in key.split("."):
        found = found[name]
    assert all(found.init_args[name] is None for name in nullable)
    plain = [name for name in types if name not in nullable and types[name] is not Any]
    if plain:
        with pytest.raises(ConfigError, match=plain[0]):
            read(f"{where}{plain[0]}", "null")


@pytest.mark.parametrize("key", ["encoder", "front_end", "recipe", "masking", "eval_masking"])
def test_a_part_may_be_null(parser: PeasParser, key: str) -> None:
    word, one = f"--model.init_args.{key}", PARTS[key][1][-1]
    for null in ([word, "null"], [f"{word}=null"]):
        named = f"{one.__module__}.{one.__name__}"
        assert nested(parser, word, named, *null)[key] is None
    assert nested(parser, "--model.init_args.objectives.a", "null").objectives == {"a": None}


def test_settings_that_another_class_lacks_are_named(parser: PeasParser) -> None:
    name = "--model.init_args.recipe"
    argv = ["--model", "peas.tasks.Classification", name, "peas.recipes.SSASTRecipe"]
    argv += [f"{name}.init_args.head_lr_mult", "3.0", f"{name}.init_args.lr", "0.5"]
    with pytest.warns(UserWarning, match=r"SSASTRecipe.*head_lr_mult.*3\.0"):
        found = parser.parse_args([*argv, name, "peas.recipes.AudioMAERecipe"])
    assert found.model.init_args.recipe.init_args.lr == 0.5


def test_a_negative_number_is_a_value(parser: PeasParser) -> None:
    for text in ("-1e-3", "-.5", "-2"):
        word = "--model.init_args.front_end.init_args.mean"
        assert nested(parser, word, text).front_end.init_args.mean == float(text)


@pytest.mark.parametrize(
    "argv",
    [
        ["tag", "x.wav", "--checkp", "x"],
        ["export", "--checkp", "x", "--out", "y"],
        ["import", "x", "--pool", "cls"],
        ["doctor", "--clus"],
        ["doctor", "--cluster", "--time", "1"],
        ["kfold", "--conf", "x.yaml"],
        ["sweep", "x.yaml", "--dry"],
        ["data", "verify", "esc50", "/nowhere", "--stri"],
        ["data", "stats", "esc50", "/nowhere", "--pad"],
        ["data", "pack", "esc50", "/nowhere", "--ou", "x"],
        ["data", "prepare", "esc50", "/nowhere", "--mirr", "x"],
        ["fit", "--trainer.max_epoch", "3"],
    ],
    ids=" ".join,
)
def test_no_option_is_abbreviated(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(argv)
    except SystemExit as left:
        status = int(left.code or 0)
    assert status in (1, 2)
    said = capsys.readouterr().err
    assert "required" in said or "unrecognized" in said or "there is no such" in said


def test_help_has_no_doubled_signs(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (
        ["fit", "--help"],
        *([*verb.split(), "--help"] for verb in VERBS if verb not in LIGHTNING),
    ):
        with contextlib.suppress(SystemExit):
            main(argv)
        assert "%%" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"trainer:\n  max_epochs: [1\ndata: x\n", "line 3"),
        (b"model:\n\tx: 1\n", "line 2"),
        (b"- 1\n", "list"),
        (b"a: \xff\xfe\n", "UTF-8"),
    ],
)
def test_a_config_that_is_no_config_is_named(
    parser: PeasParser, tmp_path: Path, content: bytes, where: str
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        parser.parse_args(["--config", str(path)])
    assert str(path) in str(caught.value)
    assert where in str(caught.value)
    with pytest.raises(ConfigError, match="nowhere"):
        read_config(tmp_path / "nowhere.yaml")
