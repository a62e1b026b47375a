"""Base of all teachers: a frozen network that turns a waveform into a feature map."""

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from peas.errors import DataError
from peas.teachers.grid import Extent


class Teacher(ABC):
    """Takes waveforms at its own rate; returns a map with one feature vector a time-frequency bin.

    A teacher is not an `nn.Module`: the model that holds one does not train it, move it or save it.
    Its network is frozen, in eval mode for each call, and runs in float32 with autocast off. It is
    built on first use, as the command line's parser would bury an error of its files.

    Args:
        rate: Sampling rate of its input in Hz.
        width: Number of features D of a bin.
        extent: Position of the bins in time and frequency.
        name: Name in results.

    Attributes:
        rate: As given.
        width: As given.
        extent: As given.
        name: As given.
    """

    def __init__(self, *, rate: int, width: int, extent: Extent, name: str) -> None:
        self.rate = rate
        self.width = width
        self.extent = extent
        self.name = name

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Itself: weight averaging copies a task, and needs no second teacher."""
        return self

    @torch.no_grad()
    def __call__(self, waveform: Tensor, length: Tensor) -> Tensor:
        """Map of each clip.

        Args:
            waveform: `[B, S]` at `rate`, on the device of the network.
            length: `[B]` samples of sound of each clip.

        Returns:
            `[B, D, F', T']` float32 without gradient. T' depends on S alone.

        Raises:
            DataError: If a clip's map is not finite.
        """
        if waveform.ndim != 2 or length.shape != waveform.shape[:1]:
            raise ValueError(
                f"a teacher takes waveform [B, S] and length [B], not {list(waveform.shape)} "
                f"and {list(length.shape)}"
            )
        self.network.eval()
        with torch.autocast(waveform.device.type, enabled=False):
            maps = self.features(waveform.float(), length.to(waveform.device))
        finite = maps.flatten(1).isfinite().all(dim=1)
        if not finite.all():
            rows = (~finite).nonzero().flatten().tolist()
            raise DataError(
                f"the teacher's map of clip {', '.join(map(str, rows))} of the batch holds NaN or "
                "infinity: the clip's sound does, or it is louder than float32 can square; "
                "find it with `peas data verify`, and repair or leave out that clip"
            )
        return maps

    @functools.cached_property
    def network(self) -> nn.Module:
        """All weights, frozen, in eval.

        Raises:
            CheckpointError: If they cannot be read.
            ConfigError: If a setting or a missing package forbids it.
        """
        return self.build().requires_grad_(False).eval()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and settings that decide a map: equal on every device and run."""
        digest = hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode())
        for name, value in sorted(self.weights().items()):
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> Self:
        """Move the network and return the teacher itself."""
        self.network.to(device)
        return self

    def weights(self) -> Mapping[str, Tensor]:
        """All tensors that decide a map, by name."""
        return self.network.state_dict()

    @abstractmethod
    def build(self) -> nn.Module:
        """Make the network with its weights, on the CPU."""

    @abstractmethod
    def settings(self) -> Mapping[str, object]:
        """All plain settings that decide a map."""

    @abstractmethod
    def features(self, waveform: Tensor, length: Tensor) -> Tensor:
        """`[B, D, F', T']` for float32 sound `[B, S]`; no gradient is recorded."""
