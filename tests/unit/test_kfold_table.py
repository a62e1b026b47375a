"""Results of folds and seeds on histories that are made up."""

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from peas.cli.kfold import has_folds, numbers
from peas.cli.results import (
    FoldResult,
    differences,
    read_folds,
    spread,
    summarise,
    write_folds,
)
from peas.errors import ConfigError, PeasError


def result(fold: int | None, seed: int, *curve: float, **more: Any) -> FoldResult:
    return FoldResult(fold, seed, "accuracy", dict(enumerate(curve, 1)), 400, **more)


def official(curves: list[list[float]]) -> tuple[float, int]:
    """The rule of the official script, step by step: the epoch of the best mean over the folds.

    It keeps the first of equal epochs, since numpy's argmax does.
    """
    best, chosen = -1.0, -1
    for epoch in range(len(curves[0])):
        mean = sum(curve[epoch] for curve in curves) / len(curves)
        if mean > best:
            best, chosen = mean, epoch
    return best, chosen + 1


def test_three_figures_are_told_apart() -> None:
    row = summarise([result(1, 0, 0.50, 0.90, 0.60), result(2, 0, 0.80, 0.60, 0.70)])
    assert row.last == [pytest.approx(0.65)]
    # Means 0.65, 0.75, 0.65.
    assert row.best == [pytest.approx(0.75)]
    assert row.best_epochs == [2]
    assert row.optimistic == [pytest.approx(0.85)]


def test_the_first_of_equal_epochs_is_chosen() -> None:
    row = summarise([result(1, 0, 0.25, 0.5, 0.5, 0.25), result(2, 0, 0.25, 0.75, 0.75, 0.25)])
    assert row.best_epochs == [2]


@pytest.mark.parametrize("case", range(20))
def test_the_official_rule(case: int) -> None:
    # Few distinct values, so that ties are common; fractions of two, so that sums are exact.
    curves = [
        [((epoch * 7 + fold * 5 + case * 3) % 8) / 8 for epoch in range(9)] for fold in range(4)
    ]
    row = summarise([result(fold + 1, 3, *curve) for fold, curve in enumerate(curves)])
    best, epoch = official(curves)
    assert (row.best, row.best_epochs) == ([best], [epoch])


def test_seeds_stay_apart_for_the_spread() -> None:
    row = summarise(
        [
            result(1, 0, 0.1, 0.5),
            result(2, 0, 0.1, 0.7),
            result(1, 4, 0.9, 0.7),
            result(2, 4, 0.9, 0.9),
        ]
    )
    assert row.last == [pytest.approx(0.6), pytest.approx(0.8)]
    assert row.best == [pytest.approx(0.6), pytest.approx(0.9)]
    assert row.best_epochs == [2, 1]
    # The standard deviation of a sample of two: half the distance times the root of two.
    assert spread(row.last) == "70.00% ± 14.14%"
    assert spread([0.5]) == "50.00%"


def test_uneven_histories_are_compared_where_all_have_epochs() -> None:
    row = summarise([result(1, 0, 0.5, 0.6, 0.9), result(2, 0, 0.5, 0.6)])
    assert row.last == [pytest.approx(0.6)]
    assert row.best_epochs == [2]


