"""Every part that docs/extending.md shows trains, from its own file and by its own YAML."""

import csv
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import yaml

from peas.data.synthetic import make_sounds

DOCS = Path(__file__).parents[2] / "docs" / "extending.md"
CODE = re.findall(
    r"^```python\n# (\w+)\.py\n(.*?)^```\n.*?^```yaml\n(.*?)^```", DOCS.read_text(), re.M | re.S
)
LINES = 40
AUDIOMAE = {"size": "mini", "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
PRETRAINING = {
    "class_path": "peas.tasks.Pretraining",
    "init_args": {
        "encoder": {"class_path": "peas.models.AudioMAE", "init_args": AUDIOMAE},
        "recipe": {
            "class_path": "peas.recipes.AudioMAEPretrainingRecipe",
            "init_args": {"lr": 1e-3, "warmup_epochs": 0},
        },
    },
}
FINETUNING = {
    "class_path": "peas.tasks.Classification",
    "init_args": {
        "pretrained": None,
        "encoder": {"class_path": "peas.models.SSAST", "init_args": {"size": "mini"}},
    },
}
SOUNDS = {"classes": 2, "clips_per_class": 5, "seconds": 0.64, "frames": 64, "batch_size": 4}
KEYS = {
    "my_encoder": "encoder",
    "my_front_end": "front_end",
    "my_masking": "masking",
    "my_strategy": None,
    "my_objective": "objectives",
    "my_teacher": None,
    "my_recipe": "recipe",
    "my_data": None,
}
"""The files of the page, and the setting of a checkpoint that names each one's part."""


def run(folder: Path, name: str, given: str, *argv: str) -> Path:
    """Trains the smallest model with a snippet of YAML laid over its config."""
    from peas.__main__ import main

    finetunes = name in ("my_encoder", "my_strategy")
    config: dict[str, Any] = {
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "limit_train_batches": 2},
        "model": FINETUNING if finetunes else PRETRAINING,
        "data": {
            "class_path": "peas.data.SyntheticSounds",
            "init_args": {"num_workers": 0, "cache_dir": "", **SOUNDS},
        },
    }
    root = folder / "sounds"
    if name == "my_data":
        del config["data"]
        root = folder / "clips"
        write_clips(root)
    (folder / "base.yaml").write_text(yaml.safe_dump(config))
    (folder / "part.yaml").write_text(given)
    words = ["fit", "--config", str(folder / "base.yaml"), "--config", str(folder / "part.yaml")]
    words += ["--data.init_args.root", str(root), "--trainer.default_root_dir", str(folder / "run")]
    assert main([*words, *argv]) == 0
    return folder / "run"


def write_clips(root: Path) -> None:
    """Sounds as the page's data set names them."""
    for split, count in (("train", 4), ("validation", 2)):
        (root / split).mkdir(parents=True, exist_ok=True)
        for label in ("tone", "up_chirp"):
            for number, sound in enumerate(make_sounds(label, count, 10_240, 16_000, count)):
                soundfile.write(root / split / f"{label}-{number}.wav", sound, 16_000)


def test_the_page_shows_every_part() -> None:
    assert [name for name, *_ in CODE] == list(KEYS)


@pytest.mark.parametrize(("name", "code", "given"), CODE, ids=[name for name, *_ in CODE])
def test_a_part_of_the_page_is_one_file_that_trains(
    name: str, code: str, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PEAS_RUN_DIR", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(code.strip().splitlines()) <= LINES
    (tmp_path / f"{name}.py").write_text(code)
    try:
        folder = run(tmp_path, name, given)
        assert name in sys.modules
        # It goes on, with what it has learnt.
        again = run(tmp_path, name, given, "--ckpt_path", "last", "--trainer.max_epochs", "2")
    finally:
        sys.modules.pop(name, None)
    state = torch.load(again / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 4
    if (key := KEYS[name]) is not None:
        assert name in str(state["hyper_parameters"][key])
    with (folder / "logs" / "version_0" / "metrics.csv").open(newline="") as file:
        logged = set(next(csv.reader(file)))
    if name == "my_teacher":
        assert "val/feature_mse" in logged
    if name == "my_objective":
        assert {"train/average", "val/average"} <= logged
        weights = state["state_dict"]
        assert not torch.equal(
            weights["objectives.average.average.encoder.cls_token"],
            weights["model.encoder.cls_token"],
        )
