"""A linear pixel head for encoders that came without one: what their tokens keep of a patch.

MAM-CLAP, SupMAM-CLAP and fine-tuned files have nothing that turns tokens back into a spectrogram,
and PEAS needs it. A linear layer from each patch token to that patch, fitted on the frozen encoder
by least squares with nothing masked, takes its place. Its error is another quantity than that of a
pretrained head, which drew masked patches: it is large where the tokens have thrown away what the
patch looked like.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

RIDGE = 1e-4
"""Weight of the penalty, in units of the tokens' mean variance: little more than a safeguard."""


class PixelProbe(nn.Module):
    """A fixed linear layer from a patch token to the patch in log-mel units.

    It is made of buffers: no optimiser moves it, and it is saved with the model.

    Args:
        width: Width D of a token.
        bins: Bins P of a patch.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, width: int, bins: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(bins, width))
        self.register_buffer("bias", torch.zeros(bins))

    def forward(self, tokens: Tensor) -> Tensor:
        """Patches `[..., P]` of tokens `[..., D]`."""
        return nn.functional.linear(tokens, self.weight, self.bias)


class FittedProbe(NamedTuple):
    """What `ProbeSums.solve` found."""

    probe: PixelProbe
    error: float
    """Mean squared error over the bins that it was fitted on."""
    variance: float
    """Their mean squared distance from the mean patch: the error of knowing nothing."""
    patches: int
    """Patches that it was fitted on."""


class ProbeSums:
    """Sums over tokens and patches, from which ridge regression follows in closed form.

    One pass over the clips in any order and on any number of processes gives the same layer: no
    epochs, no learning rate, no draws.

    Args:
        width: Width D of a token.
        bins: Bins P of a patch.
        device: Where the sums are kept, in float64.
    """

    def __init__(self, width: int, bins: int, device: torch.device) -> None:
        # With a column of ones each, so that sums and number are parts of the products.
        self.tokens = torch.zeros(width + 1, width + 1, dtype=torch.float64, device=device)
        self.both = torch.zeros(width + 1, bins, dtype=torch.float64, device=device)
        self.squares = torch.zeros(1, dtype=torch.float64, device=device)

    def add(self, tokens: Tensor, patches: Tensor) -> None:
        """Adds clips: tokens `[B, N, D]` and the patches `[B, N, P]` that they stand for."""
        x, y = tokens.flatten(0, 1).double(), patches.flatten(0, 1).double()
        x = torch.cat((x.new_ones(len(x), 1), x), dim=1)
        self.tokens += x.T @ x
        self.both += x.T @ y
        self.squares += y.square().sum()

    def gather(self) -> None:
        """Adds up the sums of all processes."""
        for total in (self.tokens, self.both, self.squares):
            torch.distributed.all_reduce(total)

    def solve(self, ridge: float = RIDGE) -> FittedProbe:
        """The layer of least squared error; the bias is not penalised.

        Args:
            ridge: As `RIDGE`.
        """
        count = self.tokens[0, 0]
        mean_x, mean_y = self.tokens[0, 1:] / count, self.both[0] / count
        xx = self.tokens[1:, 1:] / count - torch.outer(mean_x, mean_x)
        xy = self.both[1:] / count - torch.outer(mean_x, mean_y)
        yy = float(self.squares / count - mean_y.square().sum())
        # Encoders with directions that no token uses leave `xx` singular.
        penalty = ridge * xx.diagonal().mean() + 1e-12
        regular = xx + penalty * torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
        weight = torch.linalg.solve(regular, xy)
        error = yy - float((2 * weight * xy).sum() - (weight * (xx @ weight)).sum())
        bins = len(mean_y)
        probe = PixelProbe(len(mean_x), bins).to(weight.device)
        probe.weight.copy_(weight.T)
        probe.bias.copy_(mean_y - mean_x @ weight)
        return FittedProbe(probe, error / bins, yy / bins, int(count))
