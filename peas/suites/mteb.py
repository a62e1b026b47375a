"""MTEB (audio: MAEB): `mteb.evaluate(PeasEncoder("runs/mine"), tasks)`. Importing it needs mteb."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from numpy.typing import NDArray
from torch import Tensor

from peas.audio.resampling import resample
from peas.inference.loading import load
from peas.inference.model import BATCH, AudioModel, Pool
from peas.suites.checkpoint import digest


class PeasEncoder(AbsEncoder):  # type: ignore[misc]
    """An encoder for MTEB's tasks on audio.

    Args:
        model_name: Whatever `peas.load` takes.
        revision: Not used: MTEB passes one when it loads a model from its metadata.
        device: Where to; None = the GPU, if there is one.
        layer: Layer of the embeddings; None = the encoder's output.
        pool: `mean`, `cls` or `mean+std` of the tokens.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        device: str | None = None,
        *,
        layer: int | None = None,
        pool: Pool = "mean",
    ) -> None:
        self.model = load(model_name, device)
        self.options: dict[str, Any] = {"layers": layer, "pool": pool}
        self.mteb_model_meta = meta(self.model, model_name, self.options)

    def encode(self, inputs: Any, **task: Any) -> NDArray[np.float32]:
        """Embeddings `[N, D]` of a DataLoader whose batches have a list `audio`.

        Args:
            inputs: The DataLoader.
            task: Metadata, split and subset, which do not matter here; `batch_size`.
        """
        return self.get_audio_embeddings(inputs, **task)

    def get_audio_embeddings(
        self, inputs: Any, *, batch_size: int = BATCH, **options: Any
    ) -> NDArray[np.float32]:
        """As `encode`: each clip at its own rate, of any length, its channels averaged."""
        rows = [
            self.model.embed(
                [_waveform(clip, self.model.sample_rate) for clip in batch["audio"]],
                batch_size=batch_size,
                **self.options,
            )
            for batch in inputs
        ]
        return torch.cat(rows).numpy()


def _waveform(clip: Any, rate: int) -> Tensor:
    """`[S]` at the model's rate, of `array` `[S]` or `[channels, S]` and `sampling_rate`."""
    samples = torch.as_tensor(np.asarray(clip["array"], dtype=np.float32))
    mono = samples.mean(dim=0) if samples.ndim == 2 else samples
    return resample(mono, int(clip["sampling_rate"]), rate)


def meta(model: AudioModel, path: str, options: dict[str, Any]) -> ModelMeta:
    """What MTEB writes beside scores. The revision changes with the weights.

    Args:
        model: Loaded.
        path: Of what; its name is the model's.
        options: Layer and pool.
    """
    parameters = list(model.encoder.parameters())
    return ModelMeta(
        loader=PeasEncoder,
        name=f"peas/{Path(path).stem}",
        revision=digest(model, **options),
        release_date=None,
        languages=None,
        n_parameters=sum(p.numel() for p in parameters),
        memory_usage_mb=sum(p.numel() * p.element_size() for p in parameters) / 2**20,
        max_tokens=None,
        embed_dim=model.dim * (2 if options["pool"] == "mean+std" else 1),
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch"],
        similarity_fn_name="cosine",
        use_instructions=False,
        training_datasets=None,
        modalities=["audio"],
    )
