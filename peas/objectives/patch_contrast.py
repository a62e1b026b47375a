"""SSAST's and MAE-AST's objective: masked patches are discriminated."""

from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from peas.errors import ConfigError
from peas.models.encoder import Need
from peas.models.patches import gather_tokens
from peas.objectives.base import BuildInfo, Objective, Term, View

NCEAxis = Literal["code", "paper"]


class PatchContrast(Objective):
    """InfoNCE among the masked patches of a clip (Gong et al., 2022; Baade et al., 2022).

    Logs `nce_accuracy`, the share of masked patches that are found. The head is the encoder's own
    where official files hold one (SSAST).

    Args:
        weight: Of the loss.
        axis: What the softmax runs over: `code` as in SSAST's official checkpoints, or `paper`,
            its equation 1.

    Raises:
        ConfigError: The axis is unknown.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"decoder", "contrast"})
    metrics = ("nce_accuracy",)
    stream = "told"
    head: nn.Linear

    def __init__(self, weight: float = 1.0, axis: NCEAxis = "code") -> None:
        super().__init__(weight)
        if axis not in get_args(NCEAxis):
            raise ConfigError(
                f"`PatchContrast.init_args.axis` is {axis!r}: choose one of "
                f"{', '.join(get_args(NCEAxis))}"
            )
        self.axis: NCEAxis = axis

    def build(self, info: BuildInfo) -> None:
        """Makes the head, from the decoder's tokens to bins, unless the encoder has one."""
        if info.model.contrastive_head is None:
            self.head = nn.Linear(info.decoder_width, info.bins)

    def forward(self, view: View) -> Term:
        """InfoNCE, mean over the clips."""
        decoded, masked_at = view.require_decoded(), view.masked_at
        own = view.model.contrastive_head
        if own is None:
            predicted = gather_tokens(self.head(decoded), masked_at)
        else:
            predicted = own(gather_tokens(decoded, masked_at))
        nce = info_nce(predicted, gather_tokens(view.patches, masked_at), self.axis)
        return Term(nce.loss, metrics={"nce_accuracy": nce.accuracy})


class InfoNCE(NamedTuple):
    """How well the masked patches of a clip are discriminated.

    Attributes:
        loss: Scalar.
        accuracy: Scalar, share of masked patches that are identified correctly; without gradient.
    """

    loss: Tensor
    accuracy: Tensor


def info_nce(predictions: Tensor, targets: Tensor, axis: NCEAxis = "code") -> InfoNCE:
    """InfoNCE among the masked patches of one clip: no temperature, no normalisation.

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
        Means over the batch and the masked patches.
    """
    # Autocast would round the scores, which grow with P, to eight bits.
    with torch.autocast(predictions.device.type, enabled=False):
        scores = targets.detach().float() @ predictions.float().transpose(1, 2)
    log_p = scores.log_softmax(dim=2 if axis == "code" else 1)
    loss = -log_p.diagonal(dim1=1, dim2=2).mean()
    own = torch.arange(scores.shape[1], device=scores.device)
    best = log_p.detach().argmax(dim=1)
    return InfoNCE(loss, (best == own).float().mean())
