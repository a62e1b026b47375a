"""HEAR's common API: `heareval` and `hearvalidator` import this module by its name."""

from torch import Tensor, nn

from peas.inference.model import Bands, Pool
from peas.suites.checkpoint import checkpoint, frame_dim


class Model(nn.Module):
    """What HEAR passes back to the functions below.

    Args:
        path: Whatever `peas.load` takes; empty = the environment variable `PEAS_CHECKPOINT`.
        layer: Layer of the embeddings; None = the encoder's output.
        pool: What a scene's embedding is: `mean`, `cls` or `mean+std` of the tokens.
        bands: Whether patches of one time are concatenated (`concat`) or averaged (`mean`).

    Attributes:
        sample_rate: Samples per second of the audio that HEAR passes.
        scene_embedding_size: Width of an embedding of a clip.
        timestamp_embedding_size: Width of an embedding of a time.
    """

    def __init__(
        self, path: str, layer: int | None = None, pool: Pool = "mean", bands: Bands = "concat"
    ) -> None:
        super().__init__()
        self.model = checkpoint(path)
        self.layer, self.pool, self.bands = layer, pool, bands
        self.sample_rate = self.model.sample_rate
        self.scene_embedding_size = self.model.dim * (2 if pool == "mean+std" else 1)
        self.timestamp_embedding_size = frame_dim(self.model, bands)


def load_model(
    model_file_path: str = "",
    layer: int | None = None,
    pool: Pool = "mean",
    bands: Bands = "concat",
) -> Model:
    """The model; the options are what `heareval`'s `--model-options` takes as JSON."""
    return Model(model_file_path, layer, pool, bands)


def get_scene_embeddings(audio: Tensor, model: Model) -> Tensor:
    """One embedding a clip: `[n, samples]` to `[n, D]` float32."""
    return model.model.embed(audio, layers=model.layer, pool=model.pool)


def get_timestamp_embeddings(audio: Tensor, model: Model) -> tuple[Tensor, Tensor]:
    """Embeddings over time.

    Args:
        audio: `[n, samples]`.
        model: Of `load_model`.

    Returns:
        `[n, T, D']` float32, and their centres in milliseconds, `[n, T]`.
    """
    return model.model.frames(audio, layers=model.layer, bands=model.bands)
