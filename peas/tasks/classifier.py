"""The model of a classification task, and which of its settings go together."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from peas.errors import ConfigError
from peas.models.checkpoints import load_pretrained
from peas.models.checkpoints.imagenet import PREFIX, load_imagenet
from peas.models.encoder import size_of
from peas.models.mae import MaskedAutoencoder
from peas.models.masked import MaskedModel
from peas.models.ssast import SSAST
from peas.optim import head_groups, layer_groups

STRIDES = {"ssast": (10, 10)}
"""Stride in fine-tuning of the families that overlap their patches there."""
CLASSIFIER = ("fc_norm", "head")


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
    if h["lr"] <= 0:
        raise ConfigError(f"{key('lr')} is {h['lr']}: it must be positive")
    if not 0 <= h["label_smoothing"] < 1:
        raise ConfigError(
            f"{key('label_smoothing')} is {h['label_smoothing']}: give 0 or more, and less than 1"
        )
    if h["label_smoothing"] and h["loss"] == "bce":
        raise ConfigError(
            f"{key('label_smoothing')} is {h['label_smoothing']}, which belongs to `loss: ce`, and "
            "`loss` is bce: set it to 0"
        )
    if h["decay_every"] < 1:
        raise ConfigError(f"{key('decay_every')} is {h['decay_every']}: give 1 or more")
    for name in ("min_lr", "warmup_epochs"):
        if not 0 <= h[name] < math.inf:
            raise ConfigError(f"{key(name)} is {h[name]}: give 0 or more")
    if not 0 < h["layer_decay"] <= 1:
        raise ConfigError(
            f"{key('layer_decay')} is {h['layer_decay']}: give a number above 0 and up to 1 "
            "(1 trains every layer at the same rate)"
        )
    if h["optimizer"] == "adam" and h["layer_decay"] != 1:
        raise ConfigError(
            f"{key('layer_decay')} is {h['layer_decay']}, which belongs to `optimizer: adamw`, and "
            "`optimizer` is adam: set one of them"
        )
    if h["optimizer"] == "adamw" and h["head_lr_factor"] != 1:
        raise ConfigError(
            f"{key('head_lr_factor')} is {h['head_lr_factor']}, which belongs to `optimizer: "
            "adam`, and `optimizer` is adamw: set it to 1 (`layer_decay` makes the head faster)"
        )
    if h["schedule"] == "cosine" and h["warmup_steps"]:
        raise ConfigError(
            f"{key('warmup_steps')} is {h['warmup_steps']}, which belongs to `schedule: "
            "staircase`, and `schedule` is cosine: use `warmup_epochs`"
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


def build_model(h: Mapping[str, Any]) -> MaskedModel:
    """Make the model of complete hyperparameters, with fresh weights and without a decoder."""
    shared: dict[str, Any] = {
        "num_classes": len(h["labels"]),
        "frames": h["frames"],
        "patch": tuple(h["patch"]),
        "stride": tuple(h["stride"]),
        "pooling": h["pooling"],
        "drop_path": h["drop_path"],
    }
    if h["encoder"] == "ssast":
        return SSAST(h["size"], **shared)
    return MaskedAutoencoder(h["size"], positions=h["positions"], **shared)


def fill(model: MaskedModel, pretrained: str | None) -> None:
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


def train_drawing(model: MaskedModel) -> None:
    """Let an auxiliary loss train what draws spectrograms.

    Raises:
        NoReconstruction: The model cannot draw.
    """
    model.require_reconstruction()
    head = model.generative_head if isinstance(model, SSAST) else model.decoder
    assert isinstance(head, nn.Module)
    head.requires_grad_(True)


def freeze_encoder(model: MaskedModel) -> None:
    """Leave nothing to train but the classifier: `fc_norm` and `head`."""
    model.requires_grad_(False)
    for name in CLASSIFIER:
        model.get_submodule(name).requires_grad_(True)


def make_optimizer(model: MaskedModel, h: Mapping[str, Any], rate: float) -> Optimizer:
    """The recipe's optimiser over everything that is trained.

    Args:
        model: Its parameters without gradient are left out.
        h: Hyperparameters of `Classification`.
        rate: Learning rate of the run.
    """
    betas = tuple(h["betas"])
    if h["optimizer"] == "adam":
        groups = head_groups(model, CLASSIFIER, rate, h["head_lr_factor"])
        trained = [group for group in groups if group["params"]]
        return torch.optim.Adam(trained, betas=betas, weight_decay=h["weight_decay"], fused=True)
    depth = size_of(h["size"]).depth
    groups = layer_groups(model, depth, rate, h["weight_decay"], h["layer_decay"])
    return torch.optim.AdamW(groups, betas=betas, weight_decay=h["weight_decay"], fused=True)
