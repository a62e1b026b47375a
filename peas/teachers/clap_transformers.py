"""The CLAP teacher by transformers' implementation."""

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from peas.errors import ConfigError
from peas.models.weights.clap import ClapWeights
from peas.teachers.clap_base import ClapTeacher
from peas.teachers.htsat import HEADS, JOINT, SHAPES, Arch, Fill, Space


class TransformersClapTeacher(ClapTeacher):
    """CLAP's audio tower by `transformers`, which needs no `laion-clap`.

    It is the same network as `LaionClapTeacher`'s (equal to 1e-5 on the same weights) and has the
    same fingerprint. It takes 48 kHz sound and gives the last feature map after the final norm,
    `[B, D, 2, 32]` for up to 10.3 s: not `fine_grained_embedding`, which is averaged over
    frequency. Nothing is downloaded.

    Args:
        checkpoint: A hub's model folder (`config.json` and weights) or LAION's `.pt` file, both
            unfused. It must be given: null, when typed, gives random weights, for tests alone,
            with a warning.
        arch: Size of the tower: HTSAT-tiny (31 M weights, D = 768) or HTSAT-base (72 M, 1024). It
            must be the file's.
        space: `map`: the map itself. `joint`: each bin through the audio projection into the
            512-d space that sounds and texts share (not scaled to unit length).
        fill: What follows a clip shorter than a window: `silence`, or `repeat`, its own sound
            again as in LAION's training ("repeatpad"). A clip's own columns keep their position.
        seed: Of random weights.

    Raises:
        CheckpointError: When the network is made: the checkpoint is missing, damaged or of another
            kind.
        ConfigError: A setting is none of those above; and when the network is made: no checkpoint
            is given, or transformers cannot be imported.
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
        tower = cast(nn.Module, self.network.audio_model)
        return cast(Tensor, tower(input_features=log_mel[:, None]).last_hidden_state)

    def named_weights(self) -> Mapping[str, Tensor]:
        """State of the network, in transformers' names."""
        return self.network.state_dict()

    def tower(self) -> nn.Module:
        """See `build_tower`."""
        return build_tower(self.arch)

    def load(self, network: nn.Module, weights: ClapWeights) -> None:
        """Put a file's weights into the network."""
        network.load_state_dict(weights.fitted(network.state_dict()))


def build_tower(arch: Arch) -> nn.Module:
    """`ClapAudioModelWithProjection` of a size, with random weights."""
    try:
        from transformers import ClapAudioConfig, ClapAudioModelWithProjection
    # It imports torchvision, which fails with whatever its libraries raise beside another torch.
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"TransformersClapTeacher cannot load transformers ({error}): pip install "
            "transformers, and a torchvision that belongs to the installed torch or none"
        ) from error
    shape = SHAPES[arch]
    settings: dict[str, Any] = {
        "patch_embeds_hidden_size": shape.first,
        "hidden_size": shape.width,
        "projection_dim": JOINT,
        "depths": list(shape.depths),
        "num_attention_heads": list(HEADS),
    }
    return cast(nn.Module, ClapAudioModelWithProjection(ClapAudioConfig(**settings)))
