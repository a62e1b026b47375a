"""Sound: files to waveforms, waveforms to log-mels."""

from typing import TYPE_CHECKING

from peas.utils.lazy import lazily

if TYPE_CHECKING:
    from peas.audio.frontend import BEATsLogMel, FrontEnd, KaldiLogMel, Spectrogram

__all__ = ["BEATsLogMel", "FrontEnd", "KaldiLogMel", "Spectrogram"]

__getattr__ = lazily(
    __name__,
    {
        "BEATsLogMel": "peas.audio.frontend",
        "FrontEnd": "peas.audio.frontend",
        "KaldiLogMel": "peas.audio.frontend",
        "Spectrogram": "peas.audio.frontend",
    },
)
