"""Drives the command line in tests: configs, calls and what they leave."""

import contextlib
import copy
import csv
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CLASSES = 3
CLIPS = 30
FOLD = 6
"""Clips of a fold; the other folds make four batches of six."""

BASE: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {
        "max_epochs": 3,
        "accelerator": "cpu",
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "callbacks": [],
    },
    "masking": {
        "class_path": "peas.callbacks.PEAS",
        "init_args": {
            "n_time": 2,
            "n_freq": 2,
            "max_time": 24,
            "max_freq": 24,
            "rounding": "stochastic",
            "ramp": "relative",
            "exclude_padding": True,
            "exclude_empty_bins": True,
            "refresh_every": 2,
        },
    },
    "model": {
        "class_path": "peas.tasks.Classification",
        "init_args": {
            "pretrained": None,
            "encoder": {
                "class_path": "peas.models.SSAST",
                # Dropping blocks draws random numbers: a resumed run has to draw the same.
                "init_args": {"size": "mini", "stride": [16, 16], "drop_path": 0.1},
            },
            "recipe": {"class_path": "peas.recipes.SSASTRecipe", "init_args": {"lr": 5.0e-4}},
            "augmentation": {"noise_roll": True},
        },
    },
    "data": {
        "class_path": "peas.data.ESC50",
        "init_args": {
            "batch_size": 6,
            "mean": -5.2411,
            "std": 4.1377,
            "frames": 64,
            "mixup": 0.3,
            "num_workers": 0,
            "cache_dir": "",
        },
    },
}


@dataclass
class Outcome:
    """What a call of the command line left."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one error message; fails when there is none, or more than one."""
        assert self.code != 0, "the command was expected to fail"
        assert "Traceback" not in self.err
        _, *found = re.split(r"^peas \w+: error: ", self.err, flags=re.MULTILINE)
        assert len(found) == 1, self.err
        return found[0].strip()


def call(*argv: object) -> Outcome:
    """Calls `peas` in this process; an exception that `peas` lets through fails the test."""
    from peas.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in argv])
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
    return Outcome(code, out.getvalue(), err.getvalue())


def changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Copy of a config with other values at dotted keys; `KEY-` takes a key away."""
    config = copy.deepcopy(base)
    for key, value in changes.items():
        room: Any = config
        *path, last = key.removesuffix("-").split(".")
        for part in path:
            room = room[int(part) if isinstance(room, list) else part]
        if key.endswith("-"):
            del room[last]
        else:
            room[last] = value
    return config


OBJECTIVES = {
    "reconstruction": "Reconstruction",
    "distillation": "FeatureDistillation",
    "classification": "LabelClassification",
}


def objectives(**settings: dict[str, Any]) -> dict[str, Any]:
    """`objectives` of a config, from the settings of each."""
    return {
        name: {"class_path": f"peas.objectives.{OBJECTIVES[name]}", "init_args": given}
        for name, given in settings.items()
    }


def part(class_path: str, **settings: Any) -> dict[str, Any]:
    """A part of a task, of `peas` by a path that begins there."""
    return {"class_path": f"peas.{class_path}", "init_args": settings}


SSAST: dict[str, Any] = {
    "class_path": "peas.tasks.Pretraining",
    "init_args": {
        "encoder": part("models.SSAST", size="mini"),
        "masking": part("masking.ClusteredPatches", num_masked=16),
        "objectives": {
            "nce": part("objectives.PatchContrast", weight=1.0),
            "mse": part("objectives.Reconstruction", weight=10.0, norm_pix=False),
        },
        "passes": "separate",
        "recipe": part("recipes.SSASTPretrainingRecipe"),
        "grad_norm_every": 0,
    },
}
"""Pretraining of SSAST, as small as can be."""
HALF = {"class_path": "peas.masking.RandomPatches", "init_args": {"ratio": 0.5}}
"""`masking` of half of the patches."""


def metrics(log: Path) -> list[dict[str, str]]:
    """Rows of a `metrics.csv`, without empty cells and without what is measured in seconds."""
    with log.open(newline="") as file:
        return [
            {key: value for key, value in row.items() if value and "seconds" not in key}
            for row in csv.DictReader(file)
        ]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass
class Run:
    """A run that has ended."""

    folder: Path
    config: Path
    masks: Path

    @property
    def last(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.folder / "checkpoints" / "best.ckpt"


Write = Callable[..., Path]


def prepare(folder: Path, root: Path, *callbacks: dict[str, Any], **recorder: Any) -> Run:
    """Writes the config of the small model with PEAS and a recorder of masks."""
    folder.mkdir(parents=True, exist_ok=True)
    config, masks = folder.with_suffix(".yaml"), folder.with_suffix(".jsonl")
    settings = changed(BASE, {"data.init_args.root": str(root)})
    settings["trainer"]["callbacks"].append(
        {"class_path": "cli_recorder.Recorder", "init_args": {"path": str(masks), **recorder}}
    )
    settings["trainer"]["callbacks"] += callbacks
    config.write_text(yaml.safe_dump(settings))
    return Run(folder, config, masks)


def fit(folder: Path, root: Path, *argv: object, **recorder: Any) -> tuple[Run, Outcome]:
    """Trains the small model with PEAS and a recorder of masks."""
    run = prepare(folder, root, **recorder)
    done = call("fit", "--config", run.config, "--trainer.default_root_dir", folder, *argv)
    return run, done
