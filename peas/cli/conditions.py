"""Conditions of an experiment: results of `peas kfold` folders, paired by seed and clip."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from peas.cli.jobs import DONE
from peas.errors import DataError
from peas.utils.text import some

JOB = re.compile(r"fold(\d+)_seed(\d+)")
UNCOMPARED = ("seed_everything", "ckpt_path", "config", "paper", "data.init_args.fold", "masking")
"""Settings that may differ between the runs of a comparison: they change no result, change all
conditions alike, or are what is compared."""
SHARED = ("n_time", "n_freq", "max_time", "max_freq", "final_phase", "overlap", "stage")
"""Settings of masking strategies in which conditions must agree."""


@dataclass(frozen=True)
class Condition:
    """Results of a condition's runs. S seeds, N clips.

    Attributes:
        name: Of the condition.
        seeds: The seeds, in order.
        ids: Names of the clips, in order.
        target: `[N]` class of each clip.
        fold: `[N]` fold in which each clip was tested.
        correct: `[S, N]` whether it was classified right in the last epoch.
        epochs: Epochs of the runs.
        config: Settings of one run.
        origins: Commits and versions that made the runs.
    """

    name: str
    seeds: list[int]
    ids: list[str]
    target: NDArray[np.int64]
    fold: NDArray[np.int64]
    correct: NDArray[np.bool_]
    epochs: int
    config: dict[str, Any]
    origins: list[str]


def read_condition(name: str, folder: Path) -> Condition:
    """Joins the last epochs of a condition's runs by seed and clip.

    Args:
        name: What to call the condition.
        folder: `--out` of its `peas kfold`.

    Raises:
        DataError: A run is missing, unfinished or contradicts another one.
    """
    runs = {path: JOB.fullmatch(path.name) for path in sorted(folder.glob("*"))}
    jobs = sorted((int(m[2]), int(m[1]), path) for path, m in runs.items() if m)
    if not jobs:
        raise DataError(
            f"{name}: {folder} holds no folder such as fold1_seed0: give the --out of a "
            "`peas kfold` over folds"
        )
    by_seed: dict[int, dict[str, tuple[int, int, bool]]] = {}
    config: dict[str, Any] = {}
    origins = set()
    for seed, fold, path in jobs:
        settings, origin = _settings(path)
        config = config or settings
        origins.add(origin)
        if (flat(settings), masking(settings)) != (flat(config), masking(config)):
            raise DataError(f"{path} and {jobs[0][2]} have other settings: compare equal runs")
        for clip, target, correct in _last_epoch(path, settings["trainer"]["max_epochs"]):
            if clip in by_seed.setdefault(seed, {}):
                raise DataError(f"{path}: {clip} was scored in another fold of seed {seed} too")
            by_seed[seed][clip] = target, fold, correct
    first = by_seed[jobs[0][0]]
    for seed, clips in by_seed.items():
        _same_clips(f"{name}, seed {seed}", clips, f"{name}, seed {jobs[0][0]}", first)
    ids = sorted(first)
    table = np.array([[clips[clip] for clip in ids] for clips in by_seed.values()])
    return Condition(
        name,
        seeds=list(by_seed),
        ids=ids,
        target=table[0, :, 0],
        fold=table[0, :, 1],
        correct=table[:, :, 2].astype(bool),
        epochs=config["trainer"]["max_epochs"],
        config=config,
        origins=sorted(origins),
    )


def _settings(run: Path) -> tuple[dict[str, Any], str]:
    """Settings of a finished run, and the commit and versions that made it."""
    if not (run / DONE).is_file():
        raise DataError(f"{run} is not finished: call its `peas kfold` again to resume")
    environment = json.loads((run / "environment.json").read_text())
    full = environment["commit"] or "unknown"
    # A plus at the end marks local changes.
    commit = full[:7] + "+" * full.endswith("+")
    packages = ("peas", "torch", "lightning", "timm", "numpy")
    versions = ", ".join(f"{key} {environment['versions'][key]}" for key in packages)
    settings: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    return settings, f"commit {commit}; {versions}"


def _last_epoch(run: Path, epochs: int) -> Iterator[tuple[str, int, bool]]:
    """Name, class and success of each clip in a run's last epoch."""
    file = run / "logits" / "val_last.npz"
    if not file.is_file():
        raise DataError(f"there is no {file}: delete {run} and call `peas kfold` again")
    with np.load(file) as arrays:
        ids, logits, targets, epoch = (arrays[k] for k in ("ids", "logits", "targets", "epoch"))
    if epoch != epochs - 1:
        raise DataError(f"{file} is of epoch {epoch + 1} of {epochs}: it is not the last one")
    if not np.isfinite(logits).all():
        raise DataError(f"{file} holds non-finite scores: this run has diverged")
    if not ((targets == targets.max(axis=1, keepdims=True)).sum(axis=1) == 1).all():
        raise DataError(f"{file}: clips with several classes have no right or wrong to compare")
    target = targets.argmax(axis=1)
    correct = logits.argmax(axis=1) == target
    for clip, index, hit in zip(ids, target, correct, strict=True):
        yield str(clip), int(index), bool(hit)


