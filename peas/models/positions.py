"""Fixed sine and cosine positions of AudioMAE's patches, in both rasters."""

from typing import Literal

import torch
from torch import Tensor

from peas.models.patches import Pair

Raster = Literal["stored", "geometric"]
"""`stored`: AudioMAE's released tables. Its tokens run over 64 x 8 patches (time x frequency), its
positions over 8 rows of 64, so token i has the position (i // 64, i % 64). `geometric`: the
position of a token is its place, (time, frequency), as in its models with overlapping patches."""

STORED_COLUMNS = 64
"""Columns of the stored raster: the time patches of ten seconds."""


def official_raster(patch: Pair, stride: Pair) -> Raster:
    """Raster that the official constructor makes: only its overlapping patches have their places.

    Without overlap it takes the patches along frequency for the rows; with overlap it takes the
    convolution's own rows and columns, (time, frequency).

    Args:
        patch: Height and width of a patch, (mel bins, frames).
        stride: Step between patches.
    """
    return "stored" if tuple(stride) == tuple(patch) else "geometric"


def position_table(
    width: int, time_patches: int, freq_patches: int, raster: Raster = "stored"
) -> Tensor:
    """Table of a class token (zeros) and the patches, time-major.

    A vector's first half encodes the column and its second half the row, each as all sines, then
    all cosines, with base 10000. A token's position follows from its index or place alone, so the
    table of a shorter clip is the beginning of a longer one's: this is how weights go from ten
    seconds to five.

    Args:
        width: Width D, a multiple of 4.
        time_patches: Patches along time.
        freq_patches: Patches along frequency.
        raster: `stored` is equal to the official constructor's at 64 x 8 patches; for other
            lengths it goes on with rows of 64, as the official files must be cut.

    Returns:
        `[1, 1 + N, D]` float32.
    """
    index = torch.arange(time_patches * freq_patches, dtype=torch.float64)
    columns = STORED_COLUMNS if raster == "stored" else freq_patches
    row, column = index.div(columns, rounding_mode="floor"), index % columns
    table = torch.cat((_sines(width // 2, column), _sines(width // 2, row)), dim=1)
    return torch.cat((torch.zeros(1, width), table.float()))[None]


def _sines(width: int, place: Tensor) -> Tensor:
    rate = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle = place[:, None] * rate
    return torch.cat((angle.sin(), angle.cos()), dim=1)


def raster_of(table: Tensor, freq_patches: int) -> Raster | None:
    """Raster that a table was made with, or None when it is neither.

    Args:
        table: `[1, 1 + N, D]`.
        freq_patches: Patches along frequency.
    """
    count = table.shape[1] - 1
    if count % freq_patches or table.shape[2] % 4:
        return None
    rasters: tuple[Raster, Raster] = ("stored", "geometric")
    for raster in rasters:
        made = position_table(table.shape[2], count // freq_patches, freq_patches, raster)
        if torch.allclose(table.detach().cpu().float(), made, atol=1e-5, rtol=0):
            return raster
    return None
