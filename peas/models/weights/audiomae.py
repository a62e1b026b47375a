"""Fill an AudioMAE model from a file, strictly and with a report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from peas.errors import CheckpointError, ConfigError
from peas.models.audiomae import AudioMAE
from peas.models.audiomae_encoder import fitted
from peas.models.positions import raster_of
from peas.models.weights.audiomae_keys import (
    BOOKKEEPING,
    CLASSIFIER,
    PROBE,
    Description,
    State,
    describe,
    file_key,
    to_official,
    to_ours,
    unwrap,
)
from peas.models.weights.reading import ImportReport, read_state

__all__ = ["Description", "describe", "load_pretrained", "to_official", "to_ours", "unwrap"]


def load_pretrained(
    model: AudioMAE, path: str | Path, state: Mapping[str, Any] | None = None
) -> ImportReport:
    """Fill a model from a file and say what became of every key.

    Reads official pretrained and fine-tuned files and our own checkpoints. The raster of the
    file's positions is detected: with another number of frames they are cut or continued in it.
    A table of neither raster is loaded as it is, and refused only when its length must change.

    A classifier takes the file's decoder whole, for `reconstruct`; a pretraining model takes it
    when it has the shape of its own. The head is taken when the number of classes agrees.

    Args:
        model: The model to fill, in place.
        path: The checkpoint.
        state: What `read_state` gave for it; None reads it.

    Raises:
        CheckpointError: The file cannot be used: missing, damaged, unsafe, of another kind, of
            another size or patch, or with a key too many, too few or of another shape. The model
            is then unchanged.
    """
    where = str(path)
    state = read_state(path, pretrained=True) if state is None else state
    found, outside = unwrap(state, where)
    facts = describe(found, where)
    _check_build(model, facts, where)
    official = facts.layout == "official"
    new = to_ours(found, where) if official else dict(found)
    new = {key: value for key, value in new.items() if key not in BOOKKEEPING}

    report = ImportReport(where, f"{facts.layout} {facts.kind} AudioMAE ({facts.size})")
    ignored = report.ignored
    ignored.update(dict.fromkeys(outside, "belongs to the training run, not to the model"))
    _leave(new, ignored, PROBE, official, "a pixel probe belongs to the encoder as it was")
    optional: dict[str, str] = {}
    if facts.num_classes != model.num_classes:
        theirs, mine = (count or "no" for count in (facts.num_classes, model.num_classes))
        why = f"the file has {theirs} classes and the model {mine}"
        _leave(new, ignored, CLASSIFIER, official, why)
        optional.update(dict.fromkeys(CLASSIFIER, f"the classifier is new: {why}"))
    if facts.kind == "fine-tuned":
        why = "official fine-tuned files have fc_norm in its place"
        optional["encoder.norm."] = why
    _fit_positions(model, new, facts, report)

    adopts = model.num_classes > 0
    own_shape = None if model.decoder is None else model.decoder.shape
    if facts.decoder is None:
        optional["decoder."] = "the file has no decoder"
    elif not adopts and (own_shape != facts.decoder or own_shape is None):
        why = f"the file's decoder is {_words(facts.decoder)}, the model's {_words(own_shape)}"
        _leave(new, ignored, ("decoder.",), official, why)
        optional["decoder."] = f"the decoder is new: {why}"
    elif not adopts and not facts.pixels:
        optional["decoder.pred."] = "the file's decoder predicts no pixels"
    elif not adopts and not bool(model.reconstructs):
        _leave(new, ignored, ("decoder.pred.",), official, "the model predicts no pixels")

    wanted = _wanted(model, new) if adopts else {k: v.shape for k, v in model.state_dict().items()}
    _check_keys(wanted, new, optional, official, report)
    if adopts:
        model.attach_decoder(facts.decoder, pixels=facts.pixels, norm_pix=facts.norm_pix)
    if "encoder.norm.weight" not in new:
        # Without the norm that the decoder was trained behind there is nothing to draw with.
        model.attach_decoder(None if adopts else own_shape, pixels=True, norm_pix=True)
    model.load_state_dict(new, strict=False)
    report.used = [key for key in found if key not in ignored and key not in BOOKKEEPING]
    return report


def _check_build(model: AudioMAE, facts: Description, where: str) -> None:
    if facts.size != model.encoder.size:
        raise CheckpointError(
            f"{where}: holds a {facts.size} model and the model to fill is "
            f"{model.encoder.size}; set size to {facts.size}"
        )
    if facts.patch != model.patch or facts.stride != model.stride:
        raise CheckpointError(
            f"{where}: has patches of {facts.patch} at steps of {facts.stride} (mel bins, frames) "
            f"and the model to fill {model.patch} at {model.stride}; set patch to "
            f"{list(facts.patch)} and stride to {list(facts.stride)}"
        )
    if facts.grid[0] != model.grid[0]:
        raise CheckpointError(
            f"{where}: has {facts.grid[0]} rows of patches along frequency and the model "
            f"{model.grid[0]}; give a file of the same number of mel bins"
        )


def _fit_positions(model: AudioMAE, new: State, facts: Description, report: ImportReport) -> None:
    """Cut or continue the file's tables to the model's number of patches."""
    rows, columns = model.grid
    count = rows * columns
    for key, whose in (("encoder.pos_embed", "the file's"), ("decoder.pos_embed", "its decoder's")):
        if key not in new:
            continue
        raster = raster_of(new[key], rows)
        try:
            new[key] = fitted(new[key], count, rows, whose)
        except ConfigError as error:
            raise CheckpointError(f"{report.path}: {error}") from error
        if key.startswith("encoder"):
            name = f"the {raster} raster" if raster else "of neither raster, taken as it is"
            change = "" if facts.grid == model.grid else f", {facts.grid[1]} to {columns} in time"
            report.notes.append(f"positions: {name}{change}")


def _leave(
    new: State, ignored: dict[str, str], prefixes: tuple[str, ...], official: bool, why: str
) -> None:
    for key in [key for key in new if key.startswith(prefixes)]:
        del new[key]
        ignored[file_key(key, official)] = why


def _words(shape: object) -> str:
    return "none" if shape is None else str(shape)


def _wanted(model: AudioMAE, new: State) -> dict[str, torch.Size]:
    """Shapes that a classifier needs; the decoder's are the file's own."""
    own = {k: v.shape for k, v in model.state_dict().items() if not k.startswith("decoder.")}
    own.update({k: v.shape for k, v in new.items() if k.startswith("decoder.")})
    return own


def _check_keys(
    own: dict[str, torch.Size],
    new: State,
    optional: dict[str, str],
    official: bool,
    report: ImportReport,
) -> None:
    """Refuse a key too many, too few or of another shape; note those allowed to be missing."""
    where = report.path
    for key, value in new.items():
        if key not in own:
            raise CheckpointError(
                f"{where}: unexpected key {file_key(key, official)} (shape {list(value.shape)}), "
                "which the model does not have; give the file as it was saved"
            )
        if value.shape != own[key]:
            raise CheckpointError(
                f"{where}: {file_key(key, official)} has shape {list(value.shape)} and the model "
                f"needs {list(own[key])}; give a file that fits the model's settings"
            )
    for key in (key for key in own if key not in new and key not in BOOKKEEPING):
        reason = next((why for root, why in optional.items() if key.startswith(root)), None)
        if reason is None:
            raise CheckpointError(
                f"{where}: {file_key(key, official)} (shape {list(own[key])}) is missing from the "
                "file; it is incomplete, get it again"
            )
        report.missing[key] = reason
