"""A trained model in use: loading, any length of sound, embeddings, scores."""

from typing import TYPE_CHECKING

from peas.utils.lazy import lazily

if TYPE_CHECKING:
    from peas.inference.loading import load
    from peas.inference.model import AudioModel, Frames, Prediction

__all__ = ["AudioModel", "Frames", "Prediction", "load"]

__getattr__ = lazily(
    __name__,
    {
        "AudioModel": "peas.inference.model",
        "Frames": "peas.inference.model",
        "Prediction": "peas.inference.model",
        "load": "peas.inference.loading",
    },
)
