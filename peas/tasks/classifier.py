"""The model of a classification task, and which of its settings go together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from peas.errors import ConfigError
from peas.models.checkpoints import load_pretrained
from peas.models.checkpoints.imagenet import PREFIX, load_imagenet
from peas.models.encoder import Encoder
from peas.recipes.ssast import CLASSIFIER


def check_settings(h: Mapping[str, Any]) -> None:
    """Refuse settings that are impossible, or that contradict each other.

    Args:
        h: Hyperparameters of `Classification`.

    Raises:
        ConfigError: The message names the key.
    """
    key = "`model.init_args.{}`".format
    if h["labels"] is not None and not h["labels"]:
        raise ConfigError(f"{key('labels')} is empty: 0 classes cannot be told apart")
    if not 0 <= h["label_smoothing"] < 1:
        raise ConfigError(
            f"{key('label_smoothing')} is {h['label_smoothing']}: give 0 or more, and less than 1"
        )
    if h["label_smoothing"] and h["loss"] == "bce":
        raise ConfigError(
            f"{key('label_smoothing')} is {h['label_smoothing']}, which belongs to `loss: ce`, and "
            "`loss` is bce: set it to 0"
        )
    if h["reconstruction"] not in ("head", "probe"):
        raise ConfigError(
            f"{key('reconstruction')} is {h['reconstruction']!r}: choose head or probe"
        )
    if h["reconstruction"] == "probe" and h["aux_loss_weight"]:
        raise ConfigError(
            f"{key('reconstruction')} is probe, which is fitted once and never trained, and "
            f"{key('aux_loss_weight')} is {h['aux_loss_weight']}: set that to 0"
        )
    if h["freeze"] and h["aux_loss_weight"]:
        raise ConfigError(
            f"{key('freeze')}: {h['freeze']} trains the classifier alone, so an auxiliary loss has "
            f"nothing to do: set {key('aux_loss_weight')} to 0"
        )


def fill(model: Encoder, pretrained: str | None) -> None:
    """Load the weights that a run starts from, and print what became of them.

    Args:
        model: Filled in place.
        pretrained: As in `Classification`.

    Raises:
        ConfigError: It is not given.
        CheckpointError: The weights cannot be used.
    """
    if pretrained == "":
        raise ConfigError(
            "`model.init_args.pretrained` is not given: name a file of weights, such as "
            "SSAST-Base-Patch-400.pth (linked from github.com/YuanGongND/ssast), or type "
            "`null` for random weights"
        )
    if pretrained is None:
        rank_zero_warn(
            "`pretrained: null`: the encoder starts from random weights. Its error maps, and "
            "so PEAS's choice of blocks, mean little until it has been pretrained."
        )
    elif pretrained.startswith(PREFIX):
        rank_zero_info(str(load_imagenet(model, pretrained.removeprefix(PREFIX))))
    else:
        rank_zero_info(str(load_pretrained(model, Path(pretrained))))


def freeze_encoder(model: Encoder) -> None:
    """Leave nothing to train but the classifier: `fc_norm` and `head`."""
    model.requires_grad_(False)
    for name in CLASSIFIER:
        model.get_submodule(name).requires_grad_(True)
