"""Normalisation of log-mels by the statistics of the data set."""

from typing import Literal

import torch
from torch import Tensor, nn


class Normalisation(nn.Module):
    """Mean and standard deviation as buffers of the state dict, so that checkpoints carry them.

    Attributes:
        mean: Mean of the data set's bins before normalisation; NaN until it is set.
        std: Their standard deviation; NaN until it is set.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(float("nan"), dtype=torch.float32))

    def set_statistics(self, mean: float | None = None, std: float | None = None) -> None:
        """Set the statistics that are not None.

        Raises:
            ValueError: `std` is not positive.
        """
        if std is not None and std <= 0:
            raise ValueError(f"std must be positive, not {std}")
        for buffer, value in ((self.mean, mean), (self.std, std)):
            if value is not None:
                buffer.fill_(value)

    def normalise(self, log_mel: Tensor) -> Tensor:
        """Subtract the mean and divide by twice the standard deviation, as SSAST does."""
        return self.normalise_(log_mel.clone())

    def normalise_(self, log_mel: Tensor) -> Tensor:
        """The same in place."""
        return log_mel.sub_(self.mean).div_(2 * self.std)

    def fill_value(self, kind: Literal["raw_zero", "zero"]) -> Tensor:
        """Normalised value of a masked bin.

        Args:
            kind: "raw_zero" is 0.0 before normalisation, as the masks and padding of the official
                loader. "zero" is 0.0 after it, the mean of the data set.

        Returns:
            Scalar float32 on the module's device.
        """
        if kind == "raw_zero":
            return self.normalise(torch.zeros_like(self.mean))
        if kind == "zero":
            return torch.zeros_like(self.mean)
        raise ValueError(f"kind must be 'raw_zero' or 'zero', not {kind!r}")
