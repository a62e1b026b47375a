"""An objective for encoders without a decoder: the whole clip is predicted from a part of it."""

import copy

from timm.layers import Mlp
from torch import Tensor
from torch.nn import functional

from peas.evaluation.baselines import BaselineError
from peas.models import Encoder
from peas.objectives import BuildInfo, Objective, Rows, Term, View


class ClipFromPatches(Objective):
    """The mean visible token predicts the mean token that a moving average has of the whole clip.

    Logs `val/cosine`, and `val/clip_mse` beside `val/constant_clip_mse`, that of the best constant.

    Args:
        weight: Of the loss.
        decay: Of the moving average.
    """

    metrics = ("cosine",)
    baselines = ("clip_mse", "constant_clip_mse")

    def __init__(self, weight: float = 1.0, decay: float = 0.99) -> None:
        super().__init__(weight)
        self.decay = decay

    def build(self, info: BuildInfo) -> None:
        """Makes the head, the average and the meter."""
        self.head = Mlp(info.width)
        self.meter = BaselineError(info.width)
        self.average = copy.deepcopy(info.model).requires_grad_(False)

    def after_step(self, model: Encoder) -> None:
        """The average follows."""
        for mean, weight in zip(self.average.parameters(), model.parameters(), strict=True):
            mean.lerp_(weight.detach(), 1 - self.decay)

    def forward(self, view: View) -> Term:
        """Mean squared error of normalised targets."""
        target = self.average.embedding(view.batch["log_mel"]).float()
        target = functional.layer_norm(target, target.shape[1:])
        predicted = self.head(view.visible_tokens.mean(dim=1)).float()
        errors = (predicted - target).square().mean(dim=1, keepdim=True)
        rows = Rows(errors.detach(), target.unsqueeze(1), errors >= 0)
        cosine = functional.cosine_similarity(predicted.detach(), target)
        return Term(errors.mean(), rows=rows, metrics={"cosine": cosine.mean()})

    def evaluate(self, term: Term) -> None:
        """Counts the clips of an evaluation."""
        self.meter.update(*term.rows)

    def baseline(self) -> dict[str, Tensor]:
        """The error, and that of the best constant."""
        found = self.meter.compute().values()
        self.meter.reset()
        return dict(zip(self.baselines, found, strict=True))
