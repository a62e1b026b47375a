"""Arms of an experiment from the folders of their `peas kfold` runs, paired by seed and clip."""

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

from peas.cli.kfold import DONE
from peas.errors import DataError
from peas.utils.text import some

JOB = re.compile(r"fold(\d+)_seed(\d+)")
PLACE = ("seed_everything", "ckpt_path", "config", "paper", "data.init_args.fold", "masking")
"""Settings that differ between runs of one comparison: they change no result or all arms alike, or
are what is compared."""
SHARED = ("n_time", "n_freq", "max_time", "max_freq", "final_phase", "overlap", "stage")
"""Settings of masking strategies in which arms must agree: one that masks more is another one."""


@dataclass(frozen=True)
class Arm:
    """What the runs of an arm left. S seeds, N clips.

    Attributes:
        name: Of the arm.
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


def read_arm(name: str, folder: Path) -> Arm:
    """Joins the last epochs of an arm's runs by seed and clip.

    Args:
        name: What to call the arm.
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
        for clip, target, right in _last_epoch(path, settings["trainer"]["max_epochs"]):
            if clip in by_seed.setdefault(seed, {}):
                raise DataError(f"{path}: {clip} was scored in another fold of seed {seed} too")
            by_seed[seed][clip] = target, fold, right
    first = by_seed[jobs[0][0]]
    for seed, clips in by_seed.items():
        _same_clips(f"{name}, seed {seed}", clips, f"{name}, seed {jobs[0][0]}", first)
    ids = sorted(first)
    table = np.array([[clips[clip] for clip in ids] for clips in by_seed.values()])
    return Arm(
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
    """Settings of a finished run, and what it was made with."""
    if not (run / DONE).is_file():
        raise DataError(f"{run} is not finished: call its `peas kfold` again, which goes on")
    environment = json.loads((run / "environment.json").read_text())
    full = environment["commit"] or "unknown"
    # A plus at its end tells of local changes.
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
    with np.load(file) as found:
        ids, logits, targets, epoch = (found[k] for k in ("ids", "logits", "targets", "epoch"))
    if epoch != epochs - 1:
        raise DataError(f"{file} is of epoch {epoch + 1} of {epochs}: it is not the last one")
    if not np.isfinite(logits).all():
        raise DataError(f"{file} holds scores that are no numbers: this run has diverged")
    if not ((targets == targets.max(axis=1, keepdims=True)).sum(axis=1) == 1).all():
        raise DataError(f"{file}: clips with several classes have no right or wrong to compare")
    target = targets.argmax(axis=1)
    for clip, number, right in zip(ids, target, logits.argmax(axis=1) == target, strict=True):
        yield str(clip), int(number), bool(right)


def _same_clips(one: str, mine: Any, other: str, theirs: Any) -> None:
    for first, second, lacking in (
        (one, other, sorted(set(theirs) - set(mine))),
        (other, one, sorted(set(mine) - set(theirs))),
    ):
        if lacking:
            raise DataError(
                f"{first} lacks {len(lacking)} clips that {second} has: {some(lacking)}; run "
                "all folds of each arm and seed"
            )


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their whole keys, without those of `PLACE` and of callbacks."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if key in PLACE or key in ("trainer.callbacks", "trainer.default_root_dir"):
            continue
        found |= flat(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return found


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


def require_pairs(arms: Sequence[Arm], may_differ: Sequence[str] = ()) -> None:
    """Whether arms differ in the masking strategy alone.

    Args:
        arms: The arms, the baseline first.
        may_differ: Settings that may differ all the same, by the beginnings of their keys.

    Raises:
        DataError: Seeds, clips, folds, classes or settings differ; the message names which.
    """
    base = arms[0]
    for arm in arms[1:]:
        if arm.seeds != base.seeds:
            raise DataError(
                f"{arm.name} has the seeds {arm.seeds}, {base.name} has {base.seeds}: pairs need "
                "the same seeds"
            )
        _same_clips(arm.name, arm.ids, base.name, base.ids)
        for what, mine, theirs in (
            ("class", arm.target, base.target),
            ("fold", arm.fold, base.fold),
        ):
            odd = np.flatnonzero(mine != theirs)
            if len(odd):
                clips = some([arm.ids[row] for row in odd])
                raise DataError(f"{arm.name} and {base.name} have clips of another {what}: {clips}")
        ours, others = flat(arm.config), flat(base.config)
        keys = [key for key in {**others, **ours} if ours.get(key) != others.get(key)]
        keys = [key for key in keys if not any(map(key.startswith, may_differ))]
        masks = masking(arm.config), masking(base.config)
        keys += [f"{key} of the masks" for key in SHARED if masks[0].get(key) != masks[1].get(key)]
        if keys:
            raise DataError(
                f"{arm.name} and {base.name} differ in {some(keys, 8)}: arms may differ in the "
                "masking strategy alone (--may-differ KEY allows another key)"
            )
