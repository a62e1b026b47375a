"""The clips that a run was trained on: saved in checkpoints, compared before they are used."""

from typing import Any

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
    """Fingerprints of training and validation clips; None without a data module of `peas`."""
    data = _data(trainer)
    if data is None:
        return None
    return {
        "train": Fingerprint.of(data.training_clips(run_seed())),
        "validation": Fingerprint.of(data.clips("validation")),
    }


def as_saved(clips: dict[str, Fingerprint]) -> dict[str, dict[str, torch.Tensor]]:
    """As a checkpoint holds them."""
    return {split: dict(vars(fingerprint)) for split, fingerprint in clips.items()}


def check(trainer: L.Trainer, checkpoint: dict[str, Any], where: str) -> None:
    """Report what changed in the data since a checkpoint, and refuse to score training clips.

    The first process compares, and all act on its result. Data that are predicted get the clips
    that the checkpoint was trained on.

    Args:
        trainer: Of any verb.
        checkpoint: Of a run.
        where: Its name in messages.

    Raises:
        CheckpointError: Clips would be scored that the run has trained on.
    """
    data = _data(trainer)
    if data is None:
        return
    if not (trainer.validating or trainer.testing or trainer.training):
        data.trained_on = _read(checkpoint[KEY], where)["train"] if KEY in checkpoint else None
        return
    refusal: str | None = None
    if is_first():
        try:
            refusal = _compare(trainer, data, checkpoint, where)
        except PeasError as error:
            # The others wait for the result.
            refusal = str(error)
    if message := next((text for text in gather(refusal) if text), None):
        raise CheckpointError(message)


def _compare(
    trainer: L.Trainer, data: ClipDataModule, checkpoint: dict[str, Any], where: str
) -> str | None:
    if KEY not in checkpoint:
        if trainer.training:
            rank_zero_info(
                f"{where} was written by an older version, which did not save its clips: changes "
                "of the data are not reported"
            )
        return None
    saved = _read(checkpoint[KEY], where)
    if not trainer.training:
        return _trained_on(trainer, data, saved["train"], where)
    now = clips_of(trainer)
    assert now is not None
    for split in ("train", "validation"):
        if changes := compare(saved[split], now[split]):
            name = "training" if split == "train" else split
            rank_zero_warn(
                f"the {name} clips differ from those of {where}: {changes} "
                f"({len(saved[split].ids)} before, {len(now[split].ids)} now)"
            )
    ours = now["validation"].ids.numpy()
    leaked = np.isin(ours, saved["train"].ids.numpy())
    leaked &= ~np.isin(ours, saved["validation"].ids.numpy())
    if not leaked.any():
        return None
    return f"{_leak('validation', data.clips('validation'), leaked, where)} {NEW_RUN}"


def _trained_on(
    trainer: L.Trainer, data: ClipDataModule, trained: Fingerprint, where: str
) -> str | None:
    """Why the clips of the current split must not be scored."""
    split: Split = "test" if trainer.testing else "validation"
    table = data.clips(split)
    now = Fingerprint.of(table)
    # Another set may use the same names, but then classes or sounds differ.
    order = np.argsort(trained.ids.numpy(), kind="stable")
    ids = trained.ids.numpy()[order]
    if not len(ids):
        return None
    index = order[np.minimum(np.searchsorted(ids, now.ids.numpy()), len(ids) - 1)]
    sounds = trained.sounds.numpy()[index], now.sounds.numpy()
    leaked = (
        (trained.ids.numpy()[index] == now.ids.numpy())
        & (trained.classes.numpy()[index] == now.classes.numpy())
        & ((sounds[0] == sounds[1]) | (sounds[0] == 0) | (sounds[1] == 0))
    )
    if leaked.any():
        # In some sets splits share clips by their own tables, whatever the settings.
        try:
            shared = Fingerprint.of(data.clips("train")).ids.numpy()
        except DataError:
            shared = np.empty(0, dtype=np.int64)
        leaked &= ~np.isin(now.ids.numpy(), shared)
    if not leaked.any():
        return None
    message = _leak(split, table, leaked, where)
    if split == "test" and data.names_test_clips:
        # The set itself names its test clips, so no setting of the run is wrong.
        rank_zero_warn(message)
        return None
    return f"{message} `peas predict` gives scores without metrics."


def _leak(split: str, table: ClipTable, leaked: Any, where: str) -> str:
    first = table.ids[int(np.flatnonzero(leaked)[0])]
    return (
        f"{int(leaked.sum())} of the {len(table)} {split} clips (the first: {first!r}) are clips "
        f"that {where} was trained on: the metrics would be no test. Give the fold, split and seed "
        "of the run (its config.yaml)."
    )


def _read(saved: Any, where: str) -> dict[str, Fingerprint]:
    """Hashes from a file, of valid type and shape."""
    clips: dict[str, Fingerprint] = {}
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
        clips[split] = Fingerprint(**{name: parts[name] for name in FIELDS})
    return clips


def _data(trainer: L.Trainer) -> ClipDataModule | None:
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, ClipDataModule) else None
