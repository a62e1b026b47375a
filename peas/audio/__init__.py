"""Sound: files to waveforms, waveforms to log-mels."""

from typing import TYPE_CHECKING

from peas.utils.lazy import lazily

if TYPE_CHECKING:
    from peas.audio.frontend import FrontEnd, KaldiLogMel, Spectrogram

__all__ = ["FrontEnd", "KaldiLogMel", "Spectrogram"]

__getattr__ = lazily(
    __name__,
    {
        "FrontEnd": "peas.audio.frontend",
        "KaldiLogMel": "peas.audio.frontend",
        "Spectrogram": "peas.audio.frontend",
    },
)
