"""The figures that configs name beside their runs, held against the papers' own tables."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from peas.cli.results import differences

CONFIGS = Path(__file__).parents[2] / "configs"
FINETUNE = sorted(path.stem for path in (CONFIGS / "finetune").glob("*.yaml"))

ESC, SC = "esc50", "speech_commands"
PEAS_III = {
    "Conventional (1, 1)": {ESC: 88.80, SC: 97.62},
    "Random Masking (3, 3)": {ESC: 89.35, SC: 96.13},
    "Random Masking (2, 2)": {ESC: 89.65, SC: 97.22},
    "Random Masking (1, 1)": {ESC: 90.00, SC: 97.38},
    "PEAS (3, 3)": {ESC: 90.35, SC: 97.20},
    "PEAS (2, 2)": {ESC: 90.70, SC: 97.23},
    "PEAS (1, 1)": {ESC: 91.15, SC: 97.61},
}
COLUMNS = ("audioset_2m", "audioset_20k", ESC, "speech_commands_v1_12", SC)
"""AS-2M, AS-20K, ESC-50, KS1, KS2."""


def cells(*figures: float | None) -> dict[str, float]:
    row = zip(COLUMNS, figures, strict=True)
    return {column: figure for column, figure in row if figure is not None}


SUPMAM_CLAP = {
    "PANN [20]": cells(43.1, 27.8, 83.3, None, 61.8),
    "ERANN, no pretraining": cells(45.0, None, 89.2, None, None),
    "PSLA": cells(44.0, 31.9, None, None, 96.3),
    "AST": cells(45.9, 34.7, 88.7, 95.5, 98.1),
    "PaSST, out of domain": cells(47.1, None, None, None, None),
    "HTS-AT, out of domain": cells(47.1, None, None, None, 98.0),
    "PANN [25]": cells(None, None, 94.7, None, None),
    "ERANN, in domain": cells(None, None, 96.1, None, None),
    "PaSST, in domain": cells(None, None, 96.8, None, None),
    "HTS-AT, in domain": cells(None, None, 97.0, None, None),
    "CLAP": cells(None, None, 96.7, None, None),
    "SS-AST": cells(None, 31.0, 88.8, 96.0, 98.0),
    "MSM-MAE": cells(None, None, 85.6, None, 87.3),
    "MaskSpec": cells(47.1, 32.3, 89.6, None, 97.7),
    "MAE-AST": cells(None, 30.6, 90.0, 95.8, 97.9),
    "AudioMAE": cells(47.3, 37.1, 94.1, 96.9, 98.3),
    "AudioMAE†": cells(47.1, 36.8, 93.8, 96.7, 98.1),
    "MAM-CLAP": cells(47.6, 37.8, 96.8, 97.2, 98.1),
    "SupMAM": cells(47.7, 37.6, 96.2, 97.3, 98.2),
    "SupMAM-CLAP": cells(48.1, 38.2, 97.2, 97.6, 98.3),
}
# Of their papers' main tables the data sets that have a file.
EAT = {"EAT": cells(None, 40.2, 95.9, None, 98.3)}
BEATS = {"BEATs iter3": cells(None, 38.3, 95.6, None, 98.3)}
TABLES = {
    "EAT main": EAT,
    "BEATs main": BEATS,
    "PEAS II": {row: PEAS_III[row] for row in ("Conventional (1, 1)", "PEAS (1, 1)")},
    "PEAS III": PEAS_III,
    "SupMAM-CLAP 1": SUPMAM_CLAP,
}
OTHER_MODELS = {
    *("PANN [20]", "ERANN, no pretraining", "PSLA", "PaSST, out of domain"),
    *("HTS-AT, out of domain", "PANN [25]", "ERANN, in domain", "PaSST, in domain"),
    *("HTS-AT, in domain", "CLAP"),
}
"""Rows of models that are not here."""
COMPOSITIONS = {"MSM-MAE", "MaskSpec", "MAE-AST"}
"""Rows whose pretraining is a composition here, and whose fine-tuning is their own papers'."""
SUPERB = {("AST", "speech_commands_v1_12"), ("SS-AST", "speech_commands_v1_12")}
"""Figures of SUPERB's own training, which no file runs."""


def read(name: str) -> dict[str, Any]:
    text = (CONFIGS / "finetune" / f"{name}.yaml").read_text(encoding="utf-8")
    config: dict[str, Any] = yaml.safe_load(text)
    if config["data"]["class_path"].endswith("SpeechCommands"):
        # The configs of runs have every default.
        config["data"]["init_args"].setdefault("task", "v2-35")
    return config


