"""Every part that docs/extending.md shows trains, from its own file and by its own YAML."""

import csv
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

DOCS = Path(__file__).parents[2] / "docs" / "extending.md"
CODE = re.findall(
    r"^```python\n# (\w+)\.py\n(.*?)^```\n.*?^```yaml\n(.*?)^```", DOCS.read_text(), re.M | re.S
)
LINES = 40


def run(folder: Path, given: str, *argv: str) -> Path:
    """Trains the smallest autoencoder with a snippet of YAML laid over its config."""
    from peas.__main__ import main

    config = {
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "limit_train_batches": 2},
        "model": {
            "class_path": "peas.tasks.Pretraining",
            "init_args": {
                "encoder": {
                    "class_path": "peas.models.AudioMAE",
                    "init_args": {
                        **{"size": "mini", "decoder_width": 32},
                        **{"decoder_depth": 1, "decoder_heads": 2},
                    },
                },
                "recipe": {
                    "class_path": "peas.recipes.AudioMAEPretrainingRecipe",
                    "init_args": {"lr": 1e-3, "warmup_epochs": 0},
                },
            },
        },
        "data": {
            "class_path": "peas.data.SyntheticSounds",
            "init_args": {
                "root": str(folder / "sounds"),
                "classes": 2,
                "clips_per_class": 5,
                "seconds": 0.64,
                "frames": 64,
                "batch_size": 4,
                "num_workers": 0,
                "cache_dir": "",
            },
        },
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(config))
    (folder / "part.yaml").write_text(given)
    words = ["fit", "--config", str(folder / "base.yaml"), "--config", str(folder / "part.yaml")]
    words += ["--trainer.default_root_dir", str(folder / "run"), *argv]
    assert main(words) == 0
    return folder / "run"


def test_the_page_shows_parts() -> None:
    assert {name for name, *_ in CODE} == {"my_objective", "my_masking"}


@pytest.mark.parametrize(("name", "code", "given"), CODE, ids=[name for name, *_ in CODE])
def test_a_part_of_the_page_is_one_file_that_trains(
    name: str, code: str, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PEAS_RUN_DIR", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(code.splitlines()) <= LINES
    (tmp_path / f"{name}.py").write_text(code)
    try:
        folder = run(tmp_path, given)
        # It goes on, with what it has learnt.
        again = run(tmp_path, given, "--ckpt_path", "last", "--trainer.max_epochs", "2")
    finally:
        sys.modules.pop(name, None)
    state = torch.load(again / "checkpoints" / "last.ckpt", weights_only=True)
    settings = state["hyper_parameters"]
    key = name.removeprefix("my_").replace("objective", "objectives")
    assert name in str(settings[key])
    if key == "objectives":
        average = [k for k in state["state_dict"] if k.startswith("objectives.average.average.")]
        assert average
        assert not torch.equal(
            state["state_dict"]["objectives.average.average.cls_token"],
            state["state_dict"]["model.encoder.cls_token"],
        )
        (log,) = folder.glob("logs/version_0/metrics.csv")
        with log.open(newline="") as file:
            assert {"train/average", "val/average"} <= set(next(csv.reader(file)))
