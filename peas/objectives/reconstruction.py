"""AudioMAE's objective, and SSAST's second: masked patches are reconstructed."""

from typing import ClassVar

from torch import Tensor

from peas.evaluation.baselines import BaselineError
from peas.models.encoder import Need
from peas.models.patches import gather_tokens
from peas.objectives.base import BuildInfo, Objective, Rows, Term, View, patch_errors


class Reconstruction(Objective):
    """Mean squared error of the masked patches (Huang et al., 2022, section 3; Gong et al., 2022).

    Logs `val/valid_mse` beside `val/baseline_mse`, that of the best constant patch.

    Args:
        weight: Of the loss.
        norm_pix: Whether a patch is normalised by its own mean and deviation first; an encoder
            whose head predicts log-mels (SSAST) has false.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"decoder", "pixels"})
    baselines = ("valid_mse", "baseline_mse")
    fixed = ("norm_pix",)
    stream = "drawn"
    meter: BaselineError

    def __init__(self, weight: float = 1.0, norm_pix: bool = True) -> None:
        super().__init__(weight)
        self.norm_pix = norm_pix

    def build(self, info: BuildInfo) -> None:
        """Makes the meter; the pixel head is the decoder's own, which PEAS uses afterwards."""
        self.meter = BaselineError(info.bins)

    def forward(self, view: View) -> Term:
        """The error of the masked patches."""
        model, decoded = view.model, view.require_decoded()
        targets = model.targets(view.patches)
        if model.predicts_masked_only:
            targets = gather_tokens(targets, view.masked_at)
            errors = patch_errors(model.pixels(gather_tokens(decoded, view.masked_at)), targets)
            sound = view.sound.gather(1, view.masked_at)
            return Term(errors.mean(), rows=Rows(errors.detach(), targets, sound))
        predicted = model.pixels(decoded)
        rows = Rows(patch_errors(predicted.detach(), targets), targets, view.sound & view.masked)
        return Term(masked_patch_error(predicted, targets, view.masked), rows=rows)

    def evaluate(self, term: Term) -> None:
        """Counts masked patches of real sound."""
        if term.rows is not None:
            self.meter.update(*term.rows)

    def baseline(self) -> dict[str, Tensor]:
        """`valid_mse` and `baseline_mse`."""
        metrics = self.meter.compute()
        self.meter.reset()
        return metrics


def masked_patch_error(predictions: Tensor, targets: Tensor, masked: Tensor) -> Tensor:
    """AudioMAE's loss: mean squared error of the masked patches.

    Args:
        predictions: `[B, N, P]`; compared in float32 whatever their precision.
        targets: `[B, N, P]`.
        masked: `[B, N]` bool.
    """
    errors = (predictions.float() - targets.detach().float()).square().mean(dim=2)
    return (errors * masked).sum() / masked.sum()
