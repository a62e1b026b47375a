"""A masking strategy of fine-tuning whose masks are no blocks: round holes."""

import torch
from torch import Tensor

from peas.callbacks import MaskingContext, MaskingStrategy


class RoundHoles(MaskingStrategy):
    """Masks discs in the time-frequency plane.

    Args:
        holes: Number of discs in a clip; they may overlap.
        radius: Largest radius in bins; each disc's is uniform from half of it on.
    """

    def __init__(self, holes: int = 3, radius: float = 12.0) -> None:
        super().__init__(stage="after_noise")
        self.holes, self.radius = holes, radius

    def mask(self, log_mel: Tensor, valid: Tensor, context: MaskingContext) -> Tensor:
        """Bins inside a disc."""
        _, frames, bins = log_mel.shape
        rand = context.rand("discs", self.holes, 3)[..., None, None]
        time = torch.arange(frames, device=log_mel.device)[:, None] - rand[:, :, 0] * frames
        freq = torch.arange(bins, device=log_mel.device) - rand[:, :, 1] * bins
        radius = self.radius * (1 + rand[:, :, 2]) / 2
        return (time.square() + freq.square() < radius.square()).any(dim=1)
