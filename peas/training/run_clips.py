"""What a checkpoint knows of the clips that its run trained on, and what follows from it."""

from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from peas.data.clips import ClipTable
from peas.data.fingerprint import Fingerprint, compare
from peas.data.module import ClipDataModule, Split
from peas.errors import CheckpointError, DataError, PeasError
from peas.training.distributed import gather, is_first
from peas.training.randomness import run_seed

KEY = "clips"
"""Part of a checkpoint: split to hashes of its clips."""
FIELDS = {"ids": torch.int64, "classes": torch.int32, "sounds": torch.int32}

NEW_RUN = "To start a new run from these weights use `--model.init_args.pretrained`."


def clips_of(trainer: L.Trainer) -> dict[str, Fingerprint] | None:
    """Fingerprints of the clips that train and validate; None without a data set of `peas`."""
    data = _data(trainer)
    if data is None:
        return None
    return {
        "train": Fingerprint.of(data.training_clips(run_seed())),
        "validation": Fingerprint.of(data.clips("validation")),
    }


def as_saved(clips: dict[str, Fingerprint]) -> dict[str, dict[str, torch.Tensor]]:
    """As a checkpoint holds them."""
    return {split: dict(vars(found)) for split, found in clips.items()}


def check(trainer: L.Trainer, checkpoint: dict[str, Any], where: str) -> None:
    """Say what changed in the data since a checkpoint, or refuse what would deceive.

    The first process looks, and all do what it has found. Data that are predicted learn which
    clips the checkpoint was trained on.

    Args:
        trainer: Of any verb.
        checkpoint: Of a run.
        where: What messages call it.

    Raises:
        CheckpointError: Clips would be scored that the run has trained on.
    """
    data = _data(trainer)
    if data is None:
        return
    if not (trainer.validating or trainer.testing or trainer.training):
        data.trained_on = _read(checkpoint[KEY], where)["train"] if KEY in checkpoint else None
        return
    refused: str | None = None
    if is_first():
        try:
            refused = _compare(trainer, checkpoint, where)
        except PeasError as error:
            # The others wait for what this one has found.
            refused = str(error)
    if told := next((text for text in gather(refused) if text), None):
        raise CheckpointError(told)


def _compare(trainer: L.Trainer, checkpoint: dict[str, Any], where: str) -> str | None:
    if KEY not in checkpoint:
        if trainer.training:
            rank_zero_info(
                f"{where} was written by an older version, which remembered no clips: whether the "
                "data changed since then is not known"
            )
        return None
    saved = _read(checkpoint[KEY], where)
    if not trainer.training:
        return _trained_on(trainer, saved["train"], where)
    now = clips_of(trainer)
    assert now is not None
    for split in ("train", "validation"):
        if changes := compare(saved[split], now[split]):
            name = "training" if split == "train" else split
            rank_zero_warn(
                f"the {name} clips are not those of {where}: {changes} "
                f"({len(saved[split].ids)} before, {len(now[split].ids)} now)"
            )
    ours = now["validation"].ids.numpy()
    leaked = np.isin(ours, saved["train"].ids.numpy())
    leaked &= ~np.isin(ours, saved["validation"].ids.numpy())
    if not leaked.any():
        return None
    data = cast(ClipDataModule, _data(trainer))
    return _told(int(leaked.sum()), "validation", data.clips("validation"), leaked, where) + (
        f" {NEW_RUN}"
    )


def _trained_on(trainer: L.Trainer, trained: Fingerprint, where: str) -> str | None:
    """What is wrong with scoring the clips of the present split."""
    data = cast(ClipDataModule, _data(trainer))
    split: Split = "test" if trainer.testing else "validation"
    table = data.clips(split)
    now = Fingerprint.of(table)
    # Of another set, which may use the same names, one thing or another differs.
    order = np.argsort(trained.ids.numpy(), kind="stable")
    known = trained.ids.numpy()[order]
    if not len(known):
        return None
    place = order[np.minimum(np.searchsorted(known, now.ids.numpy()), len(known) - 1)]
    sounds = trained.sounds.numpy()[place], now.sounds.numpy()
    leaked = (
        (trained.ids.numpy()[place] == now.ids.numpy())
        & (trained.classes.numpy()[place] == now.classes.numpy())
        & ((sounds[0] == sounds[1]) | (sounds[0] == 0) | (sounds[1] == 0))
    )
    if leaked.any():
        # A set whose splits share clips does so by its own tables, whatever the settings.
        try:
            shared = Fingerprint.of(data.clips("train")).ids.numpy()
        except DataError:
            shared = np.empty(0, dtype=np.int64)
        leaked &= ~np.isin(now.ids.numpy(), shared)
    if not leaked.any():
        return None
    told = _told(int(leaked.sum()), split, table, leaked, where)
    if split == "test" and data.names_test_clips:
        # No setting of the run can tell whose fault that is, and no split of the run was meant.
        rank_zero_warn(told)
        return None
    return f"{told} `peas predict` gives scores without figures."


def _told(count: int, split: str, table: ClipTable, rows: Any, where: str) -> str:
    first = table.ids[int(np.flatnonzero(rows)[0])]
    return (
        f"{count} of the {len(table)} {split} clips (the first: {first!r}) are clips that {where} "
        "was trained on: the figures would be no test. Give the fold, split and seed of the run "
        "(its config.yaml)."
    )


def _read(saved: Any, where: str) -> dict[str, Fingerprint]:
    """Hashes from a file, every one of its type and length."""
    found: dict[str, Fingerprint] = {}
    for split in ("train", "validation"):
        parts = saved.get(split) if isinstance(saved, dict) else None
        if not isinstance(parts, dict) or not all(
            isinstance(parts.get(name), torch.Tensor)
            and parts[name].dtype == kind
            and parts[name].shape == parts["ids"].shape
            and parts[name].ndim == 1
            for name, kind in FIELDS.items()
        ):
            raise CheckpointError(
                f"{where}: `{KEY}.{split}` does not hold the clips of a run: the file is damaged, "
                "or was written by something else"
            )
        found[split] = Fingerprint(**{name: parts[name] for name in FIELDS})
    return found


def _data(trainer: L.Trainer) -> ClipDataModule | None:
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, ClipDataModule) else None
