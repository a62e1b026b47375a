"""SSAST's official layout: key table, positions, sizes of the pretraining input.

The official pretrained file has 166 tensors (two sizes of the input and four ImageNet heads that
SSAST never uses among them), an official fine-tuned one 159. Every key is prefixed by `module.`,
because the official code saves a `DataParallel` wrapper.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peas.errors import CheckpointError
from peas.models.patches import Pair, grid_shape, resize_positions
from peas.models.weights.importer import Family, Import, Layout, State

IMAGENET_CLASSES = 1000
SPECIAL = 2
SIDES = ("p_input_tdim", "p_input_fdim")
"""Official keys of frames and mel bins of the pretraining input."""
HEADS = ("mask_embed", "contrastive_head.", "generative_head.")


class SSASTFamily(Family):
    """Files of `peas.models.SSAST`.

    Positions are cut or interpolated to the model's grid from the pretraining table, which is kept
    beside them. Positions fine-tuned on exactly the model's grid are taken as they are. A
    fine-tuned official file stores neither its grid nor pretraining heads.
    """

    name = "SSAST"
    prefixes: Mapping[str, str] = {
        "encoder.": "v.",
        "mask_embed": "mask_embed",
        "contrastive_head.": "cpredlayer.",
        "generative_head.": "gpredlayer.",
        "fc_norm.": "mlp_head.0.",
        "head.": "mlp_head.1.",
    }
    special = ("cls_token", "dist_token")
    root = "v."
    unused = ("v.head.", "v.head_dist.")
    bookkeeping = ("pretrain_pos_embed", "reconstructs", "geometry")
    pretraining_only = HEADS
    pixel_head = "generative head"

    def shape(self, state: Mapping[str, Tensor], where: str, *, official: bool) -> dict[str, Any]:
        """Patch, and sides of the pretraining input."""
        kernel = state[("v." if official else "encoder.") + "patch_embed.proj.weight"]
        sides: dict[str, int] = {}
        if not official:
            sides = dict(zip(("frames", "mels"), state["geometry"][4:].tolist(), strict=True))
        elif SIDES[0] in state:
            sides = {"frames": int(state[SIDES[0]]), "mels": int(state.get(SIDES[1], 128))}
        return {"patch": (kernel.shape[2], kernel.shape[3]), **sides}

    def to_ours(self, state: Mapping[str, Any], where: str = "the checkpoint") -> State:
        """As in `Family`; a pretrained file gives the entire state of a pretraining model."""
        tensors, _ = self.unwrap(state, where)
        info = self._describe(tensors, where)
        ours = super().to_ours({k: v for k, v in tensors.items() if k not in SIDES}, where)
        if info.kind == "fine-tuned":
            return ours
        table, sides = ours["encoder.pos_embed"], (info.frames, info.mels)
        needed = [1, SPECIAL + math.prod(grid_shape(*sides, info.patch, info.patch))]
        if list(table.shape[:2]) != needed:
            raise CheckpointError(
                f"{where}: v.pos_embed has shape {list(table.shape)}, but {sides[0]} frames and "
                f"{sides[1]} mel bins in patches of {info.patch} need "
                f"{[*needed, table.shape[2]]}; the file contradicts itself"
            )
        ours["pretrain_pos_embed"] = table
        ours["reconstructs"] = torch.tensor(True)
        ours["geometry"] = torch.tensor((*sides, *info.patch, *sides))
        return ours

    def check(self, job: Import) -> None:
        """The patch must agree; the stride may differ, since positions are resized."""
        if job.info.patch != job.model.patch:
            raise CheckpointError(
                f"{job.report.path}: has patches of {job.info.patch} (mel bins, frames) and the "
                f"model to fill {job.model.patch}; set patch to {list(job.info.patch)} and a "
                "stride that suits it"
            )

    def fit(self, job: Import) -> Mapping[str, torch.Size]:
        """Drop untrained heads; resize the positions."""
        if not _reconstructs(job):
            self.ignore(job, HEADS, "the file's pretraining heads were never trained")
            why = "the file holds no trained pretraining heads"
            job.optional.update(dict.fromkeys((*HEADS, "pretrain_pos_embed"), why))
            if "pretrain_pos_embed" in job.source:
                job.report.ignored["pretrain_pos_embed"] = "no generative head was trained with it"
        job.new["encoder.pos_embed"] = self._positions(job)
        return {key: value.shape for key, value in job.model.state_dict().items()}

    def _positions(self, job: Import) -> Tensor:
        """Positions of the model's grid, `[1, 2 + N, D]`."""
        grid: Pair = job.model.encoder.grid
        table, info = job.source["encoder.pos_embed"], job.info
        if "geometry" not in job.source:
            needed = [1, SPECIAL + math.prod(grid), table.shape[2]]
            if list(table.shape) != needed:
                raise CheckpointError(
                    f"{job.report.path}: v.pos_embed has shape {list(table.shape)} and the model's "
                    f"grid of {grid[0]} x {grid[1]} patches needs {needed}; an official fine-tuned "
                    "file does not store its grid, so set frames, mels and stride to those of its "
                    "fine-tuning"
                )
            return table
        frames, mels, *stride = job.source["geometry"][:4].tolist()
        own = grid_shape(frames, mels, info.patch, (stride[0], stride[1]))
        if own == grid:
            return table
        kind = "fine-tuning"
        if _reconstructs(job):
            kind, table = "pretraining", pretraining_table(job.source)
            own = grid_shape(info.frames, info.mels, info.patch, info.patch)
        job.report.notes.append(
            f"positions: cut or interpolated from the {kind} grid of {own[0]} x {own[1]} patches "
            f"(frequency x time) to {grid[0]} x {grid[1]}"
        )
        return resize_positions(table, SPECIAL, own, grid)

    def finish(self, job: Import) -> None:
        """Keep the pretraining table beside the model's own."""
        model, trained = job.model, _reconstructs(job)
        if trained:
            live = job.new["encoder.pos_embed"]
            table = live if model.pretraining else pretraining_table(job.source)
            job.new["pretrain_pos_embed"] = table
            if not model.pretraining:
                model.set_pretraining_grid(job.info.frames, job.info.mels)
        job.new["reconstructs"] = torch.tensor(trained or model.pretraining)

    def has_pixel_head(self, state: Mapping[str, Tensor]) -> bool:
        """Whether the generative head was trained."""
        return bool(state.get("reconstructs", False))

    def complete(self, official: State, state: Mapping[str, Tensor], layout: Layout) -> State:
        """Sides of the input, the pretraining table, and zeros for the ImageNet heads."""
        if layout == "pretrained":
            official |= dict(zip(SIDES, state["geometry"][4:], strict=True))
            official["v.pos_embed"] = pretraining_table(state)
        width = state["encoder.pos_embed"].shape[2]
        for prefix in self.unused:
            official[prefix + "weight"] = torch.zeros(IMAGENET_CLASSES, width)
            official[prefix + "bias"] = torch.zeros(IMAGENET_CLASSES)
        return {"module." + key: value for key, value in official.items()}


def pretraining_table(state: Mapping[str, Tensor]) -> Tensor:
    """Positions `[1, 2 + N0, D]` that the generative head was trained with, of our state.

    A pretraining model's live table is its pretraining table.
    """
    patch = list(state["encoder.patch_embed.proj.weight"].shape[2:])
    pretraining = "head.weight" not in state and state["geometry"][2:4].tolist() == patch
    return state["encoder.pos_embed" if pretraining else "pretrain_pos_embed"]


def _reconstructs(job: Import) -> bool:
    return bool(job.source.get("reconstructs", False))
