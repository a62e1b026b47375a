"""A teacher: sound in, a map of features out. Here without a network of learnt weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from peas.teachers import Teacher
from peas.teachers.grid import Extent

SAMPLES = 320
"""Samples of a column of the map: 20 ms at 16 kHz."""


class BandEnergies(Teacher):
    """Log energies of equally wide bands, mixed by a fixed random projection.

    Args:
        bands: Rows of the map.
        width: Features of a bin.
        seed: Of the projection.
    """

    def __init__(self, bands: int = 4, width: int = 8, seed: int = 0) -> None:
        self.bands, self.seed = bands, seed
        edges = tuple(8000.0 * band / bands for band in range(bands + 1))
        # The centre of the first column, and the step to the next, in seconds.
        extent = Extent(first_centre=0.01, step=0.02, freq_edges=edges)
        super().__init__(rate=16_000, width=width, extent=extent, name="band energies")

    def build(self) -> nn.Module:
        """The projection: of a band's level, its square and its change in time."""
        network = nn.Linear(3, self.width)
        source = torch.Generator().manual_seed(self.seed)
        network.weight.data = torch.randn(self.width, 3, generator=source)
        network.bias.data.zero_()
        return network

    def settings(self) -> Mapping[str, object]:
        """All that decides a map beside the weights."""
        return {"bands": self.bands}

    def features(self, waveform: Tensor, length: Tensor) -> Tensor:
        """`[B, D, F', T']`."""
        columns = waveform.unfold(1, SAMPLES, SAMPLES)
        power = torch.fft.rfft(columns).abs().square()[..., 1:]
        level = power.unflatten(2, (self.bands, -1)).mean(dim=3).clamp(min=1e-8).log()
        change = level.diff(dim=1, prepend=level[:, :1])
        bins = torch.stack((level, level.square() / 10, change), dim=3)
        return self.network(bins).permute(0, 3, 2, 1)
