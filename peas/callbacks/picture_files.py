"""Where pictures of a run go: its folder, and Weights & Biases."""

import hashlib
import os
import re
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure

from peas.audio.decode import is_sound

_LONGEST = 120
"""Bytes of a clip's part of a file name: epoch, kind and ending stay below the usual 255."""
_UNFIT = re.compile(r"[/\x00-\x1f\x7f]")


def file_name(text: str) -> str:
    """A part of a file name that stands for a clip or a label, whatever that is called.

    The whole id counts: in some data sets only the folder tells two clips apart. One that is too
    long for a file system, or has signs that are of no use in names, ends in a hash of it.

    Args:
        text: Id of a clip, or name of a class.
    """
    plain = os.path.splitext(text)[0] if is_sound(text) else text
    name = plain.replace("/", "_")
    fit = _UNFIT.sub("_", name)
    if fit == name and len(os.fsencode(name)) <= _LONGEST:
        return name
    mark = hashlib.blake2b(os.fsencode(text), digest_size=4).hexdigest()
    return f"{os.fsencode(fit)[:_LONGEST].decode(errors='ignore')}_{mark}"


def save_picture(trainer: Trainer, figure: Figure, clip: str, kind: str = "") -> None:
    """Save a figure of a clip as PNG and PDF into `pictures/` of the run, and to W&B.

    Args:
        trainer: Knows the run's folder, epoch and loggers.
        figure: The figure.
        clip: Id of the clip.
        kind: Of the picture, for its name; empty for the run's main ones.
    """
    folder = Path(trainer.default_root_dir) / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    name = file_name(clip)
    words = [f"epoch_{trainer.current_epoch + 1:03d}", *([kind] if kind else []), name]
    stem = "_".join(words)
    figure.savefig(folder / f"{stem}.png", dpi=130)
    figure.savefig(folder / f"{stem}.pdf")
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            key = "/".join(["pictures", *words[1:]])
            logger.log_image(key, [str(folder / f"{stem}.png")], step=trainer.global_step)
