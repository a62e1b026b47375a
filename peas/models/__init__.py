"""Models: tensors in, tensors out. They know nothing of files, Lightning or mask policy."""

from peas.models.audiomae import AudioMAE
from peas.models.encoder import Encoder, Need, Pretext, drop
from peas.models.ssast import SSAST

__all__ = ["SSAST", "AudioMAE", "Encoder", "Need", "Pretext", "drop"]
