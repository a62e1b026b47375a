"""s3prl (SUPERB): `register()`, then `S3PRLUpstream("peas_local", "runs/mine")`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import torch
import torchaudio
import yaml
from torch import Tensor, nn

from peas.suites.checkpoint import checkpoint

RATE = 16_000
"""Samples per second of all audio in s3prl."""


class UpstreamExpert(nn.Module):
    """All layers over time. Frozen, as SUPERB's rules demand: no gradient, no dropout.

    Args:
        ckpt: Whatever `peas.load` takes; empty = the environment variable `PEAS_CHECKPOINT`.
        model_config: A YAML file with options of `AudioModel.frames`: `bands`, `overlap`, `layers`.
    """

    def __init__(self, ckpt: str = "", model_config: str | None = None) -> None:
        super().__init__()
        self.model = checkpoint(ckpt)
        self.options: dict[str, Any] = {"layers": range(self.model.layers + 1)}
        if model_config:
            self.options |= yaml.safe_load(Path(model_config).read_text(encoding="utf-8"))

    def get_downsample_rates(self, key: str = "hidden_states") -> int:
        """Samples from one embedding to the next, at 16 kHz; the same for every `key`."""
        return round(self.model.hop_ms * RATE / 1000)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: s3prl calls this for its own modules too."""
        return super().train(False)

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Layers 0 to L, `[B, T, D']` each, of waveforms `[S]`.

        s3prl counts an embedding for each hop that a clip has begun, and peas those whose centre
        lies in it. The last embedding is repeated for the difference; past that there are zeros.
        """
        embedded, times = self.model.frames(wavs, RATE, **self.options)
        rate = self.get_downsample_rates()
        begun = [-(-len(wav) // rate) for wav in wavs]
        steps = torch.arange(max(begun))
        last = times.isfinite().sum(dim=1) - 1
        index = torch.minimum(steps, last[:, None])
        rows = torch.arange(len(wavs))[:, None]
        inside = steps < torch.tensor(begun)[:, None]
        layers = embedded[:, rows, index] * inside[:, :, None]
        return {"hidden_states": list(layers.to(wavs[0].device))}


def peas_local(
    ckpt: str = "", model_config: str | None = None, refresh: bool = False, **_: Any
) -> UpstreamExpert:
    """Entry of s3prl's hub, which passes `refresh` to all of them."""
    return UpstreamExpert(ckpt, model_config)


def register() -> None:
    """Adds `peas_local` to s3prl's hub.

    The hub of s3prl 0.4.18 imports all its upstreams, and two of them names that torchaudio 2.9
    removed. They are filled in, so that the hub can be imported; those two upstreams do not run.
    """
    if not hasattr(torchaudio, "set_audio_backend"):
        torchaudio.set_audio_backend = lambda backend: None
    name = "torchaudio.sox_effects"
    if not hasattr(torchaudio, "sox_effects") and name not in sys.modules:
        sys.modules[name] = torchaudio.sox_effects = ModuleType(name)
        torchaudio.sox_effects.apply_effects_tensor = None
    import s3prl.hub

    s3prl.hub.peas_local = peas_local
