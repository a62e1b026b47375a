"""Keys of SSAST weights: the official layouts and ours, in both directions.

The official pretrained file holds 166 tensors (two of them sizes of the input, four of them
ImageNet heads that SSAST never uses), an official fine-tuned one 159; every key is prefixed
`module.`, because the official code saves a `DataParallel` wrapper.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from peas.errors import CheckpointError, NoReconstruction
from peas.models.patches import Pair, grid_shape
from peas.models.vit import SIZES
from peas.models.weights.checking import check_geometry

Layout = Literal["pretrained", "fine-tuned"]
State = dict[str, Tensor]

# Ours: official. The first prefix that fits decides.
PREFIXES = {
    "encoder.": "v.",
    "mask_embed": "mask_embed",
    "contrastive_head.": "cpredlayer.",
    "generative_head.": "gpredlayer.",
    "fc_norm.": "mlp_head.0.",
    "head.": "mlp_head.1.",
}
HEADS = ("mask_embed", "contrastive_head.", "generative_head.")
CLASSIFIER = ("fc_norm.", "head.")
PROBE = ("pixel_probe.",)
BOOKKEEPING = ("pretrain_pos_embed", "reconstructs", "geometry")
UNUSED = ("v.head.", "v.head_dist.")
_IMAGENET_CLASSES = 1000
SPECIAL = 2


@dataclass(frozen=True)
class Description:
    """What a file of SSAST weights is.

    Attributes:
        layout: Whose key names the file uses.
        kind: `fine-tuned` when it holds a classifier, else `pretrained`.
        size: `tiny`, `small` or `base`, told by the width.
        patch: Height and width of a patch, (mel bins, frames).
        frames: Frames of the pretraining input; 1024 where the file does not say.
        mels: Mel bins of the pretraining input; 128 where the file does not say.
        num_classes: Number of classes C, 0 without a classifier.
    """

    layout: Literal["official", "peas"]
    kind: Layout
    size: str
    patch: Pair
    frames: int
    mels: int
    num_classes: int


def describe(state: Mapping[str, Any], where: str = "the checkpoint") -> Description:
    """Tell what a checkpoint's dictionary holds.

    Args:
        state: From `read_state`: an official file's, a Lightning checkpoint's or a bare
            `SSAST.state_dict()`.
        where: The file, for errors.

    Raises:
        CheckpointError: If it is no SSAST checkpoint.
    """
    return describe_plain(unwrap(state, where)[0], where)


def to_ours(state: Mapping[str, Any]) -> State:
    """Rename an official state to the keys of `SSAST.state_dict()`.

    Args:
        state: Official tensors, with or without `module.`. The unused ImageNet heads are left
            out and the sizes of the input move to `geometry`.

    Returns:
        For a pretrained file, the whole state of a pretraining `SSAST`; for a fine-tuned one,
        encoder and classifier (its stride is not in the file).

    Raises:
        CheckpointError: If a key is not one of the official layout's.
    """
    return rename(unwrap(state, "the checkpoint")[0], "the checkpoint")


def to_official(state: Mapping[str, Tensor], layout: Layout = "pretrained") -> State:
    """Write weights as the official code would save them.

    Args:
        state: `SSAST.state_dict()`, or what `to_ours` returned.
        layout: `pretrained`, which the official fine-tuning code reads: its positions are the
            pretraining table. `fine-tuned` (encoder and classifier): its positions are those of
            the model's own grid.

    Returns:
        Tensors under the official keys. The ImageNet heads, which the official code
        wants but never uses, are zeros.

    Raises:
        NoReconstruction: If a pretrained layout is asked of weights without trained heads.
        CheckpointError: If a fine-tuned layout is asked of weights without a classifier.
    """
    classifier = "head.weight" in state
    if layout == "pretrained" and not bool(state.get("reconstructs", torch.tensor(False))):
        raise NoReconstruction(
            "these weights have no trained generative head, which the pretrained layout must "
            "hold; export the fine-tuned layout, or start from a pretrained checkpoint"
        )
    if layout == "fine-tuned" and not classifier:
        raise CheckpointError(
            "these weights have no classifier, which the fine-tuned layout must hold; "
            "export the pretrained layout"
        )
    left = CLASSIFIER if layout == "pretrained" else HEADS
    official: State = {}
    if layout == "pretrained":
        frames, mels = (int(side) for side in state["geometry"][4:])
        official["p_input_fdim"], official["p_input_tdim"] = (
            torch.tensor(mels),
            torch.tensor(frames),
        )
    for key, value in state.items():
        if key in BOOKKEEPING or key.startswith(left):
            continue
        for ours, theirs in PREFIXES.items():
            if key.startswith(ours):
                official[theirs + key.removeprefix(ours)] = value
                break
    if layout == "pretrained":
        official["v.pos_embed"] = pretraining_table(state)
    width = state["encoder.pos_embed"].shape[2]
    for prefix in UNUSED:
        official[prefix + "weight"] = torch.zeros(_IMAGENET_CLASSES, width)
        official[prefix + "bias"] = torch.zeros(_IMAGENET_CLASSES)
    return {"module." + key: value.detach().cpu().clone() for key, value in official.items()}


def unwrap(state: Mapping[str, Any], where: str) -> tuple[State, list[str]]:
    """Take the model's tensors out of their wrappers.

    Args:
        state: A file's dictionary: bare, under `state_dict`, with `module.` or with `model.`.
        where: The file, for errors.

    Returns:
        The model's tensors, and the names of tensors that lay beside the model.

    Raises:
        CheckpointError: If no SSAST model is inside.
    """
    inner = state.get("state_dict", state)
    if isinstance(inner, Mapping):
        inner = {key.removeprefix("module."): value for key, value in inner.items()}
        prefix = "model." if any(key.startswith("model.") for key in inner) else ""
        own = {key.removeprefix(prefix): v for key, v in inner.items() if key.startswith(prefix)}
        tensors = all(isinstance(value, Tensor) for value in own.values())
        needed = ("pos_embed", "dist_token", "patch_embed.proj.weight")
        for root in ("v.", "encoder."):
            if tensors and all(root + key in own for key in needed):
                check_geometry(own, where)
                return own, [key for key in inner if not key.startswith(prefix)]
    names = [str(key) for key in (inner if isinstance(inner, Mapping) else state)][:4]
    raise CheckpointError(
        f"{where}: is no SSAST checkpoint. It holds {', '.join(names) or 'nothing'}, … where "
        "v.pos_embed and v.dist_token (official) or encoder.pos_embed and encoder.dist_token "
        "(peas) are expected; give an SSAST file"
    )


def describe_plain(state: Mapping[str, Tensor], where: str) -> Description:
    """`describe` for tensors that `unwrap` returned; `where` names the file in errors."""
    official = "v.pos_embed" in state
    root, head = ("v.", "mlp_head.1.weight") if official else ("encoder.", "head.weight")
    table, kernel = state[root + "pos_embed"], state[root + "patch_embed.proj.weight"]
    width = table.shape[-1]
    size = next((name for name, size in SIZES.items() if size.width == width), None)
    if size is None or kernel.ndim != 4:
        known = ", ".join(f"{name} {size.width}" for name, size in SIZES.items())
        raise CheckpointError(
            f"{where}: {root}pos_embed has shape {list(table.shape)} and {root}patch_embed.proj."
            f"weight {list(kernel.shape)}, but the known SSAST widths are {known}; "
            "give a checkpoint of one of these sizes"
        )
    frames, mels = 1024, 128
    if official and "p_input_tdim" in state:
        frames, mels = int(state["p_input_tdim"]), int(state.get("p_input_fdim", mels))
    elif not official and "geometry" in state:
        frames, mels = (int(side) for side in state["geometry"][4:])
    return Description(
        layout="official" if official else "peas",
        kind="fine-tuned" if head in state else "pretrained",
        size=size,
        patch=(kernel.shape[2], kernel.shape[3]),
        frames=frames,
        mels=mels,
        num_classes=state[head].shape[0] if head in state else 0,
    )


def rename(state: Mapping[str, Tensor], where: str) -> State:
    """`to_ours` for tensors that `unwrap` returned; `where` names the file in errors."""
    ours: State = {}
    for key, value in state.items():
        if key.startswith((*UNUSED, "p_input_")):
            continue
        for mine, theirs in PREFIXES.items():
            if key.startswith(theirs):
                ours[mine + key.removeprefix(theirs)] = value
                break
        else:
            raise CheckpointError(
                f"{where}: unexpected key {key} (shape {list(value.shape)}) in an official SSAST "
                "file; remove it, or give the file as the official code saved it"
            )
    facts = describe_plain(state, where)
    if facts.kind == "fine-tuned":
        return ours
    table = ours["encoder.pos_embed"]
    grid = grid_shape(facts.frames, facts.mels, facts.patch, facts.patch)
    if table.shape[1] != SPECIAL + math.prod(grid):
        raise CheckpointError(
            f"{where}: v.pos_embed has shape {list(table.shape)}, but {facts.frames} frames and "
            f"{facts.mels} mel bins in patches of {facts.patch} need "
            f"{[1, SPECIAL + math.prod(grid), table.shape[2]]}; the file contradicts itself"
        )
    sides = (facts.frames, facts.mels)
    ours["pretrain_pos_embed"] = table
    ours["reconstructs"] = torch.tensor(True)
    ours["geometry"] = torch.tensor((*sides, *facts.patch, *sides))
    return ours


def _is_pretraining(state: Mapping[str, Tensor]) -> bool:
    """Whether the state is of a pretraining model, whose live table is the pretraining table."""
    patch = tuple(state["encoder.patch_embed.proj.weight"].shape[2:])
    return "head.weight" not in state and tuple(state["geometry"][2:4].tolist()) == patch


def pretraining_table(state: Mapping[str, Tensor]) -> Tensor:
    """Positions `[1, 2 + N0, D]` that the generative head was trained with, of our state."""
    return state["encoder.pos_embed" if _is_pretraining(state) else "pretrain_pos_embed"]


def file_key(key: str, official: bool) -> str:
    """The file's own name of one of our keys, for messages and reports."""
    if official:
        for ours, theirs in PREFIXES.items():
            if key.startswith(ours):
                return theirs + key.removeprefix(ours)
    return key
