"""The two sizes of HTSAT, CLAP's audio tower (arXiv:2202.00874), that LAION publishes."""

from dataclasses import dataclass
from typing import Literal

Arch = Literal["HTSAT-tiny", "HTSAT-base"]
Space = Literal["map", "joint"]

HEADS = (4, 8, 16, 32)
JOINT = 512
"""Width of the space that sounds and texts share."""


@dataclass(frozen=True)
class Shape:
    """Size of a tower: width of the first stage, which doubles at each, and blocks a stage."""

    first: int
    depths: tuple[int, int, int, int]

    @property
    def width(self) -> int:
        """Features D of a cell of the last map."""
        return self.first * 8


SHAPES: dict[Arch, Shape] = {
    "HTSAT-tiny": Shape(96, (2, 2, 6, 2)),
    "HTSAT-base": Shape(128, (2, 2, 12, 2)),
}
