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
from peas.audio.frontend import FrontEnd, KaldiLogMel
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
        mel = front_end.mel
        # Its rows are doubled, for the squares of real and imaginary parts side by side.
        self.size, half = mel.shape[0], mel[::2]
        starts = torch.arange(self.frames) * self.shift
        self.register_buffer("index", starts[:, None] + torch.arange(self.width))
        # A clip shorter than one frame is padded with zeros to one.
        self.register_buffer("ends", (starts + self.width).index_fill(0, torch.tensor(0), 0))
        self.register_buffer("window", front_end.window * LIFT)
        self.register_buffer("mel", half.clone())
        cosines, sines = _waves(self.width, self.size)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)
        self.register_buffer("mean", front_end.mean.clone())
        self.register_buffer("deviation", 2 * front_end.std)
        self.register_buffer("padding", front_end.fill_value("raw_zero"))

    index: Tensor
    ends: Tensor
    window: Tensor
    mel: Tensor
    cosines: Tensor
    sines: Tensor
    mean: Tensor
    deviation: Tensor
    padding: Tensor

    def prepare(self, waveform: Tensor) -> Tensor:
        """Samples as the filter bank gets them: without the clip's mean."""
        return waveform - waveform.double().mean(dim=1, keepdim=True).float()

    def forward(self, waveform: Tensor) -> Tensor:
        """Normalised log-mels: `[B, S]` to `[B, T, F]`."""
        samples = waveform.shape[1]
        needed = (self.frames - 1) * self.shift + self.width
        clips = functional.pad(self.prepare(waveform), (0, needed))[:, :needed]
        frames = clips[:, self.index]
        frames = frames - frames.mean(dim=2, keepdim=True)
        before = functional.pad(frames[:, :, :-1], (1, 0))
        frames = (frames - PREEMPHASIS * before) * self.window
        energies = (self.powers(frames) @ self.mel) * LIFT**-2
        log_mel = (energies.clamp(min=ENERGY_FLOOR).log() - self.mean) / self.deviation
        inside = (self.ends <= samples)[:, None]
        return torch.where(inside, log_mel, self.padding)

    def powers(self, frames: Tensor) -> Tensor:
        """Power spectra below half the rate: `[B, T, W]` to `[B, T, K]`."""
        if self.fft:
            spectrum = torch.view_as_real(torch.fft.rfft(frames, n=self.size))
            return spectrum[:, :, :-1].square().sum(dim=-1)
        # About a frame's middle cosines are even and sines odd, so half of the products are left.
        # The power does not depend on where time begins.
        if self.width % 2:
            frames = functional.pad(frames, (0, 1))
        left, right = frames.chunk(2, dim=-1)
        left = left.flip(-1)
        return ((right + left) @ self.cosines).square() + ((right - left) @ self.sines).square()


def _waves(width: int, size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of an FFT of `size`, from the middle of a frame: `[W / 2, K]`."""
    time = torch.arange((width + 1) // 2, dtype=torch.float64) + 0.5
    angle = torch.outer(time, torch.arange(size // 2)) * (2 * math.pi / size)
    return angle.cos().float(), angle.sin().float()


GRAPHS: dict[type[FrontEnd], type[KaldiGraph]] = {KaldiLogMel: KaldiGraph}
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
            return logits.sigmoid() if self.sigmoid else logits.softmax(dim=-1)
        patches = self.encoder.tokens(log_mel)[:, self.encoder.special :]
        rows, columns = self.encoder.grid
        shape, dim = ((columns, rows), 2) if self.encoder.time_major else ((rows, columns), 1)
        inside = (self.columns <= waveform.shape[1]).to(patches.dtype)
        over_time = patches.unflatten(1, shape).mean(dim=dim) * inside[:, None]
        return over_time.sum(dim=1) / inside.sum()
