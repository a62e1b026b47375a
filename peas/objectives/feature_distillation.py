"""MAM-CLAP's objective: a teacher's features of visible and masked patches are predicted."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from peas.data.batch import Batch
from peas.errors import ConfigError
from peas.evaluation.baselines import BaselineError
from peas.models.encoder import Need
from peas.models.heads import FeatureHead
from peas.objectives.base import BuildInfo, Objective, Rows, Term, View
from peas.objectives.losses import FeatureLoss, TargetNorm, feature_loss, patch_errors
from peas.objectives.teacher_targets import FeatureTargets
from peas.teachers import Teacher
from peas.teachers.grid import TargetGrid


class FeatureDistillation(Objective):
    """A teacher's features at every patch (SupMAM-CLAP, equation 1).

    Logs `val/feature_mse` beside `val/trivial_feature_mse`, that of the best constant feature.

    Args:
        weight: Of the loss.
        teacher: Runs on every batch. Null with `targets`.
        targets: Folder of maps written by `peas data targets`, in the place of a live teacher.
            With both, the cache must be that teacher's.
        grid: How patches find the teacher's bins, see `peas.teachers.grid`.
        norm: Of a target: `l2` (unit length), `layer`, or `none`.
        loss: `mse`, `l2`, `frobenius` (the printed norm), `cosine` or `smooth_l1`.
        visible_path: Y of visible patches: `direct`, from the encoder's output through the
            decoder's embedding, or `decoder`, from its last block as for the masked ones.
        padding: `exclude` patches without sound from the loss, or `keep` them.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"decoder", "clips"})
    baselines = ("feature_mse", "baseline_feature_mse")
    unsaved = ("teacher", "targets")
    head: FeatureHead
    meter: BaselineError

    def __init__(
        self,
        weight: float = 1.0,
        teacher: Teacher | None = None,
        targets: str | None = None,
        grid: TargetGrid = "physical",
        norm: TargetNorm = "l2",
        loss: FeatureLoss = "mse",
        visible_path: Literal["direct", "decoder"] = "direct",
        padding: Literal["exclude", "keep"] = "exclude",
    ) -> None:
        super().__init__(weight)
        if visible_path not in ("direct", "decoder"):
            raise ConfigError(
                f"`FeatureDistillation.init_args.visible_path` is {visible_path!r}: choose "
                "direct or decoder"
            )
        if padding not in ("exclude", "keep"):
            raise ConfigError(
                f"`FeatureDistillation.init_args.padding` is {padding!r}: choose exclude or keep"
            )
        self.teacher, self.folder = teacher, targets
        self.grid: TargetGrid = grid
        self.norm: TargetNorm = norm
        self.loss: FeatureLoss = loss
        self.visible_path, self.padding = visible_path, padding
        self.targets: FeatureTargets | None = None
        self.width = 0

    def prepare(self, data: Any) -> None:
        """Opens teacher or cache and checks that every clip has a target."""
        self.targets = FeatureTargets(self.teacher, self.folder, self.grid, self.norm)
        self.targets.prepare(data)
        self.width = self.targets.width

    def description(self) -> str:
        """Name and fingerprint of the teacher."""
        if self.targets is None:
            return ""
        return f"{self.targets.name}, {self.targets.fingerprint[:12]}…"

    def fingerprint(self) -> dict[str, Any]:
        """Whose features: width and fingerprint of the teacher."""
        if self.targets is None:
            return {}
        return {"width": self.targets.width, "fingerprint": self.targets.fingerprint}

    def build(self, info: BuildInfo) -> None:
        """Makes the head h and the meter."""
        self.head = FeatureHead(info.decoder_width, self.width, unit=self.norm == "l2")
        self.meter = BaselineError(self.width)

    def read(self, batch: Batch) -> None:
        """Adds the cached maps of the teacher."""
        if self.targets is not None:
            self.targets.read(batch)

    def move(self, device: torch.device) -> None:
        """Puts a live teacher beside the model."""
        if self.targets is not None:
            self.targets.move(device)

    def forward(self, view: View) -> Term:
        """The error of the predicted features."""
        assert self.targets is not None
        features = self.targets.of(view.batch, view.model)
        y = self._predicted(view)
        counted = torch.ones_like(view.masked) if self.padding == "keep" else view.sound
        loss = feature_loss(y, features, view.masked, counted, self.loss)
        rows = Rows(patch_errors(y.detach(), features), features, view.sound)
        return Term(loss, rows=rows, predicted=y.detach())

    def _predicted(self, view: View) -> Tensor:
        """Y of every patch, `[B, N, D]`."""
        decoded = view.require_decoded()
        if self.visible_path == "direct":
            own = view.model.to_decoder(view.visible_tokens).to(decoded.dtype)
            decoded = decoded.scatter(1, view.visible.unsqueeze(-1).expand_as(own), own)
        features: Tensor = self.head(decoded)
        return features

    def evaluate(self, term: Term) -> None:
        """Counts patches of real sound."""
        if term.rows is not None:
            self.meter.update(*term.rows)

    def baseline(self) -> dict[str, Tensor]:
        """`feature_mse` and `baseline_feature_mse`."""
        found = self.meter.compute()
        self.meter.reset()
        return {
            "feature_mse": found["valid_mse"],
            "baseline_feature_mse": found["baseline_mse"],
        }
