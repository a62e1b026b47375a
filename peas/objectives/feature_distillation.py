"""MAM-CLAP's objective: a teacher's features of visible and masked patches are predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from peas.data.batch import Batch
from peas.errors import ConfigError, DataError
from peas.evaluation.baselines import BaselineError
from peas.models.encoder import Encoder, Need
from peas.objectives.base import BuildInfo, Objective, Rows, Term, View, patch_errors
from peas.teachers import Teacher
from peas.teachers.cache import TargetCache
from peas.teachers.grid import Extent, TargetGrid, target_matrix

if TYPE_CHECKING:
    from peas.data.module import ClipDataModule
import torch.nn.functional as F
from torch import nn

FeatureLoss = Literal["mse", "l2", "frobenius", "cosine", "smooth_l1"]
TargetNorm = Literal["l2", "layer", "none"]


class FeatureHead(nn.Module):
    """The head h of MAM-CLAP: a linear layer and a LayerNorm, shared by visible and masked patches.

    Args:
        width: Width of its tokens.
        features: Width D of the teacher's features.
        unit: Whether the targets have unit length. The norm's scale then starts at 1 / sqrt(D);
            otherwise thousands of steps are spent on shrinking it.
    """

    def __init__(self, width: int, features: int, *, unit: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(width, features)
        self.norm = nn.LayerNorm(features, eps=1e-6)
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        if unit:
            nn.init.constant_(self.norm.weight, features**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Y: `[..., W]` to `[..., D]`."""
        features: Tensor = self.norm(self.fc(tokens))
        return features