def column(config: dict[str, Any]) -> str:
    """Data set of a config, as a table's column is called here."""
    kind, data = config["data"]["class_path"].rpartition(".")[2], config["data"]["init_args"]
    if kind == "ESC50":
        return ESC
    if kind == "AudioSet":
        return f"audioset_{data['subset'].removeprefix('as')}"
    assert kind == "SpeechCommands"
    return "speech_commands_v1_12" if data["task"] == "v1-12" else SC


def tables(name: str) -> list[str]:
    """`PEAS II, III` is two tables of one paper."""
    paper, _, numbers = name.rpartition(" ") if "," not in name else name.partition(" ")
    return [f"{paper} {number.strip()}" for number in numbers.split(",")]


def files() -> dict[tuple[str, str, str], list[str]]:
    """Configs with a figure by (table, row, data set)."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name in FINETUNE:
        config = read(name)
        if config["paper"].get("accuracy") is not None:
            for table in tables(config["paper"]["table"]):
                key = (table, config["paper"]["row"], column(config))
                found.setdefault(key, []).append(name)
    return found


@pytest.mark.parametrize("name", FINETUNE)
def test_a_figure_is_the_papers(name: str) -> None:
    config = read(name)
    paper = config["paper"]
    if paper.get("accuracy") is None:
        assert "requires" not in paper
        if paper["table"] in TABLES:
            assert column(config) not in TABLES[paper["table"]].get(paper["row"], {})
        return
    for table in tables(paper["table"]):
        assert paper["accuracy"] == TABLES[table][paper["row"]][column(config)]
    # In the words above the settings as well.
    text = (CONFIGS / "finetune" / f"{name}.yaml").read_text(encoding="utf-8")
    comment = text.partition("\npaper:")[0]
    assert paper["accuracy"] in [float(number) for number in re.findall(r"\d+\.\d+", comment)]


@pytest.mark.parametrize("table", TABLES)
def test_every_row_has_a_file_on_every_data_set(table: str) -> None:
    found = files()
    left = set()
    for row, figures in TABLES[table].items():
        for data in figures:
            if row in OTHER_MODELS | COMPOSITIONS or (row, data) in SUPERB:
                left.add((table, row, data))
                continue
            names = found[table, row, data]
            # Two readings of SupMAM-CLAP's SpecAugment.
            presets = {read(name)["paper"]["preset"] for name in names}
            assert len(names) == len(presets), names
    # What has no file has no figure either.
    assert not left & found.keys()


@pytest.mark.parametrize("name", [name for name in FINETUNE if read(name)["paper"].get("accuracy")])
def test_a_figure_stands_beside_its_own_row_alone(name: str) -> None:
    config = read(name)
    required = config["paper"]["requires"]
    clips = required.get("clips", 0)
    assert differences(config, clips) == []
    model = config["model"]["init_args"]
    own = model["pretrained"]
    model["pretrained"] = f"/elsewhere/{own}" if not own.startswith("timm:") else own
    assert differences(config, clips) == []
    # With the weights of any other row on the same data it is not this one.
    others = {read(other)["model"]["init_args"]["pretrained"] for other in FINETUNE} - {own}
    assert {"runs/supmam/checkpoints/last.ckpt", "runs/mam_clap/checkpoints/last.ckpt"} <= (
        others | {own}
    )
    for other in others:
        model["pretrained"] = other
        assert differences(config, clips), other


@pytest.mark.parametrize("data", [ESC, SC])
def test_ssasts_row_and_the_peas_papers_tell_each_other_apart(data: str) -> None:
    ours, peas = read(f"ssast_{data}"), read(f"{data}_conventional")
    for one, other in ((ours, peas), (peas, ours)):
        config = {**one, "paper": other["paper"]}
        assert differences(config, other["paper"]["requires"]["clips"])


@pytest.mark.parametrize("table", ["PEAS III", "SupMAM-CLAP 1"])
def test_the_readme_lists_the_rows_with_their_figures(table: str) -> None:
    lines = (CONFIGS / "README.md").read_text(encoding="utf-8").splitlines()
    for row, figures in TABLES[table].items():
        if row in OTHER_MODELS | COMPOSITIONS:
            continue
        (line,) = [line for line in lines if re.match(rf"\| {re.escape(row)}[ ,]", line)]
        printed = line.strip("| ").rpartition("|")[2]
        assert [float(one) for one in re.findall(r"\d+\.\d+", printed)] == list(figures.values())
