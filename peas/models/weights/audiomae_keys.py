"""Keys of AudioMAE weights: the official layouts and ours, in both directions.

The official pretrained file holds 430 tensors beside the optimiser's and an `argparse.Namespace`,
an official fine-tuned one 152.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from peas.errors import CheckpointError, NoReconstruction
from peas.models.audiomae import decoder_of
from peas.models.audiomae_decoder import DecoderShape
from peas.models.patches import Pair
from peas.models.vit import SIZES
from peas.models.weights.checking import check_geometry

Layout = Literal["pretrained", "fine-tuned"]
State = dict[str, Tensor]

# Ours: official. The first prefix that fits decides.
PREFIXES = {
    "decoder.embed.": "decoder_embed.",
    "decoder.mask_token": "mask_token",
    "decoder.pos_embed": "decoder_pos_embed",
    "decoder.blocks.": "decoder_blocks.",
    "decoder.norm.": "decoder_norm.",
    "decoder.pred.": "decoder_pred.",
    "fc_norm.": "fc_norm.",
    "head.": "head.",
    "encoder.": "",
}
CLASSIFIER = ("fc_norm.", "head.")
PROBE = ("pixel_probe.",)
BOOKKEEPING = ("geometry", "reconstructs")
_OFFICIAL = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
_MELS = 128
_OVERLAP = (1212, 10)
"""Patches of ten seconds in the official overlapping variant, and its stride."""


@dataclass(frozen=True)
class Description:
    """What a file of AudioMAE weights is.

    Attributes:
        layout: Whose key names the file uses.
        kind: `fine-tuned` when it holds a classifier, else `pretrained`.
        size: Key of `SIZES`, told by the width.
        patch: Height and width of a patch, (mel bins, frames).
        stride: Step between patches, (mel bins, frames).
        grid: Patches along (frequency, time) of its table of positions.
        num_classes: Number of classes C, 0 without a classifier.
        decoder: Shape of its decoder, None without.
        pixels: Whether the decoder predicts patches.
        norm_pix: Whether those are normalised; official files do not say, and were.
    """

    layout: Literal["official", "peas"]
    kind: Layout
    size: str
    patch: Pair
    stride: Pair
    grid: Pair
    num_classes: int
    decoder: DecoderShape | None
    pixels: bool
    norm_pix: bool = True


def is_audiomae(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's dictionary holds AudioMAE weights, official or ours."""
    keys = _inner(state)
    return any(
        key.endswith("cls_token") and key[: -len("cls_token")] + "dist_token" not in keys
        for key in keys
    )


def unwrap(state: Mapping[str, Any], where: str) -> tuple[State, list[str]]:
    """Take the model's tensors out of their wrappers.

    Args:
        state: A file's dictionary: bare, under `model` (official) or `state_dict` (ours).
        where: The file, for errors.

    Returns:
        The model's tensors, and the names of what lay beside the model.

    Raises:
        CheckpointError: No AudioMAE model is inside.
    """
    inner = _inner(state)
    prefix = "model." if any(key.startswith("model.") for key in inner) else ""
    own = {key.removeprefix(prefix): v for key, v in inner.items() if key.startswith(prefix)}
    for root in ("", "encoder."):
        needed = ("cls_token", "pos_embed", "patch_embed.proj.weight")
        if all(isinstance(own.get(root + key), Tensor) for key in needed):
            outside = [key for key in inner if not key.startswith(prefix)]
            check_geometry(own, where)
            return own, outside
    names = [str(key) for key in inner][:4]
    raise CheckpointError(
        f"{where}: is no AudioMAE checkpoint. It holds {', '.join(names) or 'nothing'}, … where "
        "cls_token, pos_embed and patch_embed.proj.weight (official) or the same under encoder. "
        "(peas) are expected; give an AudioMAE file"
    )


def _inner(state: Mapping[str, Any]) -> dict[str, Any]:
    inner = state.get("state_dict", state.get("model", state))
    if not isinstance(inner, Mapping):
        inner = state
    return {str(key).removeprefix("module."): value for key, value in inner.items()}