class FeatureDistillation(Objective):
    """A teacher's features at every patch (SupMAM-CLAP, equation 1).

    Logs `val/feature_mse` beside `val/baseline_feature_mse`, that of the best constant feature.

    Args:
        weight: Of the loss.
        teacher: Runs on every batch. Null with `targets`.
        targets: Folder of maps written by `peas data targets`, instead of a live teacher.
            With both, the cache must be that teacher's.
        grid: How patches find the teacher's bins, see `peas.teachers.grid`.
        norm: Of a target: `l2` (unit length), `layer`, or `none`.
        loss: `mse`, `l2`, `frobenius` (the printed norm), `cosine` or `smooth_l1`.
        visible_path: Y of visible patches: `direct`, from the encoder's output through the
            decoder's embedding, or `decoder`, from its last block as for the masked ones.
        padding: `exclude` patches without sound from the loss, or `keep` them.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"decoder", "clips"})
    baselines = ("feature_mse", "baseline_feature_mse")
    unsaved = ("teacher", "targets")
    head: FeatureHead
    meter: BaselineError

    def __init__(
        self,
        weight: float = 1.0,
        teacher: Teacher | None = None,
        targets: str | None = None,
        grid: TargetGrid = "physical",
        norm: TargetNorm = "l2",
        loss: FeatureLoss = "mse",
        visible_path: Literal["direct", "decoder"] = "direct",
        padding: Literal["exclude", "keep"] = "exclude",
    ) -> None:
        super().__init__(weight)
        if visible_path not in ("direct", "decoder"):
            raise ConfigError(
                f"`FeatureDistillation.init_args.visible_path` is {visible_path!r}: choose "
                "direct or decoder"
            )
        if padding not in ("exclude", "keep"):
            raise ConfigError(
                f"`FeatureDistillation.init_args.padding` is {padding!r}: choose exclude or keep"
            )
        self.teacher, self.folder = teacher, targets
        self.grid: TargetGrid = grid
        self.norm: TargetNorm = norm
        self.loss: FeatureLoss = loss
        self.visible_path, self.padding = visible_path, padding
        self.targets: FeatureTargets | None = None
        self.width = 0

    def prepare(self, data: Any) -> None:
        """Opens teacher or cache and checks that every clip has a target."""
        self.targets = FeatureTargets(self.teacher, self.folder, self.grid, self.norm)
        self.targets.prepare(data)
        self.width = self.targets.width

    def description(self) -> str:
        """Name and fingerprint of the teacher."""
        if self.targets is None:
            return ""
        return f"{self.targets.name}, {self.targets.fingerprint[:12]}…"

    def fingerprint(self) -> dict[str, Any]:
        """Whose features: width and fingerprint of the teacher."""
        if self.targets is None:
            return {}
        return {"width": self.targets.width, "fingerprint": self.targets.fingerprint}

    def build(self, info: BuildInfo) -> None:
        """Makes the head h and the meter."""
        self.head = FeatureHead(info.decoder_width, self.width, unit=self.norm == "l2")
        self.meter = BaselineError(self.width)

    def read(self, batch: Batch) -> None:
        """Adds the cached maps of the teacher."""
        if self.targets is not None:
            self.targets.read(batch)

    def move(self, device: torch.device) -> None:
        """Puts a live teacher beside the model."""
        if self.targets is not None:
            self.targets.move(device)

    def forward(self, view: View) -> Term:
        """The error of the predicted features."""
        assert self.targets is not None
        features = self.targets.of(view.batch, view.model)
        y = self._predicted(view)
        counted = torch.ones_like(view.masked) if self.padding == "keep" else view.sound
        loss = feature_loss(y, features, view.masked, counted, self.loss)
        rows = Rows(patch_errors(y.detach(), features), features, view.sound)
        return Term(loss, rows=rows, predicted=y.detach())

    def _predicted(self, view: View) -> Tensor:
        """Y of every patch, `[B, N, D]`."""
        decoded = view.require_decoded()
        if self.visible_path == "direct":
            own = view.model.to_decoder(view.visible_tokens).to(decoded.dtype)
            decoded = decoded.scatter(1, view.visible.unsqueeze(-1).expand_as(own), own)
        features: Tensor = self.head(decoded)
        return features

    def evaluate(self, term: Term) -> None:
        """Counts patches of real sound."""
        if term.rows is not None:
            self.meter.update(*term.rows)

    def baseline(self) -> dict[str, Tensor]:
        """`feature_mse` and `baseline_feature_mse`."""
        metrics = self.meter.compute()
        self.meter.reset()
        return {
            "feature_mse": metrics["valid_mse"],
            "baseline_feature_mse": metrics["baseline_mse"],
        }


class FeatureTargets:
    """The targets T of a batch's patches.

    It is no module: a teacher is never trained, saved or given to an optimiser.

    Args:
        teacher: Runs on each batch; with a cache it only names whose maps those must be.
        folder: Folder of a cache.
        grid: How patches find their bins.
        norm: What each target gets.

    Attributes:
        cache: The open cache, or None.
        fingerprint: Of the teacher's weights and front end, or of the ready maps.
        width: Width D of the targets.

    Raises:
        ConfigError: There is neither a teacher nor a cache.
        DataError: The cache cannot be used, or another teacher made it.
    """

    def __init__(
        self, teacher: Teacher | None, folder: str | None, grid: TargetGrid, norm: TargetNorm
    ) -> None:
        if teacher is None and folder is None:
            raise ConfigError(
                "`model.init_args.objectives` has a FeatureDistillation with nothing to distil: "
                "set its `targets` to a folder of `peas data targets`, or its `teacher` to one "
                "such as peas.teachers.LaionClapTeacher"
            )
        self.teacher, self.grid, self.norm = teacher, grid, norm
        self.cache = None if folder is None else TargetCache(folder)
        if self.cache is not None:
            self.fingerprint, self.width = self.cache.fingerprint, self.cache.shape[2]
            if teacher is not None and teacher.fingerprint != self.fingerprint:
                raise DataError(
                    f"{folder}: holds maps of another teacher ({self.cache.teacher}, "
                    f"{self.fingerprint[:12]}…) than the objective's `teacher` "
                    f"({teacher.name}, {teacher.fingerprint[:12]}…): write them again with `peas "
                    "data targets`, or set `teacher` to null"
                )
        else:
            assert teacher is not None
            self.fingerprint, self.width = teacher.fingerprint, teacher.width
        self._samples = 0
        self._matrices: dict[tuple[int, ...], Tensor] = {}

    @property
    def name(self) -> str:
        """What results call the teacher."""
        source = self.teacher if self.cache is None else None
        return source.name if source is not None else str(self.cache and self.cache.teacher)

    @property
    def extent(self) -> Extent:
        """Position of a map's bins, in seconds and Hz."""
        if self.cache is not None:
            return self.cache.extent
        assert self.teacher is not None
        return self.teacher.extent

    def prepare(self, data: ClipDataModule) -> None:
        """Before training: checks that every clip has a map, or has clips read for the teacher.

        Raises:
            ConfigError: Clips are mixed, so that no map belongs to them.
            DataError: Clips have no map.
        """
        if data.mixup > 0:
            raise ConfigError(
                f"data.init_args.mixup is {data.mixup}, and a teacher's features belong to clips "
                "as they are: set it to 0"
            )
        from peas.data.module import SPLITS
        from peas.teachers.target_writer import teacher_samples

        if self.cache is None:
            assert self.teacher is not None
            data.teacher_rate = self.teacher.rate
            self._samples = teacher_samples(data.frames, self.teacher.rate)
            return
        for split in SPLITS[:2]:
            self.cache.require(data.clips(split).ids)

    def move(self, device: torch.device) -> None:
        """Puts the teacher where the batches will be."""
        if self.teacher is not None and self.cache is None:
            self.teacher.to(device)

    def read(self, batch: Batch) -> None:
        """Adds the cached `teacher_map` to a batch that is still on the CPU."""
        if self.cache is not None:
            batch["teacher_map"] = self.cache.take(batch["id"])

    def of(self, batch: Batch, model: Encoder) -> Tensor:
        """Targets `[B, N, D]` float32 of the model's patches, in the order of its tokens."""
        if self.cache is None:
            assert self.teacher is not None
            # A map's columns follow from the samples: always those of the student's input.
            sound = batch["teacher_waveform"][:, : self._samples]
            sound = functional.pad(sound, (0, self._samples - sound.shape[1]))
            maps = self.teacher(sound, batch["teacher_length"].clamp(max=self._samples))
        else:
            maps = batch["teacher_map"]
        with torch.autocast(maps.device.type, enabled=False):
            return feature_targets(maps, self._matrix(maps, model), self.norm)

    def _matrix(self, maps: Tensor, model: Encoder) -> Tensor:
        rows, columns = model.grid
        key = (maps.shape[3], columns, rows)
        if key not in self._matrices:
            made = target_matrix(
                self.extent,
                maps.shape[3],
                time_patches=columns,
                freq_patches=rows,
                patch_frames=model.patch[1],
                patch_mels=model.patch[0],
                mels=model.mels,
                method=self.grid,
            )
            if not model.time_major:
                made = made.view(columns, rows, -1).transpose(0, 1).flatten(0, 1)
            self._matrices[key] = made.to(maps.device)
        return self._matrices[key]


