"""A model as one graph of plain tensor operations, for `torch.export` and ONNX.

`KaldiLogMel` works in blocks of frames, in place, and lets NumPy sum; none of that can be traced.
Here the same steps are written on entire batches.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from peas.audio.filter_bank import ENERGY_FLOOR, PREEMPHASIS
from peas.audio.frontend import BEATsLogMel, FrontEnd, KaldiLogMel
from peas.errors import ConfigError
from peas.inference.model import AudioModel
from peas.inference.windows import frame_samples

Output = Literal["scores", "embeddings"]
LIFT = 2.0**24
"""On the window, so that no power is below float32's normal range; it changes no rounding."""


class KaldiGraph(nn.Module):
    """`KaldiLogMel` of clips of one length, without its mask of silent frames.

    Args:
        front_end: With statistics.
        fft: By the FFT, as `KaldiLogMel` does; False = by products with matrices of sines and
            cosines, which every runtime multiplies fast.
    """

    def __init__(self, front_end: KaldiLogMel, *, fft: bool) -> None:
        super().__init__()
        self.frames, self.width, self.fft = front_end.frames, front_end.window.numel(), fft
        self.shift, _ = frame_samples(front_end)
        self.size = front_end.mel.shape[0]
        ends = torch.arange(self.frames) * self.shift + self.width
        # A clip shorter than one frame is padded with zeros to one.
        ends[0] = 0
        # The window's first value is 0.
        window = front_end.window[1:].double() * LIFT
        waves = _waves(len(window), self.size) * window[:, None]
        self.register_buffer("ends", ends)
        self.register_buffer("window", window.float())
        self.register_buffer("waves", waves.float())
        # Its rows are doubled, for the squares of real and imaginary parts side by side.
        self.register_buffer("mel", front_end.mel.clone())
        self.register_buffer("mean", front_end.mean.clone())
        self.register_buffer("deviation", 2 * front_end.std)
        self.register_buffer("padding", front_end.padding())

    ends: Tensor
    window: Tensor
    waves: Tensor
    mel: Tensor
    mean: Tensor
    deviation: Tensor
    padding: Tensor

    def prepare(self, waveform: Tensor) -> Tensor:
        """Samples as the filter bank gets them: without the clip's mean."""
        return waveform - waveform.double().mean(dim=1, keepdim=True).float()

    def forward(self, waveform: Tensor) -> Tensor:
        """Normalised log-mels: `[B, S]` to `[B, T, F]`."""
        samples = waveform.shape[1]
        frames = self.cut(self.prepare(waveform))
        frames = frames - frames.mean(dim=2, keepdim=True)
        frames = frames[:, :, 1:] - PREEMPHASIS * frames[:, :, :-1]
        spectrum = self.spectrum(frames)
        energies = ((spectrum * spectrum) @ self.mel) * LIFT**-2
        log_mel = (energies.clamp(min=ENERGY_FLOOR).log() - self.mean) / self.deviation
        inside = (self.ends <= samples)[:, None]
        return torch.where(inside, log_mel, self.padding)

    def cut(self, waveform: Tensor) -> Tensor:
        """Frames `[B, T, W]`: blocks as long as a shift, beside each other."""
        count = -(-self.width // self.shift)
        needed = (self.frames + count - 1) * self.shift
        samples = functional.pad(waveform, (0, needed))[:, :needed]
        blocks = samples.view(samples.shape[0], -1, self.shift)
        beside = [blocks[:, start : start + self.frames] for start in range(count)]
        return torch.cat(beside, dim=2)[:, :, : self.width]

    def spectrum(self, frames: Tensor) -> Tensor:
        """Real and imaginary parts below half the rate, side by side: `[B, T, FFT size]`."""
        if not self.fft:
            return frames @ self.waves
        spectrum = torch.fft.rfft(functional.pad(frames * self.window, (1, 0)), n=self.size)
        return torch.view_as_real(spectrum)[:, :, :-1].flatten(2)


def _waves(width: int, size: int) -> Tensor:
    """An FFT of `size` as a matrix, cosines and sines in turn: `[W, FFT size]` float64."""
    time = torch.arange(1, width + 1, dtype=torch.float64)
    angle = torch.outer(time, torch.arange(size // 2)) * (2 * math.pi / size)
    return torch.stack((angle.cos(), -angle.sin()), dim=2).flatten(1)


class BEATsGraph(KaldiGraph):
    """`BEATsLogMel` of clips of one length."""

    def prepare(self, waveform: Tensor) -> Tensor:
        """Samples as the filter bank gets them: at the scale of 16-bit integers."""
        return waveform * BEATsLogMel.scale


GRAPHS: dict[type[FrontEnd], type[KaldiGraph]] = {
    KaldiLogMel: KaldiGraph,
    BEATsLogMel: BEATsGraph,
}
"""Front ends that can be exported."""


class ModelGraph(nn.Module):
    """Waveforms `[B, S]` of any S to scores `[B, C]` or embeddings `[B, D]`, of the first window.

    It equals `AudioModel.scores(long="first")`, and `AudioModel.embed` of clips that fit into the
    window.

    Args:
        model: On the CPU.
        output: What it gives.
        fft: As in `KaldiGraph`.

    Raises:
        ConfigError: The front end cannot be exported, or there are no classes to score.
    """

    columns: Tensor

    def __init__(self, model: AudioModel, output: Output, *, fft: bool) -> None:
        super().__init__()
        kind = type(model.front_end)
        if kind not in GRAPHS:
            names = ", ".join(cls.__name__ for cls in GRAPHS)
            raise ConfigError(
                f"front_end: {kind.__name__} cannot be exported as a graph, only {names}: give "
                "--format hf, whose folder `peas.load` reads"
            )
        if output == "scores" and not model.labels:
            raise ConfigError(
                "--output is scores, and this model has no classifier: give --output embeddings"
            )
        assert isinstance(model.front_end, KaldiLogMel)
        self.front_end = GRAPHS[kind](model.front_end, fft=fft)
        self.encoder, self.output = model.encoder, output
        self.sigmoid = model.activation == "sigmoid"
        # A column counts if its centre lies inside the clip; at least the first does.
        patch, stride = self.encoder.patch[1], self.encoder.stride[1]
        centres = torch.arange(self.encoder.grid[1]) * stride + patch // 2
        ends = centres * self.front_end.shift + self.front_end.width
        self.register_buffer("columns", ends.index_fill(0, torch.tensor(0), 0))

    def forward(self, waveform: Tensor) -> Tensor:
        """One window of each clip."""
        log_mel = self.front_end(waveform)
        if self.output == "scores":
            logits = self.encoder(log_mel)
            scores: Tensor = logits.sigmoid() if self.sigmoid else logits.softmax(dim=-1)
            return scores
        patches = self.encoder.tokens(log_mel)[:, self.encoder.special :]
        rows, columns = self.encoder.grid
        shape, dim = ((columns, rows), 2) if self.encoder.time_major else ((rows, columns), 1)
        inside = (self.columns <= waveform.shape[1]).to(patches.dtype)
        over_time = patches.reshape(patches.shape[0], *shape, -1).mean(dim=dim) * inside[:, None]
        embedding: Tensor = over_time.sum(dim=1) / inside.sum()
        return embedding
