"""MAE-AST's second objective: masked patches are discriminated."""

from typing import ClassVar

from torch import nn

from peas.models.masked import gather_tokens
from peas.objectives.base import BuildInfo, Need, Objective, Term, View
from peas.objectives.contrastive import NCEAxis, info_nce


class PatchContrast(Objective):
    """InfoNCE among the masked patches of a clip (Baade et al., 2022; Gong et al., 2022).

    Args:
        weight: Of the loss.
        axis: What the softmax runs over: `code` as in SSAST's official checkpoints, or `paper`,
            its equation 1.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"decoder"})
    head: nn.Linear

    def __init__(self, weight: float = 1.0, axis: NCEAxis = "code") -> None:
        super().__init__(weight)
        self.axis: NCEAxis = axis

    def build(self, info: BuildInfo) -> None:
        """Makes the head, from the decoder's tokens to cells."""
        self.head = nn.Linear(info.decoder_width, info.cells)

    def forward(self, view: View) -> Term:
        """InfoNCE, mean over the clips."""
        assert view.decoded is not None
        places = view.masked.nonzero()[:, 1].view(len(view.masked), -1)
        predicted = gather_tokens(self.head(view.decoded), places)
        return Term(info_nce(predicted, gather_tokens(view.patches, places), self.axis).loss)
