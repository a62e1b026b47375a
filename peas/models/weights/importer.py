"""One importer and exporter for official layouts.

A `Family` maps keys between an official file and `Encoder.state_dict()` in both directions. Its
subclasses (`ssast`, `audiomae`, `beats`, `eat`) add a key table and the rules for shapes. Loading
is strict: a key too many, too few or of another shape is an error, and the model is then unchanged.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from peas.errors import CheckpointError, NoReconstruction
from peas.models.audiomae_layers import DecoderShape
from peas.models.encoder import Encoder
from peas.models.patches import Pair
from peas.models.vit import SIZES
from peas.models.weights.checking import check_geometry, check_weights, malformed
from peas.models.weights.reading import ImportReport, read_state

Layout = Literal["pretrained", "fine-tuned"]
State = dict[str, Tensor]

CLASSIFIER = ("fc_norm.", "head.")
PROBE = ("pixel_probe.",)
RUN_PREFIX = "model."
CLASS_ORDER = "label_dict"
"""Key of an official file's table of class number -> name, beside its tensors: BEATs has one."""
MARKS = {"BEATs": (".grep_a", ".gate_scale"), "EAT": ("extra_tokens", "encoder.pre_norm.weight")}
"""Ends of keys that only files of these families have, official and ours."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a file of weights contains.

    Attributes:
        layout: Whose key names the file uses.
        kind: `fine-tuned` if it has a classifier, else `pretrained`.
        size: Key of `SIZES`, inferred from the width.
        patch: Height and width of a patch, (mel bins, frames).
        num_classes: Number of classes C, 0 without a classifier.
        stride: Step between patches, (mel bins, frames); SSAST files do not store it.
        grid: Patches along (frequency, time) of an AudioMAE position table.
        frames: Frames of SSAST's pretraining input; 1024 if the file does not store it.
        mels: Mel bins of SSAST's pretraining input; 128 if the file does not store it.
        decoder: Shape of AudioMAE's decoder, None without one.
        pixels: Whether that decoder predicts pixels.
        norm_pix: Whether those are normalised; in official files they are.
    """

    layout: Literal["official", "peas"]
    kind: Layout
    size: str
    patch: Pair
    num_classes: int
    stride: Pair | None = None
    grid: Pair = (0, 0)
    frames: int = 1024
    mels: int = 128
    decoder: DecoderShape | None = None
    pixels: bool = False
    norm_pix: bool = True


@dataclass
class Import:
    """Weights on their way from a file into a model.

    Attributes:
        model: The encoder to fill.
        info: What the file contains.
        source: All of the file's tensors under our keys.
        new: Those that the model takes.
        report: What happened to every key.
        settings: What the file says of its model beside the weights.
        optional: Prefixes of the model's keys that may stay unfilled, and why.
    """

    model: Any
    info: Description
    source: State
    new: State
    report: ImportReport
    settings: Mapping[str, Any] = field(default_factory=dict)
    optional: dict[str, str] = field(default_factory=dict)


