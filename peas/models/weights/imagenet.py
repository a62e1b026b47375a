"""Fill a model from a vision transformer that was trained on ImageNet, with timm's key names.

Such models are the start of AST (Gong et al., 2021), which fine-tunes DeiT on spectrograms.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peas.errors import CheckpointError
from peas.models.encoder import Encoder
from peas.models.patches import resize_positions
from peas.models.vit import SIZES
from peas.models.weights.checking import check_weights
from peas.models.weights.importer import check_keys
from peas.models.weights.reading import ImportReport, read_state

PREFIX = "timm:"
"""What a name or file of such weights has before it, in `pretrained`."""

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
HEADS = ("head.", "head_dist.", "fc_norm.", "pre_logits.")
_LOCAL = "give the file of its weights instead, `timm:FILE` (.safetensors or .pth)"
State = dict[str, Tensor]


def load_imagenet(model: Encoder, source: str) -> ImportReport:
    """Fill a model's encoder and say what became of every key.

    The kernel of the patches is summed over the three colours: a spectrogram is then seen as the
    grey image, with the same values in all three (AST's code does so; its paper has the
    mean, a third of it). Frequency is along the image's height, in both families.

    Positions: SSAST's trained table takes the image's, cut in the middle or interpolated along
    each axis to the grid (AST). AudioMAE's table is fixed and stays; the class token's own
    position is added to that token. A model without a distillation token gives SSAST's its class
    token.

    Args:
        model: The model to fill, in place. A classifier cannot `reconstruct` afterwards.
        source: Name of a timm model, whose weights timm fetches from its hub, or a file with the
            state of one.

    Raises:
        CheckpointError: The name is unknown, its weights cannot be fetched, or the weights are not
            those of a plain vision transformer of the model's size and patch. The model is then
            unchanged.
    """
    state = _read(source)
    where = f"{PREFIX}{source}"
    check_weights(state, where)
    _check_kind(state, model, where)
    new = {key: value for key, value in state.items() if not key.startswith(HEADS)}
    report = ImportReport(where, "ImageNet weights of a vision transformer")
    report.ignored = {key: "ImageNet classifier" for key in state if key.startswith(HEADS)}
    kernel = new["patch_embed.proj.weight"]
    if kernel.shape[1] == 3:
        kernel = kernel.sum(dim=1, keepdim=True)
        report.notes.append("patches: the kernel is the sum over the three colours")
    new["patch_embed.proj.weight"] = kernel
    new = model.import_vit(new, report)
    encoder = model.get_submodule("encoder")
    shapes = {key: value.shape for key, value in encoder.state_dict().items()}
    check_keys(shapes, new, where, optional={"pos_embed": "AudioMAE's table is fixed"})
    encoder.load_state_dict(new, strict=False)
    if model.num_classes:
        # A classifier's pixel head was not trained with these weights.
        model.reconstructs.fill_(False)
    report.used = [key for key in state if key not in report.ignored]
    report.missing = {
        key: "ImageNet has no such part: it starts fresh"
        for key in model.state_dict()
        if not key.startswith("encoder.") and key not in ("reconstructs", "geometry")
    }
    return report


def _read(source: str) -> State:
    path = Path(source)
    if path.suffix not in SUFFIXES and not path.is_file():
        return _fetch(source)
    if path.suffix != ".safetensors":
        content: Any = read_state(path)
        for wrapper in ("model", "state_dict"):
            content = content.get(wrapper, content) if isinstance(content, Mapping) else content
        state = content if isinstance(content, Mapping) else {}
        return {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of weights; check the path after `{PREFIX}`")
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as safetensors ({error}); copy or download it again"
        ) from error


def _fetch(name: str) -> State:
    """State of timm's model of that name; asks the network unless it was fetched before."""
    import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise CheckpointError(
            f"{PREFIX}{name}: timm has no model {architecture!r} and there is no such file; take a "
            "name such as timm:deit_base_distilled_patch16_384.fb_in1k or "
            "timm:vit_base_patch16_224.augreg_in21k_ft_in1k"
        )
    try:
        state: State = timm.create_model(name, pretrained=True).state_dict()
    # Which of the hub's or the network's own it is depends on where the way there ends.
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        raise CheckpointError(
            f"{PREFIX}{name}: timm could not fetch these weights ({text.splitlines()[0]}). Without "
            f"a network {_LOCAL}; names with weights are listed by "
            f"`timm.list_pretrained('{architecture}*')`"
        ) from error
    return state


def _check_kind(state: Mapping[str, Tensor], model: Encoder, where: str) -> None:
    kernel, table = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    if kernel is None or table is None or "cls_token" not in state or kernel.ndim != 4:
        raise CheckpointError(
            f"{where}: holds no vision transformer with timm's key names (cls_token, pos_embed, "
            f"patch_embed.proj.weight); it holds {', '.join(list(state)[:4]) or 'no tensors'}, …"
        )
    if table.shape[-1] != model.width:
        size = next((key for key, size in SIZES.items() if size.width == table.shape[-1]), None)
        cure = f"set size to {size}" if size else "give one of a known size"
        raise CheckpointError(
            f"{where}: is {table.shape[-1]} wide and the model to fill {model.width}; {cure}"
        )
    if tuple(kernel.shape[2:]) != tuple(model.patch):
        raise CheckpointError(
            f"{where}: has patches of {tuple(kernel.shape[2:])} and the model to fill "
            f"{tuple(model.patch)} (mel bins, frames); set patch to {list(kernel.shape[2:])}"
        )


def tokens_of_ssast(model: Encoder, new: State, report: ImportReport) -> State:
    """Special tokens and positions of the model's own grid."""
    special = 2 if "dist_token" in new else 1
    table = new["pos_embed"]
    side = math.isqrt(max(table.shape[1] - special, 0))
    if special + side * side != table.shape[1]:
        raise CheckpointError(
            f"{report.path}: pos_embed has {table.shape[1]} positions, which are not {special} "
            "special ones and those of a square image; give a plain vision transformer"
        )
    if special == 1:
        new["dist_token"] = new["cls_token"]
        table = torch.cat((table[:, :1], table), dim=1)
        report.notes.append("distillation token: the class token a second time")
    grid = model.grid
    new["pos_embed"] = resize_positions(table, 2, (side, side), grid)
    report.notes.append(
        f"positions: cut or interpolated from {side} x {side} patches to {grid[0]} x {grid[1]} "
        "(frequency x time)"
    )
    return new


def tokens_of_audiomae(new: State, report: ImportReport) -> State:
    """The class token with its own position; the fixed table stays the model's."""
    # AudioMAE's kernel is (frames, mel bins).
    new["patch_embed.proj.weight"] = new["patch_embed.proj.weight"].transpose(2, 3)
    table = new.pop("pos_embed")
    new["cls_token"] = new["cls_token"] + table[:, :1]
    report.ignored["pos_embed"] = (
        "AudioMAE's positions are fixed; the class token's was added to it"
    )
    if new.pop("dist_token", None) is not None:
        report.ignored["dist_token"] = "AudioMAE has no distillation token"
    return new
