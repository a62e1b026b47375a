"""The CLAP teacher by LAION's own implementation."""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

from torch import Tensor, nn

from peas.errors import ConfigError
from peas.models.weights import clap as clap_keys
from peas.models.weights.clap import PROJECTION, TOWER, ClapWeights
from peas.teachers.clap_base import ClapTeacher
from peas.teachers.htsat import JOINT, SETTINGS, SHAPES, Arch, Fill, Space

_PACKAGE = "_peas_laion_clap"


class LaionClapTeacher(ClapTeacher):
    """CLAP's audio tower by LAION's own package, `laion-clap` (`pip install 'peas[clap]'`).

    The tower alone is built: no text tower, no tokenizer, no network. It takes 48 kHz sound and
    gives the last feature map after the final norm, `[B, D, 2, 32]` for up to 10.3 s: not
    `fine_grained_embedding`, which is averaged over frequency. Fusion models are refused.

    Args:
        checkpoint: LAION's `.pt` file, for instance 630k-audioset-best.pt (HTSAT-tiny), or a
            hub's model folder. It must be given: null, when typed, gives random weights, for tests
            alone, with a warning.
        arch: Size of the tower: HTSAT-tiny (31 M weights, D = 768) or HTSAT-base (72 M, 1024; the
            files named music_…). It must be the file's.
        space: `map`: the map itself. `joint`: each bin through the audio projection into the
            512-d space that sounds and texts share (not scaled to unit length).
        fill: What follows a clip shorter than a window: `silence`, or `repeat`, its own sound
            again as in LAION's training ("repeatpad"). A clip's own columns keep their position.
        seed: Of random weights.

    Raises:
        CheckpointError: When the network is made: the checkpoint is missing, damaged or of another
            kind.
        ConfigError: A setting is none of those above; and when the network is made: no checkpoint
            is given, or laion-clap cannot be imported.
    """

    def __init__(
        self,
        checkpoint: str | None = "",
        arch: Arch = "HTSAT-tiny",
        space: Space = "map",
        fill: Fill = "silence",
        seed: int = 0,
    ) -> None:
        super().__init__(checkpoint, arch, space, fill, seed)

    def last_map(self, log_mel: Tensor) -> Tensor:
        """Last map `[B, D, 2, 32]` for `[B, 1001, 64]`."""
        tower = cast(Any, self.network.audio_branch)
        normalised = tower.bn0(log_mel[:, None].transpose(1, 3)).transpose(1, 3)
        tokens = tower.pos_drop(tower.patch_embed(tower.reshape_wav2img(normalised)))
        for stage in tower.layers:
            tokens, _ = stage(tokens)
        # Four quarters of the time lie stacked in the folded image: [quarter, row] by column.
        rows, quarters = 2, tower.freq_ratio
        folded = tower.norm(tokens).transpose(1, 2).unflatten(2, (quarters, rows, -1))
        return cast(Tensor, folded.transpose(2, 3).flatten(3))

    def named_weights(self) -> Mapping[str, Tensor]:
        """State of the network, in transformers' names."""
        return clap_keys.to_hub(self.network.state_dict())

    def tower(self) -> nn.Module:
        """See `build_tower`."""
        return build_tower(self.arch)

    def load(self, network: nn.Module, weights: ClapWeights) -> None:
        """Put a file's weights into the network."""
        own = network.state_dict()
        # Kept from the network: masks of shifted windows, which follow from the architecture.
        network.load_state_dict(own | clap_keys.to_laion(weights.fitted(clap_keys.to_hub(own))))


def build_tower(arch: Arch) -> nn.Module:
    """LAION's HTSAT and audio projection of a size, with random weights and our front end."""
    htsat = _htsat()
    config = SimpleNamespace(
        audio_length=1024,
        clip_samples=SETTINGS["samples"],
        mel_bins=SETTINGS["mels"],
        sample_rate=SETTINGS["rate"],
        window_size=SETTINGS["fft"],
        hop_size=SETTINGS["hop"],
        fmin=SETTINGS["low"],
        fmax=SETTINGS["high"],
        class_num=527,
        model_type="HTSAT",
        model_name=arch.removeprefix("HTSAT-"),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.meshgrid")
        tower = htsat.create_htsat_model(config)
    # Heads for AudioSet's classes.
    del tower.tscam_conv, tower.head
    width = SHAPES[arch].width
    projection = nn.Sequential(nn.Linear(width, JOINT), nn.ReLU(), nn.Linear(JOINT, JOINT))
    return nn.ModuleDict(
        {TOWER.rstrip("."): tower, PROJECTION.rstrip("."): projection},
    )


def _htsat() -> Any:
    """LAION's module of HTSAT, without running its package.

    Importing `laion_clap` builds three tokenizers, which asks the network for minutes. The module
    needs only its neighbours in the folder, so they are given a package of their own.
    """
    try:
        if _PACKAGE not in sys.modules:
            spec = importlib.util.find_spec("laion_clap")
            if spec is None or spec.origin is None:
                raise ModuleNotFoundError("No module named 'laion_clap'")
            package = ModuleType(_PACKAGE)
            package.__path__ = [str(Path(spec.origin).parent / "clap_module")]
            sys.modules[_PACKAGE] = package
        htsat: Any = importlib.import_module(f"{_PACKAGE}.htsat")
    # A torchvision built for another torch fails with whatever its libraries raise.
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"LaionClapTeacher cannot load laion-clap ({error}): pip install 'peas[clap]', or use "
            "TransformersClapTeacher, which reads the same files without it"
        ) from error
    # Its front end is slower than ours, takes librosa's and numba's import and gives the same.
    htsat.Spectrogram = htsat.LogmelFilterBank = _Unused
    return htsat


class _Unused(nn.Module):
    """Stands in for a layer that is never called."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()
