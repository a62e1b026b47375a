"""A front end: torchaudio's mel spectrogram in the place of Kaldi's filter bank."""

import torch
from torch import Tensor
from torch.nn import functional
from torchaudio.transforms import MelSpectrogram

from peas.audio import FrontEnd, Spectrogram

SILENCE = 1e-7


class TorchaudioLogMel(FrontEnd):
    """Log-mel of 25 ms every 10 ms.

    Args:
        n_mels: Number of mel bins.
        frames: Frames of every output; null takes the data's.
        mean: Mean of the log-mel over the training clips. Those of the data sets of `peas` are of
            Kaldi's filter bank, and of no use here. With 0, and 0.5 for `std`, outputs are raw.
        std: Its standard deviation.
        channels: What becomes of several channels; null takes the data's.
    """

    def __init__(
        self,
        n_mels: int = 64,
        frames: int | None = None,
        mean: float = 0.0,
        std: float = 1.7,
        channels: str | None = None,
    ) -> None:
        super().__init__(frames, mean, std, channels)
        self.n_mels = n_mels
        self.mel = MelSpectrogram(self.rate, 400, hop_length=160, n_mels=n_mels, center=False)

    def forward(self, waveform: Tensor, length: Tensor | None = None) -> Spectrogram:
        """Cuts or pads to `frames`, and normalises."""
        clips, samples = waveform.shape
        if length is None:
            length = torch.full((clips,), samples, device=waveform.device)
        # A negative number cuts.
        sound = functional.pad(waveform, (0, self.samples() - samples))
        energies = self.mel(sound).transpose(1, 2)
        log_mel = self.normalise(energies.clamp(min=SILENCE).log())
        frames = (1 + (length - 400).clamp(min=0) // 160).clamp(max=self.frames)
        inside = torch.arange(self.frames, device=waveform.device) < frames[:, None]
        valid = inside & (energies.amax(dim=2) > SILENCE)
        padding = self.fill_value("raw_zero")
        return Spectrogram(torch.where(inside[..., None], log_mel, padding), frames, valid)
