"""AudioMAE's official layout: key table, fixed positions in two rasters, decoders.

The official pretrained file has 430 tensors beside the optimiser's and an `argparse.Namespace`, an
official fine-tuned one 152.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peas.errors import CheckpointError, ConfigError
from peas.models.audiomae import decoder_of
from peas.models.audiomae_layers import DecoderShape, fitted, raster_of
from peas.models.weights.importer import Family, Import

MELS = 128
OVERLAP_PATCHES, OVERLAP_STRIDE, OVERLAP_WINDOW = 1212, (10, 10), 6
"""Patches of ten seconds in the official overlapping variant, its stride and attention window."""


class AudioMAEFamily(Family):
    """Files of `peas.models.AudioMAE`.

    The raster of the file's positions is detected; for another number of frames they are cut or
    extended in it. A table of neither raster is loaded as it is, and refused if its length must
    change. A classifier takes the file's decoder, for `reconstruct`; a pretraining model takes it
    if it has the shape of its own.
    """

    name = "AudioMAE"
    prefixes: Mapping[str, str] = {
        "decoder.embed.": "decoder_embed.",
        "decoder.mask_token": "mask_token",
        "decoder.pos_embed": "decoder_pos_embed",
        "decoder.blocks.": "decoder_blocks.",
        "decoder.norm.": "decoder_norm.",
        "decoder.pred.": "decoder_pred.",
        "fc_norm.": "fc_norm.",
        "head.": "head.",
        "encoder.cls_token": "cls_token",
        "encoder.pos_embed": "pos_embed",
        "encoder.patch_embed.": "patch_embed.",
        "encoder.blocks.": "blocks.",
        "encoder.norm.": "norm.",
    }
    special = ("cls_token",)
    root = ""
    wrapper = "model"
    bookkeeping = ("geometry", "reconstructs")
    pretraining_only = ("decoder.", "encoder.norm.")
    pixel_head = "pixel decoder"

    def shape(self, state: Mapping[str, Tensor], where: str, *, official: bool) -> dict[str, Any]:
        """Patch, stride, grid and decoder."""
        root = "" if official else "encoder."
        kernel = state[root + "patch_embed.proj.weight"]
        patch = (kernel.shape[3], kernel.shape[2])
        count = state[root + "pos_embed"].shape[1] - 1
        mels, norm_pix = MELS, True
        if official:
            stride = OVERLAP_STRIDE if count == OVERLAP_PATCHES else patch
            decoder = _official_decoder(state)
        else:
            geometry = state["geometry"].tolist()
            mels, stride, norm_pix = geometry[1], (geometry[2], geometry[3]), bool(geometry[4])
            decoder = decoder_of(dict(state))
        rows = (mels - patch[0]) // stride[0] + 1
        if count % rows:
            raise CheckpointError(
                f"{where}: {root}pos_embed has {count} positions, which do not fill {rows} rows of "
                "patches along frequency; the file contradicts itself, get it again"
            )
        return {
            "patch": patch,
            "stride": stride,
            "grid": (rows, count // rows),
            "decoder": decoder,
            "pixels": self.file_key("decoder.pred.weight", official=official) in state,
            "norm_pix": norm_pix,
        }

    def check(self, job: Import) -> None:
        """Patch, stride and rows of patches must agree."""
        info, model, where = job.info, job.model, job.report.path
        if info.patch != model.patch or info.stride != model.stride:
            raise CheckpointError(
                f"{where}: has patches of {info.patch} at steps of {info.stride} (mel bins, "
                f"frames) and the model to fill {model.patch} at {model.stride}; set patch to "
                f"{list(info.patch)} and stride to {list(info.stride or info.patch)}"
            )
        if info.grid[0] != model.grid[0]:
            raise CheckpointError(
                f"{where}: has {info.grid[0]} rows of patches along frequency and the model "
                f"{model.grid[0]}; give a file of the same number of mel bins"
            )

    def fit(self, job: Import) -> Mapping[str, torch.Size]:
        """Cut or extend the positions; decide on the decoder."""
        model, new, info = job.model, job.new, job.info
        if info.kind == "fine-tuned":
            job.optional["encoder.norm."] = "official fine-tuned files have fc_norm instead"
        _fit_positions(job)
        shapes = {key: value.shape for key, value in model.state_dict().items()}
        if info.decoder is None:
            job.optional["decoder."] = "the file has no decoder"
        if model.num_classes:
            # The decoder will be the file's own.
            shapes = {k: shape for k, shape in shapes.items() if not k.startswith("decoder.")}
            return shapes | {k: v.shape for k, v in new.items() if k.startswith("decoder.")}
        if info.decoder is None:
            return shapes
        own = None if model.decoder is None else model.decoder.shape
        if own != info.decoder:
            why = f"the file's decoder is {info.decoder}, the model's {own or 'none'}"
            self.ignore(job, ("decoder.",), why)
            job.optional["decoder."] = f"the decoder is new: {why}"
        elif not info.pixels:
            job.optional["decoder.pred."] = "the file's decoder predicts no pixels"
        elif not model.reconstructs:
            self.ignore(job, ("decoder.pred.",), "the model predicts no pixels")
        return shapes

    def finish(self, job: Import) -> None:
        """Give a classifier the file's decoder."""
        model, info = job.model, job.info
        own = None if model.decoder is None else model.decoder.shape
        if model.num_classes:
            model.attach_decoder(info.decoder, pixels=info.pixels, norm_pix=info.norm_pix)
        if "encoder.norm.weight" not in job.new:
            # Without the norm that the decoder was trained behind it cannot reconstruct.
            model.attach_decoder(None if model.num_classes else own, pixels=True, norm_pix=True)

    def has_pixel_head(self, state: Mapping[str, Tensor]) -> bool:
        """Whether the decoder predicts pixels."""
        return "decoder.pred.weight" in state


def _official_decoder(state: Mapping[str, Tensor]) -> DecoderShape | None:
    if "decoder_embed.weight" not in state:
        return None
    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("decoder_blocks."))
    width = state["decoder_embed.weight"].shape[0]
    tau = state.get("decoder_blocks.0.attn.tau")
    window = OVERLAP_WINDOW if state["pos_embed"].shape[1] - 1 == OVERLAP_PATCHES else 4
    if tau is None:
        # The official class fixes the number of heads.
        return DecoderShape("global", width, depth, heads=16)
    return DecoderShape("local", width, depth, heads=tau.numel(), window=window)


def _fit_positions(job: Import) -> None:
    rows, columns = job.model.grid
    tables = {"encoder.pos_embed": "the file's", "decoder.pos_embed": "its decoder's"}
    for key, owner in tables.items():
        if key not in job.new:
            continue
        raster = raster_of(job.new[key], rows)
        try:
            job.new[key] = fitted(job.new[key], rows * columns, rows, owner)
        except ConfigError as error:
            raise CheckpointError(f"{job.report.path}: {error}") from error
        if key.startswith("encoder"):
            name = f"the {raster} raster" if raster else "of neither raster, taken as it is"
            grid = job.info.grid
            change = "" if grid == (rows, columns) else f", {grid[1]} to {columns} in time"
            job.report.notes.append(f"positions: {name}{change}")
