"""What happens around the training step. Names are resolved when first used."""

from typing import TYPE_CHECKING

from peas.utils.lazy import lazily

if TYPE_CHECKING:
    from peas.callbacks.knn import KNN
    from peas.callbacks.masking import MaskingContext, MaskingStrategy
    from peas.callbacks.patch_dropping import PatchDropping
    from peas.callbacks.peas import PEAS
    from peas.callbacks.pictures import Pictures
    from peas.callbacks.reconstructions import Reconstructions
    from peas.callbacks.spec_augment import BlockMasking, RandomMasking, SpecAugment
    from peas.callbacks.weight_average import WeightAverage

__all__ = [
    "KNN",
    "PEAS",
    "BlockMasking",
    "MaskingContext",
    "MaskingStrategy",
    "PatchDropping",
    "Pictures",
    "RandomMasking",
    "Reconstructions",
    "SpecAugment",
    "WeightAverage",
]

__getattr__ = lazily(
    __name__,
    {
        "BlockMasking": "peas.callbacks.spec_augment",
        "KNN": "peas.callbacks.knn",
        "MaskingContext": "peas.callbacks.masking",
        "MaskingStrategy": "peas.callbacks.masking",
        "PEAS": "peas.callbacks.peas",
        "PatchDropping": "peas.callbacks.patch_dropping",
        "Pictures": "peas.callbacks.pictures",
        "RandomMasking": "peas.callbacks.spec_augment",
        "Reconstructions": "peas.callbacks.reconstructions",
        "SpecAugment": "peas.callbacks.spec_augment",
        "WeightAverage": "peas.callbacks.weight_average",
    },
)
