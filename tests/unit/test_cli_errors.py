"""What the parser says about a class or a key that is not there."""

from pathlib import Path

import pytest

from peas.__main__ import main
from peas.cli.errors import nearest_class
from peas.cli.kfold import has_folds
from peas.errors import ConfigError

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
ENCODER, FRONT_END = "model.init_args.encoder", "model.init_args.front_end"
RECIPE, AUGMENTATION = "model.init_args.recipe", "model.init_args.augmentation"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("peas.data.AudioFoldr", "peas.data.AudioFolder"),
        ("peas.callbacks.PEES", "peas.callbacks.PEAS"),
        ("peas.task.Classification", "peas.tasks.Classification"),
        ("pees.tasks.Classification", "peas.tasks.Classification"),
        ("peas.data.folder.AudioFoldr", "peas.data.AudioFolder"),
        ("ESC51", "peas.data.ESC50"),
        ("AudioMAERecip", "peas.recipes.AudioMAERecipe"),
        ("peas.data.AudioFolder", None),
        ("somebodys.Own", None),
        ("peas.data.Zzzzzz", None),
    ],
)
def test_the_nearest_class(wrong: str, right: str | None) -> None:
    assert nearest_class(wrong) == right


@pytest.mark.parametrize(
    ("argv", "near"),
    [
        (["--data.class_path", "peas.data.AudioFoldr"], "peas.data.AudioFolder"),
        (["--data", "AudioFoldr"], "peas.data.AudioFolder"),
        (["--data.init_args.batchsize", "3"], "`data.init_args.batch_size`"),
        # Of a base class that gets what the class does not know.
        (["--data.init_args.num_worker", "3"], "`data.init_args.num_workers`"),
        (["--model.init_args.encoder.init_args.szie", "mini"], f"`{ENCODER}.init_args.size`"),
        (["--model.init_args.encoder", "SSTA"], "peas.models.SSAST"),
        (["--model.init_args.encoder.class_path", "peas.models.SSTA"], "peas.models.SSAST"),
        # Of the class that a task takes where none is named.
        (["--model.init_args.front_end.init_args.meen", "1"], f"`{FRONT_END}.init_args.mean`"),
        (
            ["--model.init_args.recipe.init_args.lr", "null"],
            "`model.init_args.recipe.init_args.lr`",
        ),
        (
            ["--model.init_args.augmentation.noise_rol", "1"],
            "model.init_args.augmentation.noise_roll`",
        ),
        (["--masking.init_args.n_tiem", "2"], "`masking.init_args.n_time`"),
        (["--trainer.max_epoch", "3"], "`--trainer.max_epochs`"),
    ],
)
def test_a_command_line_with_a_slip_names_what_was_meant(
    argv: list[str], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", str(DEMO), *argv]) == 1
    assert near in capsys.readouterr().err


def test_a_key_that_is_like_none_gets_no_advice(capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("--trainer.zzzzzz", "--data.init_args.zzzzzz"):
        assert main(["fit", "--config", str(DEMO), f"{key}=3"]) == 1
        told = capsys.readouterr().err
        assert key.removeprefix("--") in told
        assert "mean" not in told


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("trainr: {max_epochs: 3}", "`trainer.max_epochs`"),
        (
            "data: {class_path: peas.data.AudioFolder, init_args: {rooot: x}}",
            "data.init_args.root`",
        ),
        ("data: {class_path: peas.data.AudioFoldr}", "peas.data.AudioFolder?"),
        (
            "model: {init_args: {encoder: {init_args: {szie: mini}}}}",
            "model.init_args.encoder.init_args.size`",
        ),
        (
            "model: {init_args: {recipe: {class_path: peas.recipes.SSASTRecip}}}",
            "peas.recipes.SSASTRecipe?",
        ),
        (
            "model: {init_args: {augmentation: {noise_rol: true}}}",
            "model.init_args.augmentation.noise_roll`",
        ),
    ],
)
def test_a_config_with_a_slip_names_what_was_meant(
    text: str, near: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slip.yaml").write_text(text)
    assert main(["fit", "--config", str(DEMO), "--config", str(tmp_path / "slip.yaml")]) == 1
    assert near in capsys.readouterr().err


def test_kfold_names_the_nearest_class(tmp_path: Path) -> None:
    (tmp_path / "slip.yaml").write_text("data: {class_path: peas.data.ESC51}")
    with pytest.raises(ConfigError, match=r"peas\.data\.ESC50"):
        has_folds([str(tmp_path / "slip.yaml")])


def test_kfold_of_a_folder_without_folds() -> None:
    assert has_folds([str(DEMO)])
    own = ["--data", "peas.data.AudioFolder", "--data.init_args.root", "x"]
    for null in (["--data.init_args.fold", "null"], ["--data.init_args.fold=null"]):
        assert not has_folds([str(DEMO)], fit_args=[*own, *null])
        assert has_folds([str(DEMO)], asked=True, fit_args=[*own, *null])


def test_the_verbs_of_data_name_their_own_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "verify", "folder", str(tmp_path / "clpis")]) == 1
    told = capsys.readouterr().err
    assert "clpis" in told
    assert "ROOT" in told
    assert main(["data", "stats", "folder", str(tmp_path), "--csv", "gone.csv"]) == 1
    told += capsys.readouterr().err
    assert "--csv" in told
    assert main(["data", "verify", "folder", str(tmp_path), "--fold", "1"]) == 1
    told += capsys.readouterr().err
    assert "init_args" not in told
