"""X-ARES: `python -m xares.run` makes the one class of this module whose name ends in Encoder."""

from torch import Tensor, nn

from peas.inference.model import Bands
from peas.suites.checkpoint import checkpoint, digest, frame_dim


class PeasEncoder(nn.Module):
    """An encoder for X-ARES. Without arguments, its path is that of `PEAS_CHECKPOINT`.

    X-ARES keeps embeddings and scores in a folder named after the class and takes them from there
    the next time. So each instance has a class of its own, named after its weights and options.

    Args:
        path: Whatever `peas.load` takes; empty = the environment variable `PEAS_CHECKPOINT`.
        layer: Layer of the embeddings; None = the encoder's output.
        bands: Whether patches of one time are concatenated (`concat`) or averaged (`mean`).

    Attributes:
        sampling_rate: Samples per second of the audio that X-ARES passes.
        output_dim: Width of an embedding.
        hop_size_in_ms: Milliseconds from one embedding to the next.
    """

    def __init__(self, path: str = "", layer: int | None = None, bands: Bands = "concat") -> None:
        super().__init__()
        self.model = checkpoint(path)
        self.layer, self.bands = layer, bands
        self.sampling_rate = self.model.sample_rate
        self.output_dim = frame_dim(self.model, bands)
        self.hop_size_in_ms = self.model.hop_ms
        name = f"Peas{digest(self.model, layer=layer, bands=bands)}Encoder"
        self.__class__ = type(name, (PeasEncoder,), {})

    def forward(self, audio: Tensor) -> Tensor:
        """Embeddings `[B, T, D]` on the CPU of audio `[B, samples]`, or `[samples]`."""
        return self.model.frames(audio, layers=self.layer, bands=self.bands).embeddings


def encoder(path: str = "", **options: int | str | None) -> PeasEncoder:
    """An encoder of a path, for a file of your own with a name that X-ARES finds.

    `def MyEncoder(): return encoder("runs/mine", layer=9)`; a second name that ends in `Encoder`,
    an imported `PeasEncoder` too, makes X-ARES refuse the file.

    Args:
        path: Whatever `peas.load` takes.
        options: Of `PeasEncoder`.
    """
    return PeasEncoder(path, **options)  # type: ignore[arg-type]
