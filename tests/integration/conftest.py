"""The command line on generated sounds: one data set and one trained run for all tests."""

import contextlib
import copy
import csv
import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from peas.data.synthetic import write_sounds

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
        "callbacks": [
            {
                "class_path": "peas.callbacks.PEAS",
                "init_args": {
                    "n_time": 2,
                    "n_freq": 2,
                    "max_time": 24,
                    "max_freq": 24,
                    "rounding": "stochastic",
                    "ramp": "relative",
                    "exclude_padding": True,
                    "refresh_every": 2,
                },
            }
        ],
    },
    "model": {
        "class_path": "peas.tasks.Classification",
        "init_args": {
            "size": "tiny",
            "pretrained": None,
            "stride": [16, 16],
            # Dropping blocks draws random numbers: a resumed run has to draw the same.
            "drop_path": 0.1,
            "lr": 5.0e-4,
            "noise_roll": True,
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


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors only: more threads would wait for each other."""
    # Imported now, while the standard streams are those of the whole session: Lightning's log
    # handler keeps the stream that it finds.
    import peas.cli  # noqa: F401

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parent))
    yield
    sys.path.remove(str(Path(__file__).parent))
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that a run sets do not reach the next test."""
    for name in ("WANDB_MODE", "PEAS_RUN_DIR", "PL_GLOBAL_SEED"):
        # Set first, so that the absence is restored as well.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty clips of three kinds, in ESC-50's layout."""
    folder = tmp_path_factory.mktemp("data") / "sounds"
    return write_sounds(folder, classes=CLASSES, clips_per_class=CLIPS // CLASSES, seconds=0.64)


@pytest.fixture
def damaged(sounds: Path, tmp_path: Path) -> Path:
    """A copy of the sounds for a test to damage."""
    return Path(shutil.copytree(sounds, tmp_path / "damaged"))


Write = Callable[..., Path]


@pytest.fixture
def write(sounds: Path, tmp_path: Path) -> Write:
    """Writes a config with changes; `KEY-` takes a key away."""

    def config(name: str = "tiny.yaml", /, **changes: Any) -> Path:
        given = {"data.init_args.root": str(sounds), **changes.pop("changes", {}), **changes}
        path = tmp_path / name
        path.write_text(yaml.safe_dump(changed(BASE, given)))
        return path

    return config


def fit(folder: Path, root: Path, *argv: object, **recorder: Any) -> tuple[Run, Outcome]:
    """Trains the small model with a recorder of masks behind PEAS."""
    folder.mkdir(parents=True, exist_ok=True)
    config, masks = folder.with_suffix(".yaml"), folder.with_suffix(".jsonl")
    settings = changed(BASE, {"data.init_args.root": str(root)})
    settings["trainer"]["callbacks"].append(
        {"class_path": "cli_recorder.Recorder", "init_args": {"path": str(masks), **recorder}}
    )
    config.write_text(yaml.safe_dump(settings))
    done = call("fit", "--config", config, "--trainer.default_root_dir", folder, *argv)
    return Run(folder, config, masks), done


@pytest.fixture(scope="session")
def trained(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An unbroken run of three epochs. Tests that write into its folder take `copied`."""
    for name in ("PEAS_RUN_DIR", "PL_GLOBAL_SEED"):
        os.environ.pop(name, None)
    run, done = fit(tmp_path_factory.mktemp("runs") / "unbroken", sounds)
    assert done.code == 0, done.err
    return run


@pytest.fixture
def copied(trained: Run, tmp_path: Path) -> Run:
    """A copy of the trained run, to write into."""
    folder = Path(shutil.copytree(trained.folder, tmp_path / "copied"))
    return Run(folder, trained.config, trained.masks)