class Family(ABC):
    """Encoders with one official layout.

    Attributes:
        name: Class of the encoder.
        prefixes: Prefix of our keys -> official prefix. The first match decides.
        special: Special tokens of the encoder.
        root: Prefix of the encoder's official keys.
        wrapper: Key of the official file that holds the tensors; empty if they are at its top.
        unused: Prefixes of official tensors that have no use.
        bookkeeping: Our keys that describe the model and are not weights.
        pretraining_only: Prefixes of our keys that a fine-tuned official file does not have.
        pixel_head: What the pretrained layout needs, for the error; empty if it needs none.
    """

    name: str
    prefixes: Mapping[str, str]
    special: tuple[str, ...]
    root: str
    wrapper: str = ""
    unused: tuple[str, ...] = ()
    bookkeeping: tuple[str, ...]
    pretraining_only: tuple[str, ...]
    pixel_head: str

    # --- what a family adds -----------------------------------------------------------------

    @abstractmethod
    def shape(self, state: Mapping[str, Tensor], where: str, *, official: bool) -> dict[str, Any]:
        """The family's own fields of `Description`, at least `patch`."""

    @abstractmethod
    def check(self, job: Import) -> None:
        """Refuse a file whose patches do not fit the model."""

    @abstractmethod
    def fit(self, job: Import) -> Mapping[str, torch.Size]:
        """Fit positions and heads to the model.

        Returns:
            Shapes that the model will have.
        """

    @abstractmethod
    def finish(self, job: Import) -> None:
        """Prepare the model for the checked weights."""

    @abstractmethod
    def has_pixel_head(self, state: Mapping[str, Tensor]) -> bool:
        """Whether our state has a trained pixel head."""

    def file_key(self, key: str, *, official: bool) -> str:
        """Name in the file of one of our keys."""
        if official:
            for ours, theirs in self.prefixes.items():
                if key.startswith(ours):
                    return theirs + key.removeprefix(ours)
        return key

    # --- reading ----------------------------------------------------------------------------

    def unwrap(self, state: Mapping[str, Any], where: str) -> tuple[State, list[str]]:
        """Take the model's tensors out of their wrappers.

        Args:
            state: Content of a file: bare, under `model` or `state_dict`, its keys perhaps
                prefixed by `module.` or `model.`.
            where: The file, for errors.

        Returns:
            The model's tensors, and the names of tensors beside the model.

        Raises:
            CheckpointError: It contains no model of this family.
        """
        inner = inner_of(state)
        prefix = RUN_PREFIX if any(key.startswith(RUN_PREFIX) for key in inner) else ""
        own = {key.removeprefix(prefix): v for key, v in inner.items() if key.startswith(prefix)}
        needed = (*self.special, "pos_embed", "patch_embed.proj.weight")
        for root in (self.root, "encoder."):
            if all(root + key in own for key in needed) and all(
                isinstance(value, Tensor) for value in own.values()
            ):
                check_geometry(own, where)
                return own, [key for key in inner if not key.startswith(prefix)]
        names = [str(key) for key in inner][:4]
        expected = ", ".join(self.root + key for key in needed)
        raise CheckpointError(
            f"{where}: not an {self.name} checkpoint. It holds {', '.join(names) or 'nothing'}, …; "
            f"expected are {expected} (official), or the same under encoder. (peas)"
        )

    def is_official(self, state: Mapping[str, Tensor]) -> bool:
        """Whether these tensors have the official names."""
        return self.root + "pos_embed" in state

    def describe(self, state: Mapping[str, Any], where: str = "the checkpoint") -> Description:
        """What a checkpoint's dictionary contains.

        Args:
            state: An official file's content, a Lightning checkpoint's or a bare state_dict.
            where: The file, for errors.

        Raises:
            CheckpointError: It is no checkpoint of this family.
        """
        return self._describe(self.unwrap(state, where)[0], where)

    def _describe(self, state: Mapping[str, Tensor], where: str) -> Description:
        official = self.is_official(state)
        root = self.root if official else "encoder."
        table, kernel = state[root + "pos_embed"], state[root + "patch_embed.proj.weight"]
        size = next((name for name, size in SIZES.items() if size.width == table.shape[-1]), None)
        if size is None or kernel.ndim != 4 or kernel.shape[1] != 1:
            widths = ", ".join(f"{name} {size.width}" for name, size in SIZES.items())
            raise CheckpointError(
                f"{where}: {root}pos_embed has shape {list(table.shape)} and {root}patch_embed."
                f"proj.weight {list(kernel.shape)}, but {self.name} has one input channel and one "
                f"of the widths {widths}; give a checkpoint of one of these sizes"
            )
        if not official:
            for key in self.bookkeeping:
                if key not in state:
                    raise CheckpointError(f"{where}: {key} is missing from the file; get it again")
        head = state.get(self.file_key("head.weight", official=official))
        return Description(
            layout="official" if official else "peas",
            kind="pretrained" if head is None else "fine-tuned",
            size=size,
            num_classes=0 if head is None else head.shape[0],
            **self.shape(state, where, official=official),
        )

    def to_ours(self, state: Mapping[str, Any], where: str = "the checkpoint") -> State:
        """Rename official tensors to the keys of `Encoder.state_dict()`.

        Raises:
            CheckpointError: A key does not belong to the official layout.
        """
        ours: State = {}
        for key, value in self.unwrap(state, where)[0].items():
            if key.startswith(self.unused):
                continue
            for prefix, official in self.prefixes.items():
                if key.startswith(official):
                    ours[prefix + key.removeprefix(official)] = value
                    break
            else:
                raise CheckpointError(
                    f"{where}: unexpected key {key} (shape {list(value.shape)}) in an official "
                    f"{self.name} file; remove it, or give the file as the official code saved it"
                )
        return ours

    def load(self, model: Encoder, state: Mapping[str, Any], where: str) -> ImportReport:
        """Fill a model from a file's content.

        The classifier is taken if the number of classes agrees, and stays fresh otherwise.

        Args:
            model: Filled in place.
            state: Content of an official file of the family or of a checkpoint of ours.
            where: The file, for errors.

        Raises:
            CheckpointError: The file belongs to another family, size or patch, or has a key too
                many, too few or of another shape. The model is then unchanged.
        """
        other = family_name(state)
        if other and other != self.name:
            raise CheckpointError(
                f"{where}: holds {other} weights, and the model is {self.name}: set "
                f"`model.init_args.encoder.class_path: peas.models.{other}`, or give a file of "
                f"{self.name}"
            )
        tensors, beside = self.unwrap(state, where)
        info = self._describe(tensors, where)
        report = ImportReport(where, f"{info.layout} {info.kind} {self.name} ({info.size})")
        official = info.layout == "official"
        source = self.to_ours(tensors, where) if official else tensors
        new = {key: value for key, value in source.items() if key not in self.bookkeeping}
        job = Import(model, info, source, new, report)
        if isinstance(state.get("cfg"), Mapping):
            job.settings = state["cfg"]
        if info.size != job.model.encoder.size:
            raise CheckpointError(
                f"{where}: holds a {info.size} model and the model to fill is "
                f"{job.model.encoder.size}; set size to {info.size}"
            )
        self.check(job)

        report.ignored.update(dict.fromkeys(beside, "belongs to the training run, not the model"))
        for key in tensors:
            if official and key.startswith(self.unused):
                report.ignored[key] = f"{self.name} never uses it"
        self.ignore(job, PROBE, "a pixel probe belongs to the encoder that it was fitted on")
        why = ""
        if info.num_classes != model.num_classes:
            counts = [count or "no" for count in (info.num_classes, model.num_classes)]
            why = f"the file has {counts[0]} classes and the model {counts[1]}"
        elif info.num_classes and CLASS_ORDER in state:
            why = f"its classes are in the order of the file's {CLASS_ORDER}: use `peas import`"
        if why:
            self.ignore(job, CLASSIFIER, why)
            job.optional.update(dict.fromkeys(CLASSIFIER, f"the classifier is new: {why}"))
        shapes = self.fit(job)
        report.missing.update(
            check_keys(
                shapes,
                job.new,
                where,
                optional=job.optional,
                skip=self.bookkeeping,
                file_key=lambda key: self.file_key(key, official=official),
            )
        )
        self.finish(job)
        model.load_state_dict(job.new, strict=False)
        report.used = [key for key in tensors if key not in report.ignored]
        return report

    def ignore(self, job: Import, prefixes: tuple[str, ...], why: str) -> None:
        """Leave tensors out, and say why in the report."""
        for key in [key for key in job.new if key.startswith(prefixes)]:
            del job.new[key]
            name = self.file_key(key, official=job.info.layout == "official")
            job.report.ignored[name] = why

    # --- writing ----------------------------------------------------------------------------

    def to_official(self, state: Mapping[str, Tensor], layout: Layout = "pretrained") -> State:
        """Weights under the official keys.

        Args:
            state: `Encoder.state_dict()`, or what `to_ours` returned.
            layout: `pretrained`, which the official fine-tuning code reads: encoder and
                pretraining heads, or decoder. `fine-tuned`: encoder and classifier.

        Raises:
            NoReconstruction: The pretrained layout needs a pixel head, and there is none.
            CheckpointError: The fine-tuned layout needs a classifier, and there is none.
        """
        if layout == "pretrained" and self.pixel_head and not self.has_pixel_head(state):
            raise NoReconstruction(
                f"these weights have no trained {self.pixel_head}, which the pretrained layout "
                "needs; export the fine-tuned layout, or start from a checkpoint pretrained with "
                "reconstruction"
            )
        if layout == "fine-tuned" and "head.weight" not in state:
            raise CheckpointError(
                "these weights have no classifier, which the fine-tuned layout needs; "
                "export the pretrained layout"
            )
        left_out = CLASSIFIER if layout == "pretrained" else self.pretraining_only
        official = {
            self.file_key(key, official=True): value
            for key, value in state.items()
            if key not in self.bookkeeping and not key.startswith((*left_out, *PROBE))
        }
        official = self.complete(official, state, layout)
        return {key: value.detach().cpu().clone() for key, value in official.items()}

    def complete(self, official: State, state: Mapping[str, Tensor], layout: Layout) -> State:
        """Add what only the official file has."""
        return official

    def beside(self, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
        """What an official file holds beside the weights.

        Args:
            state: `Encoder.state_dict()`.
            settings: The encoder's.
        """
        return {}


def family_name(state: Mapping[str, Any]) -> str | None:
    """`AudioMAE`, `SSAST`, `BEATs`, `EAT`, or None for weights of none of these."""
    keys = inner_of(state)
    for name, marks in MARKS.items():
        if any(key.endswith(marks) for key in keys):
            return name
    roots = [key.removesuffix("cls_token") for key in keys if key.endswith("cls_token")]
    if any(root + "dist_token" not in keys for root in roots):
        return "AudioMAE"
    return "SSAST" if any(key.endswith("dist_token") for key in keys) else None


def load_pretrained(model: Encoder, path: str | Path) -> ImportReport:
    """Fill an encoder from an official file of its family or a checkpoint of ours.

    Args:
        model: The encoder to fill, in place.
        path: The file.

    Raises:
        CheckpointError: The file cannot be used, or holds another encoder's weights.
    """
    state = read_state(path, pretrained=True)
    with malformed(str(path)):
        report: ImportReport = model.import_weights(state, str(path))
        return report


def load_own(model: Encoder, state: Mapping[str, Any], where: str) -> ImportReport:
    """Fill an encoder that has no official layout from a checkpoint of one of its runs.

    The classifier is taken if its shape agrees, and stays fresh otherwise. A pixel probe is left
    out, because it was fitted on another state of the encoder.

    Args:
        model: Filled in place.
        state: Content of the file.
        where: The file, for errors.

    Raises:
        CheckpointError: It is no checkpoint of a run with this encoder. The model is unchanged.
    """
    weights = state.get("state_dict")
    if not isinstance(weights, Mapping):
        raise CheckpointError(
            f"{where}: holds no `state_dict`, and {type(model).__name__} reads only checkpoints of "
            "its own runs: give RUN/checkpoints/last.ckpt"
        )
    check_weights(weights, where)
    new = {k.removeprefix(RUN_PREFIX): v for k, v in weights.items() if k.startswith(RUN_PREFIX)}
    report = ImportReport(where, f"checkpoint of {type(model).__name__}")
    report.ignored = {
        key: "belongs to the training run, not the model"
        for key in weights
        if not key.startswith(RUN_PREFIX)
    }
    if model.num_classes:
        model.adopt_heads(new)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    for key in list(new):
        fits = key in shapes and shapes[key] == new[key].shape
        if key.startswith(PROBE) or (key.startswith(CLASSIFIER) and not fits):
            report.ignored[RUN_PREFIX + key] = "belongs to the run that wrote the file"
            del new[key]
    optional = dict.fromkeys(CLASSIFIER, "the classifier is new")
    report.missing = check_keys(shapes, new, where, optional=optional)
    model.load_state_dict(new, strict=False)
    report.used = [RUN_PREFIX + key for key in new]
    return report


def check_keys(
    shapes: Mapping[str, torch.Size],
    new: Mapping[str, Tensor],
    where: str,
    *,
    optional: Mapping[str, str],
    skip: tuple[str, ...] = (),
    file_key: Any = str,
) -> dict[str, str]:
    """Refuse a key too many, too few or of another shape.

    Args:
        shapes: What the model has.
        new: What it is to take.
        where: The file, for errors.
        optional: Prefixes of keys that may be missing, and why.
        skip: Keys that are not looked for.
        file_key: Name in the file of one of our keys.

    Returns:
        Keys that are missing, and why that is allowed.

    Raises:
        CheckpointError: It names the key.
    """
    for key, value in new.items():
        if key not in shapes:
            raise CheckpointError(
                f"{where}: unexpected key {file_key(key)} (shape {list(value.shape)}), which the "
                "model does not have; give a file of the same encoder, as it was saved"
            )
        if value.shape != shapes[key]:
            raise CheckpointError(
                f"{where}: {file_key(key)} has shape {list(value.shape)} and the model needs "
                f"{list(shapes[key])}; give a file that fits the model's settings"
            )
    missing: dict[str, str] = {}
    for key in (key for key in shapes if key not in new):
        reason = next((why for prefix, why in optional.items() if key.startswith(prefix)), None)
        if reason is not None:
            missing[key] = reason
        elif key not in skip:
            raise CheckpointError(
                f"{where}: {file_key(key)} (shape {list(shapes[key])}) is missing from the file; "
                "it is incomplete, get it again"
            )
    return missing


def inner_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a file has under `state_dict` or `model`, or itself, without `module.` before keys."""
    inner = state.get("state_dict", state.get("model", state))
    if not isinstance(inner, Mapping):
        inner = state
    return {str(key).removeprefix("module."): value for key, value in inner.items()}
