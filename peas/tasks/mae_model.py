"""The modules of masked audio modelling, and which of its settings are possible."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from peas.errors import ConfigError
from peas.models.grid import Pair
from peas.models.mae import MaskedAutoencoder
from peas.models.mae_decoder import DecoderShape
from peas.models.mam_heads import FeatureHead, LabelBranch
from peas.tasks.mae_objectives import Heads

OBJECTIVES = ("reconstruction", "distillation", "classification", "contrastive")
"""Keys of `MaskedAudioModeling` that are weights of objectives."""


def check_settings(h: Mapping[str, Any]) -> None:
    """Refuse settings that are impossible, or that contradict each other.

    Args:
        h: Hyperparameters of `MaskedAudioModeling`.

    Raises:
        ConfigError: The message names the key.
    """
    key = "`model.init_args.{}`".format
    for name in OBJECTIVES:
        if not 0 <= h[name] < math.inf:
            raise ConfigError(f"{key(name)} is {h[name]}: give 0 or more")
    if not any(h[name] > 0 for name in OBJECTIVES):
        raise ConfigError(
            f"{', '.join(key(name) for name in OBJECTIVES)} are all 0: give one of them a weight"
        )
    for name in ("mask_ratio", "time_ratio", "freq_ratio"):
        if not 0 < h[name] < 1:
            raise ConfigError(
                f"{key(name)} is {h[name]}: give a share between 0 and 1, both excluded; with "
                "nothing hidden or nothing seen there is nothing to learn"
            )
    if not 0 < h["visible_fraction"] <= 1:
        raise ConfigError(f"{key('visible_fraction')} is {h['visible_fraction']}: 0 < it <= 1")
    for name in ("lr", "temperature"):
        if not h[name] > 0:
            raise ConfigError(f"{key(name)} is {h[name]}: it must be positive")
    if h["distillation"] > 0 and h["roll_gain"] != "none":
        raise ConfigError(
            f"{key('roll_gain')} is {h['roll_gain']}, and {key('distillation')} is above 0: the "
            "teacher's targets belong to the clip as it is; set roll_gain to none"
        )


def build_model(h: Mapping[str, Any], mels: int) -> MaskedAutoencoder:
    """Make the autoencoder of complete hyperparameters, with fresh weights.

    Args:
        h: Hyperparameters of `MaskedAudioModeling`.
        mels: Mel bins F of the front end.

    Raises:
        ConfigError: The frames are no multiple of the patch, or a class is needed and none known.
    """
    patch = tuple(h["patch"])
    stride = patch if h["stride"] is None else tuple(h["stride"])
    if h["frames"] % patch[1] and stride == patch:
        raise ConfigError(
            f"`frames` is {h['frames']}, which is no multiple of the patch's {patch[1]} frames "
            "(`model.init_args.patch`): set `data.init_args.frames` to a multiple"
        )
    if h["classification"] > 0 and not h["labels"]:
        raise ConfigError(
            "`model.init_args.classification` is above 0, and the data has no classes: choose "
            "data with labels, or set it to 0"
        )
    shape = DecoderShape(
        h["decoder"],
        h["decoder_width"],
        h["decoder_depth"],
        h["decoder_heads"],
        h["decoder_window"],
        h["decoder_first_shift"],
    )
    needed = h["reconstruction"] > 0 or h["distillation"] > 0 or h["contrastive"] > 0
    return MaskedAutoencoder(
        h["size"],
        frames=h["frames"],
        mels=mels,
        patch=patch,
        stride=stride,
        positions=h["positions"],
        decoder=shape if needed else None,
        pixels=h["reconstruction"] > 0,
        norm_pix=h["norm_pix"],
        drop_path=h["drop_path"],
    )


def build_heads(h: Mapping[str, Any], width: int) -> Heads:
    """Make the heads that the objectives ask for.

    Args:
        h: Hyperparameters of `MaskedAudioModeling`.
        width: Width D of the encoder.
    """
    heads = Heads()
    if h["distillation"] > 0:
        unit = h["target_norm"] == "l2"
        heads.feature = FeatureHead(h["decoder_width"], h["feature_width"], unit=unit)
    if h["classification"] > 0:
        hidden = h["label_hidden"] or 4 * width
        heads.label = LabelBranch(width, hidden, len(h["labels"]), h["label_norm"])
    if h["contrastive"] > 0:
        heads.contrastive = nn.Linear(h["decoder_width"], h["patch"][0] * h["patch"][1])
    return heads


def kept_counts(h: Mapping[str, Any], grid: Pair) -> Pair:
    """Bands and columns that structured masking leaves, as the official code rounds them."""
    return int(grid[0] * (1 - h["freq_ratio"])), int(grid[1] * (1 - h["time_ratio"]))


def visible_count(h: Mapping[str, Any], grid: Pair) -> int:
    """Patches that stay visible, as the official code rounds them.

    Args:
        h: Hyperparameters of `MaskedAudioModeling`.
        grid: Patches along (frequency, time).

    Raises:
        ConfigError: None is hidden, or none is seen.
    """
    count = math.prod(grid)
    if h["masking"] == "structured":
        visible = math.prod(kept_counts(h, grid))
        keys = "time_ratio and model.init_args.freq_ratio"
    else:
        visible = int(count * (1 - h["mask_ratio"]))
        keys = "mask_ratio"
    if not 0 < visible < count:
        raise ConfigError(
            f"`model.init_args.{keys}` leave {visible} of {count} patches visible: some must "
            "be seen and some hidden"
        )
    return visible
