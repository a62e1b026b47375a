"""SSAST's and MAE-AST's objective: masked patches are discriminated."""

from typing import ClassVar, get_args

from torch import nn

from peas.errors import ConfigError
from peas.models.encoder import Need
from peas.models.patches import gather_tokens
from peas.objectives.base import BuildInfo, Objective, Term, View
from peas.objectives.losses import NCEAxis, info_nce


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
        decoded, places = view.require_decoded(), view.masked_at
        own = view.model.contrastive_head
        if own is None:
            predicted = gather_tokens(self.head(decoded), places)
        else:
            predicted = own(gather_tokens(decoded, places))
        nce = info_nce(predicted, gather_tokens(view.patches, places), self.axis)
        return Term(nce.loss, metrics={"nce_accuracy": nce.accuracy})
