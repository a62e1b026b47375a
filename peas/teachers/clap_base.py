"""CLAP as a teacher: what its two implementations share."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast, get_args

import torch
from torch import Tensor, nn

from peas.errors import CheckpointError, ConfigError
from peas.models.weights.clap import PROJECTION, ClapWeights, read_clap
from peas.teachers import htsat
from peas.teachers.base import Teacher
from peas.teachers.htsat import JOINT, SHAPES, Arch, Fill, Space, clap_log_mel, windows


class ClapTeacher(Teacher):
    """CLAP's audio tower up to its last map, `[B, D, 2, 32 W]`, row 0 the low frequencies.

    A clip is cut into W windows of 10 s (one up to 10.3 s), whose maps are concatenated in time.
    Bins after a clip's end are there too; a target grid does not use them.

    Args:
        checkpoint: LAION's `.pt` file or a hub's model folder; null for random weights; "" is not
            given.
        arch: Size of the tower.
        space: `map` or `joint`.
        fill: `silence` or `repeat`.
        seed: Of random weights.
    """

    def __init__(
        self, checkpoint: str | None, arch: Arch, space: Space, fill: Fill, seed: int
    ) -> None:
        for name, value, choices in (
            ("arch", arch, get_args(Arch)),
            ("space", space, get_args(Space)),
            ("fill", fill, get_args(Fill)),
        ):
            if value not in choices:
                raise ConfigError(f"teacher: {name} is {value!r}; choose {', '.join(choices)}")
        source = "random weights" if checkpoint is None else Path(checkpoint).name
        super().__init__(
            rate=htsat.RATE,
            width=JOINT if space == "joint" else SHAPES[arch].width,
            extent=htsat.extent(),
            name=f"CLAP {arch}, {source}{', joint space' if space == 'joint' else ''}",
        )
        self.checkpoint, self.seed = checkpoint, seed
        self.arch, self.space, self.fill = arch, space, fill

    def build(self) -> nn.Module:
        """Make the tower and fill it from its file."""
        # The parser makes null of an argument without a default, and null must be typed.
        if self.checkpoint == "":
            raise ConfigError(
                "teacher: checkpoint is not given; give checkpoint: FILE (or null, when typed, for "
                "random weights that serve tests alone)"
            )
        weights = None if self.checkpoint is None else read_clap(self.checkpoint)
        if weights is not None and weights.arch != self.arch:
            raise CheckpointError(
                f"{weights.path}: holds {weights.arch}, but the teacher's arch is {self.arch}; "
                f"set arch: {weights.arch}, or give a file of {self.arch}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            network = self.tower()
        if weights is None:
            warnings.warn(
                "the teacher's checkpoint is null: its weights are random and its targets mean "
                "nothing; give checkpoint: FILE for anything but a test",
                stacklevel=2,
            )
        else:
            self.load(network, weights)
        return network

    def settings(self) -> Mapping[str, object]:
        """Front end, filling and space."""
        return htsat.SETTINGS | {"teacher": "clap", "fill": self.fill, "space": self.space}

    def weights(self) -> Mapping[str, Tensor]:
        """Weights that decide the map; the projection only where it is used."""
        return {
            key: value
            for key, value in self.named_weights().items()
            if value.is_floating_point()
            and (self.space == "joint" or not key.startswith(PROJECTION))
        }

    def features(self, waveform: Tensor, length: Tensor) -> Tensor:
        """`[B, D, 2, 32 W]` for `[B, S]` at 48 kHz; see `Teacher`."""
        cut = windows(waveform, length, self.fill)
        bins = self.last_map(clap_log_mel(cut.flatten(0, 1)))
        if self.space == "joint":
            bins = self.projection(bins.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        batch, count = cut.shape[:2]
        bins = bins.reshape(batch, count, *bins.shape[1:])
        return bins.permute(0, 2, 3, 1, 4).flatten(3)

    @property
    def projection(self) -> Callable[[Tensor], Tensor]:
        """The audio projection, which takes and gives features in the last dimension."""
        return cast(nn.Module, self.network.audio_projection)

    @abstractmethod
    def last_map(self, log_mel: Tensor) -> Tensor:
        """Last map `[B, D, 2, 32]` for `[B, 1001, 64]`."""

    @abstractmethod
    def named_weights(self) -> Mapping[str, Tensor]:
        """State of the network, in transformers' names, so that both teachers agree."""

    @abstractmethod
    def tower(self) -> nn.Module:
        """Tower and projection of the size, with random weights."""

    @abstractmethod
    def load(self, network: nn.Module, weights: ClapWeights) -> None:
        """Put a file's weights into the network."""
