"""What both pretraining tasks share: draws of masks, and what has no place before fine-tuning."""

from typing import ClassVar, Literal

from torch import Tensor

from peas.data.batch import Batch
from peas.errors import ConfigError
from peas.randomness import run_seed, uniform_by_name
from peas.tasks.base import BaseTask

Stage = Literal["train", "val"]


class PretrainingTask(BaseTask):
    """Hides patches itself and scores no clip; clips need no classes."""

    masks_by: ClassVar[str]
    """Argument that says how many patches are hidden."""

    def mask_draws(self, batch: Batch, stage: Stage, stream: str, count: int) -> Tensor:
        """Uniform draws `[B, count]` for the masks of a batch, on the CPU.

        In training they depend on the seed and the place in training, in evaluation on the seed
        and the clip alone, so that figures of two evaluations compare.
        """
        if stage == "train":
            return self.draws(batch, stream, (count,))
        return uniform_by_name(batch["id"], run_seed(), stream, (count,))

    def require_maskable(self, key: str) -> None:
        """Refuses the masks of fine-tuning.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"`{key}` holds masks of fine-tuning, which have no place in pretraining: leave them "
            f"out; here `model.init_args.{self.masks_by}` says what is masked"
        )

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        """There is nothing to predict.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "a pretraining run knows no classes, so there is nothing to predict: fine-tune it "
            "first, with `peas.tasks.Classification` and `pretrained: RUN/checkpoints/last.ckpt`"
        )