def feature_targets(maps: Tensor, matrix: Tensor, norm: TargetNorm = "l2") -> Tensor:
    """A teacher's map at the patches: T of SupMAM-CLAP's equation 1.

    Args:
        maps: `[B, D, F', T']`.
        matrix: `[N, F' * T']`, whose rows sum to 1.
        norm: What each patch's target gets: `l2`, unit length; `layer`, mean 0 and variance 1
            over D; or `none`.

    Returns:
        `[B, N, D]` float32.
    """
    flat = maps.flatten(2).float()
    targets = (flat @ matrix.t().to(flat)).transpose(1, 2)
    if norm == "l2":
        return F.normalize(targets, dim=-1)
    if norm == "layer":
        return F.layer_norm(targets, targets.shape[-1:])
    return targets


def feature_loss(
    predictions: Tensor,
    targets: Tensor,
    masked: Tensor,
    counted: Tensor,
    kind: FeatureLoss = "mse",
) -> Tensor:
    """Loss of features at visible and masked patches: SupMAM-CLAP's equation 1.

    The visible and the masked patches are two sets; each is averaged by its own number and the
    two are added, so at 20 % masked a masked patch weighs four times a visible one. Means are per
    clip, then over the clips. A set without a counted patch adds nothing.

    Args:
        predictions: Y, `[B, N, D]`; compared in float32 whatever their precision.
        targets: T, `[B, N, D]`; no gradient reaches them.
        masked: `[B, N]` bool.
        counted: `[B, N]` bool, patches that count: those on sound.
        kind: `mse`, squared error by element; `l2`, Euclidean distance of each patch;
            `frobenius`, the printed norm over the set divided by its number; `cosine`, one
            minus the similarity; `smooth_l1` by element.
    """
    y, t = predictions.float(), targets.detach().float()
    if kind == "cosine":
        errors = 1 - F.cosine_similarity(y, t, dim=-1)
    elif kind == "smooth_l1":
        errors = F.smooth_l1_loss(y, t, reduction="none").mean(dim=-1)
    elif kind == "mse":
        errors = (y - t).square().mean(dim=-1)
    else:
        errors = (y - t).square().sum(dim=-1)
    total = errors.new_zeros(())
    for part in (counted & ~masked, counted & masked):
        count = part.sum(dim=1)
        if kind == "l2":
            # The small term keeps the root's slope finite where a patch is met exactly.
            sums = ((errors + 1e-12).sqrt() * part).sum(dim=1)
        elif kind == "frobenius":
            sums = ((errors * part).sum(dim=1) + 1e-12).sqrt()
        else:
            sums = (errors * part).sum(dim=1)
        clips = (count > 0).sum().clamp(min=1)
        total = total + (sums * (count > 0) / count.clamp(min=1)).sum() / clips
    return total
