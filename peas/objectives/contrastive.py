"""Losses of SSAST's pretraining, as pure functions of hidden patches.

B clips, M hidden patches of each, P cells of a patch.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

NCEAxis = Literal["code", "paper"]


class InfoNCE(NamedTuple):
    """How well the hidden patches of a clip are told apart.

    Attributes:
        loss: Scalar.
        accuracy: Scalar, share of hidden patches that are told right; without gradient.
    """

    loss: Tensor
    accuracy: Tensor


def take_patches(rows: Tensor, ids: Tensor) -> Tensor:
    """Some rows of each clip: `[B, N, X]` and ids `[B, M]` to `[B, M, X]`."""
    return rows.gather(1, ids.unsqueeze(-1).expand(-1, -1, rows.shape[2]))


def info_nce(predictions: Tensor, targets: Tensor, axis: NCEAxis = "code") -> InfoNCE:
    """InfoNCE among the hidden patches of one clip: no temperature, no normalisation.

    The score of a patch and a prediction is their inner product. The SSAST paper's equation 1 asks
    of each prediction which patch it belongs to: its softmax runs over the patches. The official
    code's runs over the predictions, and asks of each patch which prediction is its own; and the
    accuracy compares those probabilities across the patches. The two losses differ: of random
    weights the code's is near ln M.

    Args:
        predictions: `[B, M, P]`; scored in float32 whatever their precision.
        targets: `[B, M, P]`, the patches themselves; no gradient reaches them.
        axis: `code` as the official code and its checkpoints have it, or `paper`.

    Returns:
        Means over the batch and the hidden patches.
    """
    # Autocast would round the scores, which grow with P, to eight bits.
    with torch.autocast(predictions.device.type, enabled=False):
        scores = targets.detach().float() @ predictions.float().transpose(1, 2)
    log_p = scores.log_softmax(dim=2 if axis == "code" else 1)
    loss = -log_p.diagonal(dim1=1, dim2=2).mean()
    own = torch.arange(scores.shape[1], device=scores.device)
    told = log_p.detach().argmax(dim=1)
    return InfoNCE(loss, (told == own).float().mean())


def patch_errors(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of each patch: two times `[B, M, P]` to `[B, M]` float32."""
    return (predictions.float() - targets.detach().float()).square().mean(dim=2)


def masked_mse(predictions: Tensor, targets: Tensor) -> Tensor:
    """SSAST's generative loss: mean squared error over clips, hidden patches and cells.

    Args:
        predictions: `[B, M, P]`; compared in float32 whatever their precision.
        targets: `[B, M, P]`, the patches of the normalised log-mel; no gradient reaches them.
    """
    return patch_errors(predictions, targets).mean()
