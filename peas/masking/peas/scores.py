"""PEAS's two auxiliary tasks, equations 1 and 2: error maps from a reconstruction.

Zhang et al., "Prediction-error-based Adaptive SpecAugment for Fine-tuning the Masked Model on
Audio Classification Tasks". The model enters as a function `reconstruct`, G(E(.)) in the paper's
letters, from log-mel `[B, T, F]` to log-mel. Equation 3 is in `peas.masking.peas.schedule`;
from error maps to masks: `peas.masking.peas.selector`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from peas.errors import ConfigError

Score = Literal["pred", "rec", "predicted", "energy", "easy"]
ErrorNorm = Literal["none", "standardise"]


class ErrorMaps(NamedTuple):
    """Maps of one batch, each `[B, T, F]` float32.

    Attributes:
        e_rec: Reconstruction error, equation 1; None when no pass was needed.
        e_pred: Prediction error, equation 2; None when the second pass was not needed.
        score: What the mask position selector ranks.
    """

    e_rec: Tensor | None
    e_pred: Tensor | None
    score: Tensor


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Point-wise squared error in float32, whatever the precision of the pass."""
    return (output.float() - target.float()).square()


def standardise(error: Tensor) -> Tensor:
    """Bring each clip's map to mean 0 and standard deviation 0.5, as the model's input has.

    Args:
        error: `[B, T, F]`; a constant map becomes zeros.
    """
    error = error.float()
    mean = error.mean((1, 2), keepdim=True)
    centred = error - mean
    # The floor keeps the rounding noise of a constant map from being blown up.
    floor = (1e-6 * mean.detach()).square() + 1e-20
    variance = torch.maximum(centred.square().mean((1, 2), keepdim=True), floor)
    return centred / (2 * variance.sqrt())


def error_maps(
    reconstruct: Callable[[Tensor], Tensor],
    log_mel: Tensor,
    *,
    score: Score = "pred",
    error_norm: ErrorNorm = "none",
) -> ErrorMaps:
    """Run the auxiliary tasks and return their errors.

    Gradients flow through it, for an auxiliary loss; masks need none, so call it under
    `torch.no_grad` otherwise.

    Args:
        reconstruct: G(E(.)), `[B, T, F]` to `[B, T, F]`. For complementary patch masks pass the
            function that `complementary` returns.
        log_mel: `[B, T, F]` the unmasked, normalised input x.
        score: `pred` equation 2; `rec` equation 1 (no second pass); `predicted` G(E(e_rec)), the
            predicted difficulty; and the controls `energy` x² (no pass) and `easy`, the
            negated `pred` map.
        error_norm: `standardise` brings e_rec to the input's statistics before the second pass;
            it is then the target of equation 2 too.

    Raises:
        ConfigError: An unknown score.
    """
    if score == "energy":
        return ErrorMaps(None, None, log_mel.float().square())
    e_rec = squared_error(reconstruct(log_mel), log_mel)  # equation 1
    if score == "rec":
        return ErrorMaps(e_rec, None, e_rec)
    target = standardise(e_rec) if error_norm == "standardise" else e_rec
    predicted = reconstruct(target).float()
    e_pred = squared_error(predicted, target)  # equation 2
    if score == "pred":
        return ErrorMaps(e_rec, e_pred, e_pred)
    if score == "predicted":
        return ErrorMaps(e_rec, e_pred, predicted)
    if score == "easy":
        return ErrorMaps(e_rec, e_pred, -e_pred)
    raise ConfigError(f"score: unknown value {score!r}; use one of {', '.join(get_args(Score))}")


def complementary_groups(u: Tensor, passes: int) -> Tensor:
    """Split each clip's patches at random into equal groups.

    Args:
        u: `[B, N]` random numbers, one a patch.
        passes: Number of groups K, 2 .. N.

    Returns:
        `[B, N]` int64, the pass (0 .. K - 1) in which each patch is masked.

    Raises:
        ConfigError: K is outside 2 .. N.
    """
    patches = u.shape[1]
    if not 2 <= passes <= patches:
        raise ConfigError(
            f"aux_input_mask: complementary({passes}) needs 2 to {patches} passes "
            f"for {patches} patches"
        )
    rank = u.argsort(dim=1, stable=True).argsort(dim=1)
    return rank * passes // patches


def patches_to_bins(
    values: Tensor, patch: tuple[int, int], grid: tuple[int, int], frames: int, mels: int
) -> Tensor:
    """Spread one value a patch over the patch's bins.

    Args:
        values: `[B, N]`, frequency-major (patch = f_index * t_count + t_index).
        patch: Bins of a patch, (frequency, time).
        grid: Patches, (frequency, time).
        frames: T; bins of the last patch beyond it are cut.
        mels: F.

    Returns:
        `[B, T, F]`.

    Raises:
        ConfigError: The patches overlap, or do not cover the spectrogram.
    """
    if grid != (math.ceil(mels / patch[0]), math.ceil(frames / patch[1])):
        raise ConfigError(
            f"aux_input_mask: complementary masks need patches that tile {mels} mel bins x "
            f"{frames} frames, and a grid of {grid} patches of {patch} does not; "
            "use aux_grid: nonoverlap"
        )
    bins = values.reshape(-1, *grid)
    bins = bins.repeat_interleave(patch[0], 1).repeat_interleave(patch[1], 2)
    return bins[:, :mels, :frames].transpose(1, 2)


def complementary(
    reconstruct: Callable[[Tensor, Tensor], Tensor],
    u: Tensor,
    passes: int,
    *,
    patch: tuple[int, int],
    grid: tuple[int, int],
) -> Callable[[Tensor], Tensor]:
    """Make a reconstruction in which every bin was masked when it was reconstructed.

    The patches are masked in K complementary random groups, one pass each, and each bin is
    taken from the pass that masked it: the training condition of a masked model's generation
    head, which equation 1 taken literally (nothing masked) leaves.

    Args:
        reconstruct: `(log_mel [B, T, F], masked [B, N] bool) -> [B, T, F]`.
        u: `[B, N]` random numbers, one a patch.
        passes: K, 2 .. N.
        patch: Bins of a patch, (frequency, time).
        grid: Patches, (frequency, time).

    Returns:
        `[B, T, F] -> [B, T, F]` float32, for `error_maps`.

    Raises:
        ConfigError: K or the grid does not fit.
    """
    groups = complementary_groups(u, passes)

    def stitched(log_mel: Tensor) -> Tensor:
        bin_group = patches_to_bins(groups, patch, grid, log_mel.shape[1], log_mel.shape[2])
        result = torch.zeros_like(log_mel, dtype=torch.float32)
        for k in range(passes):
            output = reconstruct(log_mel, groups == k).float()
            result = torch.where(bin_group == k, output, result)
        return result

    return stitched