def _same_clips(name: str, clips: Any, other_name: str, other_clips: Any) -> None:
    for first, second, lacking in (
        (name, other_name, sorted(set(other_clips) - set(clips))),
        (other_name, name, sorted(set(clips) - set(other_clips))),
    ):
        if lacking:
            raise DataError(
                f"{first} lacks {len(lacking)} clips that {second} has: {some(lacking)}; run "
                "all folds of each condition and seed"
            )


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their full keys, without those of `UNCOMPARED` and of callbacks."""
    result: dict[str, Any] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if key in UNCOMPARED or key in ("trainer.callbacks", "trainer.default_root_dir"):
            continue
        result |= flat(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return result


def masking(config: dict[str, Any]) -> dict[str, Any]:
    """Class and arguments of a run's masking strategy; nothing where it has none."""
    if strategy := config.get("masking"):
        return {"class_path": strategy["class_path"], **(strategy.get("init_args") or {})}
    # Earlier runs have it among the callbacks.
    for callback in config["trainer"]["callbacks"] or []:
        arguments = callback.get("init_args") or {}
        if "max_time" in arguments:
            return {"class_path": callback["class_path"], **arguments}
    return {}


def require_pairs(conditions: Sequence[Condition], may_differ: Sequence[str] = ()) -> None:
    """Whether conditions differ in the masking strategy alone.

    Args:
        conditions: The conditions, the baseline first.
        may_differ: Settings that may differ all the same, by the beginnings of their keys.

    Raises:
        DataError: Seeds, clips, folds, classes or settings differ; the message names which.
    """
    base = conditions[0]
    for condition in conditions[1:]:
        if condition.seeds != base.seeds:
            raise DataError(
                f"{condition.name} has the seeds {condition.seeds}, {base.name} has {base.seeds}: "
                "pairs need the same seeds"
            )
        _same_clips(condition.name, condition.ids, base.name, base.ids)
        for what, values, base_values in (
            ("class", condition.target, base.target),
            ("fold", condition.fold, base.fold),
        ):
            different = np.flatnonzero(values != base_values)
            if len(different):
                clips = some([condition.ids[row] for row in different])
                raise DataError(
                    f"{condition.name} and {base.name} have clips of another {what}: {clips}"
                )
        settings, base_settings = flat(condition.config), flat(base.config)
        both = {**base_settings, **settings}
        keys = [key for key in both if settings.get(key) != base_settings.get(key)]
        keys = [key for key in keys if not any(map(key.startswith, may_differ))]
        masks = masking(condition.config), masking(base.config)
        keys += [f"{key} of the masks" for key in SHARED if masks[0].get(key) != masks[1].get(key)]
        if keys:
            raise DataError(
                f"{condition.name} and {base.name} differ in {some(keys, 8)}: conditions may "
                "differ in the masking strategy alone (--may-differ KEY allows another key)"
            )
