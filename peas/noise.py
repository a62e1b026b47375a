"""Messages of the libraries below that tell a user of `peas` nothing."""

import logging
import warnings

NOISE = (
    # Our own doing: the front end belongs to the task, so that its statistics travel with it.
    "You have overridden `on_after_batch_transfer`",
    # So do the targets, which belong to a teacher.
    "You have overridden `on_before_batch_transfer`",
    # Means and scores come from metrics, which are of all processes already.
    r"It is recommended to use `self.log\(.*sync_dist=True",
    # Lightning 2.6 on torch 2.14.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # Small sets have short epochs, and every epoch is logged anyway.
    "The number of training batches",
    "does not have many workers",
    # DDP, of two tokens of one width that lie side by side; it costs nothing.
    "Grad strides do not match bucket view strides",
    # Nothing is sharded.
    "You're using the WeightAveraging callback with a model that overrides",
    # A run goes on in its own folder.
    "Checkpoint directory .* exists and is not empty",
)
"""Warnings that tell a user of `peas` nothing."""

EVALUATION_NOISE = (
    # Strategies and checkpoints of the training are of no use in evaluation.
    "Be aware that when using `ckpt_path`, callbacks used",
)
"""The same, for every verb but `fit`."""


def be_quiet(verb: str) -> None:
    """Drop those messages for the rest of the process.

    Args:
        verb: Of Lightning.
    """
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advertising)
    for message in NOISE if verb == "fit" else NOISE + EVALUATION_NOISE:
        warnings.filterwarnings("ignore", message=f".*{message}")


def _no_advertising(record: logging.LogRecord) -> bool:
    """Drops Lightning's tips to install other products."""
    return "Tip:" not in record.getMessage()
