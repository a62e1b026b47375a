"""Where pictures of a run go: its folder, and Weights & Biases."""

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure


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
    # The whole id: in some data sets only the folder tells two clips apart.
    name = Path(clip).with_suffix("").as_posix().replace("/", "_")
    words = [f"epoch_{trainer.current_epoch:03d}", *([kind] if kind else []), name]
    stem = "_".join(words)
    figure.savefig(folder / f"{stem}.png", dpi=130)
    figure.savefig(folder / f"{stem}.pdf")
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            key = "/".join(["pictures", *words[1:]])
            logger.log_image(key, [str(folder / f"{stem}.png")], step=trainer.global_step)
