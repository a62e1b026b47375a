"""Where MAM-CLAP's targets come from: a teacher that listens along, or a cache of its maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from peas.data.batch import Batch
from peas.errors import ConfigError, DataError
from peas.models.encoder import Encoder
from peas.objectives.losses import TargetNorm, feature_targets
from peas.teachers import Teacher
from peas.teachers.cache import TargetCache
from peas.teachers.grid import Extent, TargetGrid, target_matrix

if TYPE_CHECKING:
    from peas.data.module import ClipDataModule


class FeatureTargets:
    """The targets T of a batch's patches.

    It is no module: a teacher is never trained, saved or given to an optimiser.

    Args:
        teacher: Runs on each batch; with a cache it only says whose maps those must be.
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
                    f"({teacher.name}, {teacher.fingerprint[:12]}…): write them anew with `peas "
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
        """Where the bins of a map lie."""
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
        from peas.teachers.teaching import heard_samples

        if self.cache is None:
            assert self.teacher is not None
            data.teacher_rate = self.teacher.rate
            self._samples = heard_samples(data.frames, self.teacher.rate)
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
            # A map's columns follow from the samples: always those that the student hears.
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
