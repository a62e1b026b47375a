"""What turns patch tokens back into a log-mel: G(E(x)) of PEAS's equations 1 and 2."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

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
from peas.models.pixel_probe import PixelProbe


class Reconstructor(nn.Module, ABC):
    """The half of an encoder that knows its patch grid, and reconstructs.

    Attributes:
        time_major: Order of the tokens: `t * F' + f` when True, `f * T' + t` when False, for a
            grid of F' x T' patches. Patches and masks that it is given have this order.
        special: Number of special tokens before those of the patches.
        patch: Height and width of a patch, (mel bins, frames).
        stride: Step between two patches, (mel bins, frames).
        mels: Mel bins F of the input.
        reconstructs: Scalar bool, whether the model has a trained pixel head of its own.
        pixel_probe: A linear pixel head that was fitted afterwards, and takes the place of any
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
        """Refuses masked patches where a probe predicts: it knows visible tokens alone.

        Raises:
            NoReconstruction: Patches are masked, and a probe is there.
        """
        if masked is not None and self.pixel_probe is not None:
            raise NoReconstruction(
                "a linear pixel probe (`model.init_args.reconstruction: probe`) predicts visible "
                "patches alone: mask none (`PEAS` with `aux_input_mask: none`), or start from a "
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
            log_mel: `[B, T, F]`, of whole patches where they do not overlap.
            masked: `[B, N]` bool in the order of the tokens, or None.
        """
        assert self.pixel_probe is not None
        predicted: Tensor = self.pixel_probe(self.tokens(log_mel, masked)[:, self.special :])
        return predicted

    def reconstruct(
        self, log_mel: Tensor, masked: Tensor | None = None, *, grid: Grid = "nonoverlap"
    ) -> Tensor:
        """Reconstructs the spectrogram from its tokens: G(E(x)) of PEAS's equations 1 and 2.

        As in the literal reading of the equations, nothing is masked unless `masked` says so. A
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
        whole = self.stride == self.patch
        padded = pad_to_patch(log_mel, self.patch) if whole else log_mel
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
        if whole:
            return unpatchify(bins, self.patch, (rows, columns))[:, :frames, :mels]
        folded = fold_average(bins, self.patch, self.stride, frames, mels)
        time, freq = (line.to(log_mel.device) for line in self.coverage(frames, grid, mels))
        return torch.where(time[:, None] & freq, folded, log_mel)

    def patch_tokens(self, log_mel: Tensor, grid: Grid = "nonoverlap") -> tuple[Tensor, Tensor]:
        """Tokens of every patch with nothing masked, and the patches that they stand for.

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

    def token_grid(self, frames: int, grid: Grid = "nonoverlap") -> Pair:
        """Patches along (frequency, time) that `reconstruct` makes of T frames."""
        check_grid(grid)
        if self.stride != self.patch:
            return self.grid_of(frames)
        whole = -(-frames // self.patch[1]) * self.patch[1]
        tall = -(-self.mels // self.patch[0]) * self.patch[0]
        return grid_shape(whole, tall, self.patch, self.patch)

    def coverage(
        self, frames: int, grid: Grid = "nonoverlap", mels: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Frames `[T]` and mel bins `[F]`, boolean, on the CPU, that the grid's patches cover."""
        check_grid(grid)
        bins = self.mels if mels is None else mels
        if self.stride != self.patch:
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
