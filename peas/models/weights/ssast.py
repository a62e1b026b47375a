"""Fill an SSAST model from a file, strictly and with a report."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peas.errors import CheckpointError
from peas.models.patches import grid_shape, resize_positions
from peas.models.ssast import SSAST
from peas.models.weights.reading import ImportReport, read_state
from peas.models.weights.ssast_keys import (
    BOOKKEEPING,
    CLASSIFIER,
    HEADS,
    PROBE,
    SPECIAL,
    UNUSED,
    Description,
    State,
    describe,
    describe_plain,
    file_key,
    pretraining_table,
    rename,
    to_official,
    to_ours,
    unwrap,
)

__all__ = ["Description", "describe", "load_pretrained", "to_official", "to_ours"]


def load_pretrained(
    model: SSAST, path: str | Path, state: Mapping[str, Any] | None = None
) -> ImportReport:
    """Fill a model from a file and say what became of every key.

    Reads official pretrained and fine-tuned files and our own checkpoints. Positions are cut or
    interpolated to the model's grid from the pretraining table, which is kept whole beside them.
    Positions that were fine-tuned on the very same grid are taken as they are. The classifier is
    taken when the number of classes agrees and stays freshly begun otherwise.

    Args:
        model: The model to fill, in place. After a file without trained pretraining heads
            `reconstruct` refuses, except on a pretraining model, which trains its own.
        path: The checkpoint.
        state: What `read_state` gave for it; None reads it.

    Raises:
        CheckpointError: If the file cannot be used: missing, damaged, unsafe, of another kind, of
            another size or patch, or with a key too many, too few or of another shape. The model
            is then unchanged.
    """
    where = str(path)
    state = read_state(path, pretrained=True) if state is None else state
    found, outside = unwrap(state, where)
    facts = describe_plain(found, where)
    _check_build(model, facts, where)
    source = rename(found, where) if facts.layout == "official" else found
    _check_geometry(source, facts, where)
    trained = bool(source.get("reconstructs", False))

    report = ImportReport(where, f"{facts.layout} {facts.kind} SSAST ({facts.size})")
    ignored = report.ignored
    ignored.update(dict.fromkeys(outside, "belongs to the training run, not to the model"))
    for key in found:
        if key.startswith(UNUSED):
            ignored[key] = "ImageNet head that SSAST never uses"

    new = {key: value for key, value in source.items() if key not in BOOKKEEPING}
    _leave(new, ignored, PROBE, facts, "a pixel probe belongs to the encoder as it was")
    optional: dict[str, str] = {}
    if not trained:
        _leave(new, ignored, HEADS, facts, "the file's pretraining heads were never trained")
        why = "the file holds no trained pretraining heads"
        optional.update(dict.fromkeys((*HEADS, "pretrain_pos_embed"), why))
        if "pretrain_pos_embed" in found:
            ignored["pretrain_pos_embed"] = "no generative head was trained with it"
    if facts.num_classes != model.num_classes:
        theirs, mine = (count or "no" for count in (facts.num_classes, model.num_classes))
        why = f"the file has {theirs} classes and the model {mine}"
        _leave(new, ignored, CLASSIFIER, facts, why)
        optional.update(dict.fromkeys(CLASSIFIER, f"the classifier is new: {why}"))
    new["encoder.pos_embed"] = _positions(model, source, facts, trained, report)
    _check_keys(model, new, optional, facts, report)

    if trained and not model.pretraining:
        model.set_pretraining_grid(facts.frames, facts.mels)
    if trained:
        live = new["encoder.pos_embed"]
        new["pretrain_pos_embed"] = live if model.pretraining else pretraining_table(source)
    new["reconstructs"] = torch.tensor(trained or model.pretraining)
    model.load_state_dict(new, strict=False)
    report.used = [key for key in found if key not in ignored]
    return report


def _check_build(model: SSAST, facts: Description, where: str) -> None:
    if facts.size != model.encoder.size:
        raise CheckpointError(
            f"{where}: holds a {facts.size} model and the model to fill is "
            f"{model.encoder.size}; set size to {facts.size}"
        )
    if facts.patch != model.patch:
        raise CheckpointError(
            f"{where}: has patches of {facts.patch} (mel bins, frames) and the model to fill "
            f"{model.patch}; set patch to {list(facts.patch)} and a stride that suits it"
        )


def _check_geometry(source: State, facts: Description, where: str) -> None:
    """Refuse a file of ours whose tables do not fit the shapes that it names."""
    if facts.layout == "official":
        return
    for key in BOOKKEEPING:
        if key not in source:
            raise CheckpointError(f"{where}: {key} is missing from the file; get it again")
    frames, mels, *stride = (int(side) for side in source["geometry"][:4])
    sides = {
        "encoder.pos_embed": grid_shape(frames, mels, facts.patch, (stride[0], stride[1])),
        "pretrain_pos_embed": grid_shape(facts.frames, facts.mels, facts.patch, facts.patch),
    }
    width = source["encoder.pos_embed"].shape[2]
    for key, grid in sides.items():
        wanted = [1, SPECIAL + math.prod(grid), width]
        if list(source[key].shape) != wanted:
            raise CheckpointError(
                f"{where}: {key} has shape {list(source[key].shape)}, but by the file's own "
                f"geometry it should be {wanted}; the file contradicts itself, get it again"
            )


def _leave(
    new: State, ignored: dict[str, str], prefixes: tuple[str, ...], facts: Description, why: str
) -> None:
    for key in [key for key in new if key.startswith(prefixes)]:
        del new[key]
        ignored[file_key(key, facts.layout == "official")] = why


def _positions(
    model: SSAST, source: State, facts: Description, trained: bool, report: ImportReport
) -> Tensor:
    """Positions for the model's grid, `[1, 2 + N, D]`."""
    grid, table = model.encoder.grid, source["encoder.pos_embed"]
    if "geometry" not in source:
        wanted = [1, SPECIAL + math.prod(grid), table.shape[2]]
        if list(table.shape) != wanted:
            raise CheckpointError(
                f"{report.path}: v.pos_embed has shape {list(table.shape)} and the model's grid "
                f"of {grid[0]} x {grid[1]} patches needs {wanted}; an official fine-tuned file "
                "does not name its grid, so set frames, mels and stride to those that it was "
                "fine-tuned with"
            )
        return table
    frames, mels, *stride = (int(side) for side in source["geometry"][:4])
    own = grid_shape(frames, mels, facts.patch, (stride[0], stride[1]))
    if own == grid:
        return table
    if trained:
        table = pretraining_table(source)
        own = grid_shape(facts.frames, facts.mels, facts.patch, facts.patch)
    report.notes.append(
        f"positions: cut or interpolated from the {'pretraining' if trained else 'fine-tuning'} "
        f"grid of {own[0]} x {own[1]} patches (frequency x time) to {grid[0]} x {grid[1]}"
    )
    return resize_positions(table, SPECIAL, own, grid)


def _check_keys(
    model: SSAST, new: State, optional: dict[str, str], facts: Description, report: ImportReport
) -> None:
    """Refuse a key too many, too few or of another shape; note those allowed to be missing."""
    own = model.state_dict()
    official, where = facts.layout == "official", report.path
    for key, value in new.items():
        if key not in own:
            raise CheckpointError(
                f"{where}: unexpected key {file_key(key, official)} (shape {list(value.shape)}), "
                "which the model does not have; give the file as it was saved"
            )
        if value.shape != own[key].shape:
            raise CheckpointError(
                f"{where}: {file_key(key, official)} has shape {list(value.shape)} and the model "
                f"needs {list(own[key].shape)}; give a file that fits the model's settings"
            )
    for key in (key for key in own if key not in new):
        reason = next((why for root, why in optional.items() if key.startswith(root)), None)
        if reason is not None:
            report.missing[key] = reason
        elif key not in BOOKKEEPING:
            raise CheckpointError(
                f"{where}: {file_key(key, official)} (shape {list(own[key].shape)}) is missing "
                "from the file; it is incomplete, get it again"
            )
