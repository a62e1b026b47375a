"""Patch tokens back to a log-mel, G(E(x)) of PEAS's equations 1 and 2, and a linear pixel head.

MAM-CLAP, SupMAM-CLAP and fine-tuned files have no pixel head, and PEAS needs one. `PixelProbe`, a
linear layer from each patch token to its patch, fitted on the frozen encoder by least squares with
nothing masked, replaces it. Its error differs in kind from that of a pretrained head, which
predicted masked patches: it is large where the tokens have lost what the patch looked like.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from peas.errors import NoReconstruction
from peas.models.patches import (
    Grid,
    Pair,
    check_grid,
    covered,
    fold_average,
    grid_shape,
    pad_to_patch,
    unpatchify,
)

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
    epochs, no learning rate, no randomness.

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
        """Adds clips: tokens `[B, N, D]` and the their patches `[B, N, P]`."""
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


class Reconstructor(nn.Module, ABC):
    """The half of an encoder that knows its patch grid, and reconstructs.

    Attributes of the grid are those of `Encoder`.

    Attributes:
        reconstructs: Scalar bool, whether the model has a trained pixel head of its own.
        pixel_probe: A linear pixel head that was fitted afterwards and replaces any
            other; None = there is none.
    """

    time_major: ClassVar[bool] = True
    special: int = 0
    patch: Pair = (16, 16)
    stride: Pair
    mels: int = 0
    reconstructs: Tensor
    pixel_probe: PixelProbe | None

    def __init__(self) -> None:
        super().__init__()
        self.pixel_probe = None
        self.register_buffer("reconstructs", torch.tensor(False))
        self.register_load_state_dict_pre_hook(_adopt_probe)  # type: ignore[no-untyped-call]

    # --- tokens -----------------------------------------------------------------------------

    @abstractmethod
    def tokens(self, log_mel: Tensor, masked: Tensor | None = None) -> Tensor:
        """Special tokens and visible patches after the final norm, `[B, special + V, D]`.

        Args:
            log_mel: `[B, T, F]` normalised.
            masked: `[B, N]` bool, patches that do not reach the encoder, equally many of each
                clip; None = none.
        """

    def patches(self, log_mel: Tensor) -> Tensor:
        """Cuts `[B, T, F]` into `[B, N, P]`, in the order of the tokens.

        A patch is flattened in (time, frequency) row-major order; bins past the last patch are
        left out.
        """
        rows, columns = self.grid_of(log_mel.shape[1])
        high, wide = self.patch
        bins = log_mel.unfold(1, wide, self.stride[1]).unfold(2, high, self.stride[0])
        bins = bins[:, :columns, :rows]
        if not self.time_major:
            bins = bins.transpose(1, 2)
        return bins.reshape(len(log_mel), rows * columns, wide * high)

    def grid_of(self, frames: int) -> Pair:
        """Patches along (frequency, time) of T frames."""
        return grid_shape(frames, self.mels, self.patch, self.stride)

    # --- reconstruction ---------------------------------------------------------------------

    @property
    def can_reconstruct(self) -> bool:
        """Whether `reconstruct` has a pixel head."""
        return self.pixel_probe is not None or bool(self.reconstructs)

    def require_reconstruction(self) -> None:
        """Raises NoReconstruction when there is neither a trained pixel head nor a probe."""
        if not self.can_reconstruct:
            raise NoReconstruction(
                "this model has no trained pixel head, so it cannot reconstruct a spectrogram "
                "(MAM-CLAP, SupMAM-CLAP and official fine-tuned files have none): start from a "
                "checkpoint pretrained with reconstruction, train a linear pixel head on the "
                "frozen encoder (`model.init_args.reconstruction: probe`), or choose a strategy "
                "that needs none (`SpecAugment`, `RandomMasking`, or `PEAS` with `score: energy`)"
            )

    def require_head_for(self, masked: Tensor | None) -> None:
        """Refuses masked patches if a probe predicts: it only takes visible tokens.

        Raises:
            NoReconstruction: Patches are masked, and a probe is there.
        """
        if masked is not None and self.pixel_probe is not None:
            raise NoReconstruction(
                "a linear pixel probe (`model.init_args.reconstruction: probe`) predicts only "
                "visible patches: mask none (`PEAS` with `aux_input_mask: none`), or start from a "
                "checkpoint pretrained with reconstruction and `reconstruction: head`"
            )

    def require_trainable_pixels(self) -> None:
        """Lets an auxiliary loss train the pixel head.

        Raises:
            NoReconstruction: There is none.
        """
        self.require_reconstruction()
        raise NoReconstruction(
            f"{type(self).__name__} has no pixel head of its own that an auxiliary loss could "
            "train: set `model.init_args.aux_loss_weight` to 0"
        )

    def adopt_heads(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Makes the heads that a checkpoint brings, before its weights are copied.

        For an encoder that makes a decoder only where objectives need one: a classifier keeps
        that of the checkpoint, for PEAS.

        Args:
            state: Tensors by name.
            prefix: Before the model's own names.
        """

    def predict(self, log_mel: Tensor, masked: Tensor | None) -> Tensor:
        """Predicted patches `[B, N, P]` in log-mel units, in the order of the tokens.

        Args:
            log_mel: `[B, T, F]`, a multiple of the patch where they do not overlap.
            masked: `[B, N]` bool in the order of the tokens, or None.
        """
        assert self.pixel_probe is not None
        predicted: Tensor = self.pixel_probe(self.tokens(log_mel, masked)[:, self.special :])
        return predicted

    def reconstruct(
        self, log_mel: Tensor, masked: Tensor | None = None, *, grid: Grid = "nonoverlap"
    ) -> Tensor:
        """Reconstructs the spectrogram from its tokens: G(E(x)) of PEAS's equations 1 and 2.

        As in the equations, nothing is masked unless `masked` is given. A
        length that is no multiple of the patch is padded and the result cut; where patches
        overlap, bins hold the mean, and bins under no patch the input.

        Args:
            log_mel: `[B, T, F]` normalised.
            masked: `[B, N]` bool, masked patches of the chosen grid in *frequency-major* order,
                for every encoder.
            grid: Which patches: `nonoverlap`, those of pretraining, or `finetune`. Both are the
                model's own, unless an encoder has two grids.

        Returns:
            `[B, T, F]` in the units of `log_mel`.

        Raises:
            NoReconstruction: The weights came without a trained pixel head.
            ConfigError: The grid is unknown, or the clip shorter than a patch.
        """
        self.require_reconstruction()
        self.require_head_for(masked)
        check_grid(grid)
        _, frames, mels = log_mel.shape
        overlaps = self.stride != self.patch
        padded = log_mel if overlaps else pad_to_patch(log_mel, self.patch)
        rows, columns = self.grid_of(padded.shape[1])
        if masked is not None and self.time_major:
            masked = masked.view(-1, rows, columns).transpose(1, 2).flatten(1)
        bins = self.predict(padded, masked)
        high, wide = self.patch
        if self.time_major:
            bins = bins.view(-1, columns, rows, wide, high).transpose(1, 2)
        else:
            bins = bins.view(-1, rows, columns, wide, high)
        bins = bins.transpose(3, 4).flatten(3).flatten(1, 2)
        if not overlaps:
            return unpatchify(bins, self.patch, (rows, columns))[:, :frames, :mels]
        folded = fold_average(bins, self.patch, self.stride, frames, mels)
        time, freq = (line.to(log_mel.device) for line in self.coverage(frames, grid, mels))
        return torch.where(time[:, None] & freq, folded, log_mel)

    def patch_tokens(self, log_mel: Tensor, grid: Grid = "nonoverlap") -> tuple[Tensor, Tensor]:
        """Tokens of every patch with nothing masked, and the patches themselves.

        Args:
            log_mel: `[B, T, F]` normalised.
            grid: Which patches, as in `reconstruct`.

        Returns:
            `[B, N, D]` after the final norm and `[B, N, P]`, in the order of the tokens.
        """
        check_grid(grid)
        if self.stride == self.patch:
            log_mel = pad_to_patch(log_mel, self.patch)
        return self.tokens(log_mel)[:, self.special :], self.patches(log_mel)

    def pads(self, grid: Grid) -> bool:
        """Whether clips are padded to a multiple of the patch, so that patches cover every bin."""
        check_grid(grid)
        return self.stride == self.patch

    def token_grid(self, frames: int, grid: Grid = "nonoverlap") -> Pair:
        """Patches along (frequency, time) that `reconstruct` makes of T frames."""
        if not self.pads(grid):
            return self.grid_of(frames)
        return -(-self.mels // self.patch[0]), -(-frames // self.patch[1])

    def coverage(
        self, frames: int, grid: Grid = "nonoverlap", mels: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Frames `[T]` and mel bins `[F]` that the grid's patches cover, bool, on the CPU.

        A bin is covered if its frame and its mel bin both are.
        """
        bins = self.mels if mels is None else mels
        if not self.pads(grid):
            return covered(frames, bins, self.patch, self.stride)
        return torch.ones(frames, dtype=torch.bool), torch.ones(bins, dtype=torch.bool)


def _adopt_probe(
    module: nn.Module,
    state: dict[str, Tensor],
    prefix: str,
    *_: object,
) -> None:
    """Gives the model the probe that the state has, before the weights are copied."""
    weight = state.get(prefix + "pixel_probe.weight")
    if weight is not None and isinstance(module, Reconstructor) and module.pixel_probe is None:
        bins, width = weight.shape
        module.pixel_probe = PixelProbe(width, bins).to(module.reconstructs.device)