def test_epochs_are_those_of_the_run(tmp_path: Path) -> None:
    for fold, values in ((1, (0.5, 0.7)), (2, (0.5, 0.6))):
        rows = zip((9, 19), values, strict=True)
        log(tmp_path / str(fold), 0, *({"epoch": e, "val/mAP": v, "val/clips": 6} for e, v in rows))
    results = [read_folds(tmp_path / str(fold), fold, 0) for fold in (1, 2)]
    assert summarise(results).best_epochs == [20]
    write_folds(tmp_path, "name", {}, results)
    with (tmp_path / "runs.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["10", "20", "10", "20"]


def test_folds_without_a_common_epoch() -> None:
    odd = FoldResult(2, 0, "accuracy", {3: 0.5}, 400)
    with pytest.raises(PeasError, match=r"seed 0 were validated at different epochs"):
        summarise([result(1, 0, 0.5, 0.6), odd])


def test_tables(tmp_path: Path) -> None:
    paper = {
        "table": "PEAS III",
        "row": "PEAS (2, 2)",
        "accuracy": 90.7,
        "preset": "reference_code",
    }
    results = [
        result(2, 0, 0.2, 0.4, masked=0.3, adaptive=0.5),
        result(1, 0, 0.4, 0.2, masked=0.1, adaptive=0.7),
    ]
    config = {"paper": {**paper, "requires": {"clips": 800, "paper.preset": "reference_code"}}}
    text = write_folds(tmp_path, "a_config", config, results)
    assert text == (tmp_path / "results.md").read_text().strip()
    with (tmp_path / "results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["config"] == "a_config"
    assert row["paper row"] == "PEAS III PEAS (2, 2)"
    assert row["paper"] == "90.70%"
    assert row["reading"] == "reference_code"
    assert row["clips"] == "800"
    assert row["folds"] == "1, 2"
    assert row["last epoch"] == "30.00%"
    assert row["best averaged epoch"] == "30.00% (epoch 1)"
    assert row["best epoch of each fold (optimistic)"] == "40.00%"
    assert (row["masked"], row["adaptive"]) == ("20.0%", "60.0%")
    head, _, cells = text.splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == list(row)
    assert [cell.strip() for cell in cells.strip("|").split("|")] == list(row.values())
    with (tmp_path / "runs.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["fold", "seed", "epoch", "accuracy"]
    assert lines[1] == ["1", "0", "1", "0.400000"]
    assert len(lines) == 5


FINETUNE = Path(__file__).parents[2] / "configs" / "finetune"
OTHER_WORK = {
    "data.class_path": "peas.data.AudioFolder",
    "model.init_args.encoder.init_args.size": "mini",
    "model.init_args.pretrained": None,
    "trainer.max_epochs": 2,
    "trainer.limit_train_batches": 1,
    "data.init_args.label_fraction": 0.1,
    "paper.preset": "paper_literal",
    "paper.requires": None,
    "clips": 400,
}


def peas_1x1() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((FINETUNE / "esc50_peas_1x1.yaml").read_text())
    return config


def five_folds(clips: int) -> list[FoldResult]:
    return [FoldResult(fold, 0, "accuracy", {1: 0.28}, clips // 5) for fold in range(1, 6)]


def test_the_papers_figure_stands_beside_its_own_work(tmp_path: Path) -> None:
    config = peas_1x1()
    config["model"]["init_args"]["pretrained"] = "/data/weights/SSAST-Base-Patch-400.pth"
    text = write_folds(tmp_path, "name", config, five_folds(2000))
    assert "| 91.15% |" in text
    assert "PEAS II, III PEAS (1, 1)" in text
    assert len(text.splitlines()) == 3


@pytest.mark.parametrize("key", OTHER_WORK)
def test_the_papers_figure_is_left_out_beside_other_work(tmp_path: Path, key: str) -> None:
    config, value = peas_1x1(), OTHER_WORK[key]
    if key != "clips":
        room: Any = config
        *path, last = key.split(".")
        for part in path:
            room = room[part]
        room[last] = value
    text = write_folds(tmp_path, "name", config, five_folds(400 if key == "clips" else 2000))
    with (tmp_path / "results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["paper"] == row["paper row"] == "-"
    table, reason = text.split("\n\n")
    assert "91.15" not in table
    assert key in reason
    assert "91.15%" in reason


def test_two_of_five_folds_are_not_the_papers_figure(tmp_path: Path) -> None:
    text = write_folds(tmp_path, "name", peas_1x1(), five_folds(2000)[:2])
    assert "clips is 800, the row's 2000" in text


@pytest.mark.parametrize("path", sorted(FINETUNE.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_config_is_its_row(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    if config["paper"].get("accuracy") is not None:
        required = config["paper"]["requires"]
        assert required.keys() >= set(OTHER_WORK) - {
            "trainer.limit_train_batches",
            "data.init_args.label_fraction",
            "paper.requires",
            "clips",
        }
        # Of the module: a run's own config has it.
        if "data.init_args.task" in required:
            config["data"]["init_args"].setdefault("task", "v2-35")
        assert differences(config, required.get("clips", 0)) == []


def test_a_set_without_folds_shows_its_test(tmp_path: Path) -> None:
    results = [result(None, seed, 0.5, 0.6, test=0.5 + seed / 10) for seed in (0, 2)]
    write_folds(tmp_path, "name", {}, results)
    with (tmp_path / "results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["test at best validation epoch"] == "60.00% ± 14.14%"
    assert row["paper"] == row["paper row"] == row["masked"] == "-"
    assert "folds" not in row
    assert not any("optimistic" in key for key in row)


def log(folder: Path, version: int, *rows: dict[str, Any]) -> None:
    path = folder / "logs" / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        writer.writerows(rows)


def test_a_resumed_run_is_read_as_one(tmp_path: Path) -> None:
    def epoch(number: int, value: float, fraction: float) -> list[dict[str, Any]]:
        return [
            {"epoch": number, "val/accuracy": value, "val/clips": 6},
            {"epoch": number, "mask/fraction": fraction, "mask/adaptive_share": fraction / 2},
        ]

    log(tmp_path, 0, *epoch(0, 0.1, 0.2), *epoch(1, 0.2, 0.4))
    # Version 10 comes after 9, not after 1; its epochs replace earlier ones.
    log(tmp_path, 9, *epoch(1, 0.3, 0.5))
    log(tmp_path, 10, *epoch(1, 0.4, 0.6), {"epoch": 1, "test/accuracy": 0.75})
    found = read_folds(tmp_path, 2, 5)
    assert found.curve == {1: 0.1, 2: 0.4}
    assert (found.fold, found.seed, found.metric, found.clips) == (2, 5, "accuracy", 6)
    assert found.masked == pytest.approx(0.4)
    assert found.adaptive == pytest.approx(0.3)
    assert found.test == 0.75


def test_logs_of_several_labels_have_map(tmp_path: Path) -> None:
    log(tmp_path, 0, {"epoch": 0, "val/mAP": 0.3, "val/clips": 6})
    assert read_folds(tmp_path, None, 0).metric == "mAP"


def test_logs_without_validation_are_refused(tmp_path: Path) -> None:
    log(tmp_path, 0, {"epoch": 0, "train/loss": 0.3})
    with pytest.raises(PeasError, match="no validation"):
        read_folds(tmp_path, 1, 0)


def test_numbers() -> None:
    assert numbers("1-5", "--folds") == [1, 2, 3, 4, 5]
    assert numbers("1,3", "--folds") == [1, 3]
    assert numbers("0-1,7", "--seeds") == [0, 1, 7]
    for text in ("", "a", "1-", "3-1", "1,1", "1-2,2", "-1"):
        with pytest.raises(ConfigError, match="--seeds"):
            numbers(text, "--seeds")


@pytest.mark.parametrize(
    ("data", "asked", "wanted"),
    [
        ("{class_path: peas.data.ESC50}", False, True),
        ("{class_path: peas.data.AudioFolder, init_args: {fold: 2}}", False, True),
        ("{class_path: peas.data.AudioFolder}", False, False),
        ("{class_path: peas.data.AudioFolder}", True, True),
        ("{class_path: peas.data.SpeechCommands}", False, False),
    ],
)
def test_folds_where_the_set_has_them(tmp_path, data, asked, wanted) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"data: {data}\n")
    assert has_folds([str(config)], asked) == wanted


def test_folds_of_a_set_without_folds_are_refused(tmp_path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("data: {class_path: peas.data.SpeechCommands}\n")
    with pytest.raises(ConfigError, match=r"--folds.*SpeechCommands has no folds"):
        has_folds([str(config)], asked=True)