def describe(state: Mapping[str, Tensor], where: str) -> Description:
    """Tell what tensors that `unwrap` returned are.

    Raises:
        CheckpointError: The shapes are of no known AudioMAE model.
    """
    official = "pos_embed" in state
    root = "" if official else "encoder."
    table, kernel = state[root + "pos_embed"], state[root + "patch_embed.proj.weight"]
    size = next((name for name, size in SIZES.items() if size.width == table.shape[-1]), None)
    if size is None or kernel.ndim != 4 or kernel.shape[1] != 1:
        known = ", ".join(f"{name} {size.width}" for name, size in SIZES.items())
        raise CheckpointError(
            f"{where}: {root}pos_embed has shape {list(table.shape)} and {root}patch_embed.proj."
            f"weight {list(kernel.shape)}, but an AudioMAE has one input channel and one of the "
            f"widths {known}; give a checkpoint of one of these sizes"
        )
    patch = (kernel.shape[3], kernel.shape[2])
    count = table.shape[1] - 1
    head = state.get("head.weight")
    if official:
        stride = (_OVERLAP[1],) * 2 if count == _OVERLAP[0] else patch
        rows = (_MELS - patch[0]) // stride[0] + 1
        decoder, norm_pix = _official_decoder(state), True
        pixels = "decoder_pred.weight" in state
    else:
        if "geometry" not in state:
            raise CheckpointError(f"{where}: geometry is missing from the file; get it again")
        facts = state["geometry"].tolist()
        stride = (facts[2], facts[3])
        rows = (facts[1] - patch[0]) // stride[0] + 1
        decoder, norm_pix = decoder_of(dict(state)), bool(facts[4])
        pixels = "decoder.pred.weight" in state
    if count % rows:
        raise CheckpointError(
            f"{where}: {root}pos_embed has {count} positions, which do not fill {rows} rows of "
            "patches along frequency; the file contradicts itself, get it again"
        )
    return Description(
        layout="official" if official else "peas",
        kind="fine-tuned" if head is not None else "pretrained",
        size=size,
        patch=patch,
        stride=(stride[0], stride[1]),
        grid=(rows, count // rows),
        num_classes=0 if head is None else head.shape[0],
        decoder=decoder,
        pixels=pixels,
        norm_pix=norm_pix,
    )


def _official_decoder(state: Mapping[str, Tensor]) -> DecoderShape | None:
    if "decoder_embed.weight" not in state:
        return None
    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("decoder_blocks."))
    width = state["decoder_embed.weight"].shape[0]
    tau = state.get("decoder_blocks.0.attn.tau")
    window = 6 if state["pos_embed"].shape[1] - 1 == _OVERLAP[0] else 4
    if tau is None:
        # The official class fixes the number of heads.
        return DecoderShape("global", width, depth, heads=16)
    return DecoderShape("local", width, depth, heads=tau.numel(), window=window)


def to_ours(state: Mapping[str, Tensor], where: str = "the checkpoint") -> State:
    """Rename official tensors to the keys of `AudioMAE.state_dict()`.

    Raises:
        CheckpointError: A key is not one of the official layouts'.
    """
    ours: State = {}
    for key, value in state.items():
        for mine, theirs in PREFIXES.items():
            if theirs and key.startswith(theirs):
                ours[mine + key.removeprefix(theirs)] = value
                break
        else:
            if not key.startswith(_OFFICIAL):
                raise CheckpointError(
                    f"{where}: unexpected key {key} (shape {list(value.shape)}) in an official "
                    "AudioMAE file; remove it, or give the file as the official code saved it"
                )
            ours["encoder." + key] = value
    return ours


def to_official(state: Mapping[str, Tensor], layout: Layout = "pretrained") -> State:
    """Write weights as the official code saves them, under its `model` key.

    Args:
        state: `AudioMAE.state_dict()`.
        layout: `pretrained`: encoder and decoder, 430 tensors at ViT-B. `fine-tuned`: encoder
            without its final norm, and classifier, 152 tensors.

    Raises:
        NoReconstruction: The pretrained layout is asked of weights without a pixel decoder.
        CheckpointError: The fine-tuned layout is asked of weights without a classifier.
    """
    if layout == "pretrained" and "decoder.pred.weight" not in state:
        raise NoReconstruction(
            "these weights have no pixel decoder, which the pretrained layout must hold; export "
            "the fine-tuned layout, or start from a checkpoint pretrained with reconstruction"
        )
    if layout == "fine-tuned" and "head.weight" not in state:
        raise CheckpointError(
            "these weights have no classifier, which the fine-tuned layout must hold; "
            "export the pretrained layout"
        )
    left = CLASSIFIER if layout == "pretrained" else ("decoder.", "encoder.norm.")
    return {
        file_key(key, official=True): value.detach().cpu().clone()
        for key, value in state.items()
        if key not in BOOKKEEPING and not key.startswith((*left, *PROBE))
    }


def file_key(key: str, official: bool) -> str:
    """The file's own name of one of our keys, for messages and reports."""
    if official:
        for ours, theirs in PREFIXES.items():
            if key.startswith(ours):
                return theirs + key.removeprefix(ours)
    return key
