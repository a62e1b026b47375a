"""What is trained: one LightningModule a file. Names are resolved when first used."""

from typing import TYPE_CHECKING

from peas.utils.lazy import lazily

if TYPE_CHECKING:
    from peas.tasks.augmentation import Augmentation
    from peas.tasks.classification import Classification
    from peas.tasks.pretraining import Pretraining

__all__ = ["Augmentation", "Classification", "Pretraining"]

__getattr__ = lazily(
    __name__,
    {
        "Augmentation": "peas.tasks.augmentation",
        "Classification": "peas.tasks.classification",
        "Pretraining": "peas.tasks.pretraining",
    },
)
