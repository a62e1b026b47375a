"""Filters for messages of other libraries that do not help a user of `peas`."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

from peas.errors import printable

OURS = Path(__file__).parents[1]
"""Package whose warnings are for users."""

NOISE = (
    # On purpose: the front end belongs to the task, so that checkpoints have its statistics.
    "You have overridden `on_after_batch_transfer`",
    # On purpose too: a teacher's targets.
    "You have overridden `on_before_batch_transfer`",
    # Means and scores come from metrics, which are synchronised already.
    r"It is recommended to use `self.log\(.*sync_dist=True",
    # Lightning 2.6 on torch 2.14.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # Small sets have short epochs, and every epoch is logged anyway.
    "The number of training batches",
    "does not have many workers",
    # DDP, of two adjacent tokens of one width; it costs nothing.
    "Grad strides do not match bucket view strides",
    # Nothing is sharded.
    "You're using the WeightAveraging callback with a model that overrides",
    # A run resumes in its own folder.
    "Checkpoint directory .* exists and is not empty",
)
"""Warnings that do not help a user of `peas`."""

EVALUATION_NOISE = (
    # Strategies and checkpoints of training are not used in evaluation.
    "Be aware that when using `ckpt_path`, callbacks used",
)
"""The same, for every verb but `fit`."""


def be_quiet(verb: str) -> None:
    """Filter those messages for the rest of the process.

    Args:
        verb: Of Lightning.
    """
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(_no_advertising)
    logger.addFilter(_harmless)
    be_harmless()
    for message in NOISE if verb == "fit" else NOISE + EVALUATION_NOISE:
        warnings.filterwarnings("ignore", message=f".*{message}")


def be_harmless() -> None:
    """Escape control characters in log lines and warnings, which may quote file names."""
    if logging.lastResort is not None:
        logging.lastResort.addFilter(_harmless)
    # Lightning sets its own format when it is imported, so this is called again after that.
    if not isinstance(warnings.formatwarning, _Form):
        warnings.formatwarning = _Form(warnings.formatwarning)


class _Form:
    """Formats a warning with escaped control characters; ours without the line of code."""

    def __init__(self, form: Callable[..., str]) -> None:
        self.form = form

    def __call__(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if Path(filename).is_relative_to(OURS):
            text = f"warning: {message}\n"
        else:
            text = self.form(message, category, filename, lineno, line)
        return printable(text, keep="\n\t")


def _no_advertising(record: logging.LogRecord) -> bool:
    """Drops Lightning's tips to install other products."""
    return "Tip:" not in record.getMessage()


def _harmless(record: logging.LogRecord) -> bool:
    """Escapes control characters in a message."""
    record.msg, record.args = printable(record.getMessage(), keep="\n\t"), ()
    return True
