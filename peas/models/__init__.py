"""Models: tensors in, tensors out. They know nothing of files, Lightning or mask policy."""

from peas.models.audiomae import AudioMAE
from peas.models.beats import BEATs
from peas.models.eat import EAT
from peas.models.encoder import Encoder, Need, Pretext, drop
from peas.models.ssast import SSAST

__all__ = ["EAT", "SSAST", "AudioMAE", "BEATs", "Encoder", "Need", "Pretext", "drop"]
