"""A trained model in use: loading, any length of sound, embeddings, scores."""

from typing import TYPE_CHECKING

from peas.utils.lazy import lazily

if TYPE_CHECKING:
    from peas.inference.loading import load
    from peas.inference.model import AudioModel, Frames, Prediction
    from peas.inference.store import EmbeddingStore

__all__ = ["AudioModel", "EmbeddingStore", "Frames", "Prediction", "load"]

__getattr__ = lazily(
    __name__,
    {
        "AudioModel": "peas.inference.model",
        "EmbeddingStore": "peas.inference.store",
        "Frames": "peas.inference.model",
        "Prediction": "peas.inference.model",
        "load": "peas.inference.loading",
    },
)
