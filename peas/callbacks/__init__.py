"""Lightning callbacks: masking strategies, plots, probes, checkpoints. Imported at first use."""

from typing import TYPE_CHECKING

from peas.utils.lazy import lazily

if TYPE_CHECKING:
    from peas.callbacks.knn import KNN
    from peas.callbacks.mask_plots import MaskPlots
    from peas.callbacks.masking import MaskingContext, MaskingStrategy
    from peas.callbacks.online_probes import OnlineProbes
    from peas.callbacks.patch_dropout import PatchDropout
    from peas.callbacks.peas import PEAS
    from peas.callbacks.reconstruction_plots import ReconstructionPlots
    from peas.callbacks.spec_augment import BlockMasking, RandomMasking, SpecAugment
    from peas.callbacks.weight_average import WeightAverage

__all__ = [
    "KNN",
    "PEAS",
    "BlockMasking",
    "MaskPlots",
    "MaskingContext",
    "MaskingStrategy",
    "OnlineProbes",
    "PatchDropout",
    "RandomMasking",
    "ReconstructionPlots",
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
        "OnlineProbes": "peas.callbacks.online_probes",
        "PEAS": "peas.callbacks.peas",
        "PatchDropout": "peas.callbacks.patch_dropout",
        "MaskPlots": "peas.callbacks.mask_plots",
        "RandomMasking": "peas.callbacks.spec_augment",
        "ReconstructionPlots": "peas.callbacks.reconstruction_plots",
        "SpecAugment": "peas.callbacks.spec_augment",
        "WeightAverage": "peas.callbacks.weight_average",
    },
    renamed={
        "PatchDropping": "PatchDropout",
        "Pictures": "MaskPlots",
        "Reconstructions": "ReconstructionPlots",
    },
)
