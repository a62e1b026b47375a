"""What tasks and callbacks may ask of a masked model, of whichever family."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from timm.models.vision_transformer import Block
from torch import Tensor, nn

from peas.errors import ConfigError, NoReconstruction
from peas.models.grid import Pair
from peas.models.local_attention import LocalBlock
from peas.models.pixel_probe import PixelProbe

Grid = Literal["nonoverlap", "finetune"]
"""Patches of `reconstruct`: those of pretraining, or the model's own in fine-tuning."""


class MaskedModel(nn.Module, ABC):
    """A transformer over patches that was, or is being, pretrained by hiding some of them.

    Attributes:
        time_major: Order of the tokens: `t * F' + f` (AudioMAE) when True, `f * T' + t` (SSAST)
            when False, for a grid of F' x T' patches. `hidden_patches` of a batch has this order.
        patch: Height and width of a patch, (mel bins, frames).
        stride: Step between two patches, (mel bins, frames).
        width: Width D of a token.
        num_classes: Number of classes C; 0 without a classifier.
        grid: Patches along (frequency, time) of the model's own input.
        reconstructs: Scalar bool, whether the model has a trained pixel head of its own.
        pixel_probe: A linear pixel head that was fitted afterwards, and draws in the place of any
            other; None = there is none.
    """

    time_major: ClassVar[bool]
    patch: Pair
    stride: Pair
    num_classes: int
    reconstructs: Tensor
    pixel_probe: PixelProbe | None

    def __init__(self) -> None:
        super().__init__()
        self.pixel_probe = None
        self.register_load_state_dict_pre_hook(_adopt_probe)  # type: ignore[no-untyped-call]

    @property
    @abstractmethod
    def width(self) -> int:
        """Width D of a token."""

    @property
    @abstractmethod
    def grid(self) -> Pair:
        """Patches along (frequency, time) of the model's own input."""

    @abstractmethod
    def forward(self, log_mel: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Logits `[B, C]` of `[B, T, F]`; embeddings `[B, D]` when there are no classes.

        Args:
            log_mel: `[B, T, F]` normalised, of the shape that the model was built for.
            hidden: `[B, N]` bool, patches that are dropped before the encoder, equally many of
                each clip: AudioMAE's masking in fine-tuning.
        """

    @abstractmethod
    def embedding(self, log_mel: Tensor) -> Tensor:
        """Mean of the patch tokens after the final norm, `[B, D]`; any number of frames."""

    @abstractmethod
    def reconstruct(
        self, log_mel: Tensor, hidden: Tensor | None = None, *, grid: Grid = "nonoverlap"
    ) -> Tensor:
        """Draw the spectrogram from its tokens: G(E(x)) of PEAS's equations 1 and 2.

        Args:
            log_mel: `[B, T, F]` normalised; T may differ from the model's.
            hidden: `[B, N]` bool, hidden patches of the chosen grid in *frequency-major* order,
                for every family.
            grid: Which patches.

        Returns:
            `[B, T, F]` in the units of `log_mel`.

        Raises:
            NoReconstruction: The weights came without a trained pixel head.
        """

    @abstractmethod
    def patch_tokens(self, log_mel: Tensor, grid: Grid = "nonoverlap") -> tuple[Tensor, Tensor]:
        """Tokens of every patch with nothing hidden, and the patches that they stand for.

        Args:
            log_mel: `[B, T, F]` normalised; T may differ from the model's.
            grid: Which patches.

        Returns:
            `[B, N, D]` after the final norm and `[B, N, P]`, in the model's own order.
        """

    @property
    def can_reconstruct(self) -> bool:
        """Whether `reconstruct` has something to draw with."""
        return self.pixel_probe is not None or bool(self.reconstructs)

    @abstractmethod
    def require_reconstruction(self) -> None:
        """Raises NoReconstruction when there is neither a trained pixel head nor a probe."""

    def require_head_for(self, hidden: Tensor | None) -> None:
        """Refuses hidden patches where a probe draws: it knows visible tokens alone.

        Raises:
            NoReconstruction: Patches are hidden from a probe.
        """
        if hidden is not None and self.pixel_probe is not None:
            raise NoReconstruction(
                "a linear pixel probe (`model.init_args.reconstruction: probe`) draws visible "
                "patches alone: hide none (`PEAS` with `aux_input_mask: none`), or start from a "
                "checkpoint pretrained with reconstruction and `reconstruction: head`"
            )

    @abstractmethod
    def token_grid(self, frames: int, grid: Grid = "nonoverlap") -> Pair:
        """Patches along (frequency, time) that `reconstruct` makes of T frames."""

    @abstractmethod
    def coverage(
        self, frames: int, grid: Grid = "nonoverlap", mels: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Frames `[T]` and mel bins `[F]`, boolean, that the grid's patches cover."""


def _adopt_probe(
    module: nn.Module,
    state: dict[str, Tensor],
    prefix: str,
    *_: object,
) -> None:
    """Give the model the probe that the state has, before the weights are copied."""
    weight = state.get(prefix + "pixel_probe.weight")
    if weight is not None and isinstance(module, MaskedModel) and module.pixel_probe is None:
        cells, width = weight.shape
        module.pixel_probe = PixelProbe(width, cells).to(module.reconstructs.device)


def compile_blocks(model: nn.Module) -> None:
    """Compile every transformer block of a model in its place, so that no key changes its name.

    The blocks of a model share their code, and so one graph: a whole model would take as much
    longer to compile as it has blocks, and be broken up by what lies between them.

    Args:
        model: The model.
    """
    for part in model.modules():
        if isinstance(part, Block | LocalBlock):
            part.compile()


def check_grid(grid: str) -> None:
    """Refuse an unknown grid.

    Raises:
        ConfigError: It is neither `nonoverlap` nor `finetune`.
    """
    if grid not in ("nonoverlap", "finetune"):
        raise ConfigError(f"unknown grid {grid!r}; choose 'nonoverlap' or 'finetune'")


def visible_places(hidden: Tensor) -> Tensor:
    """Indices of the patches that stay, in their order.

    Args:
        hidden: `[B, N]` bool, equally many True in each row.

    Returns:
        `[B, V]` int64.

    Raises:
        ConfigError: The rows hide different numbers of patches, or a row hides all of them.
    """
    if hidden.device.type == "cpu":
        # Asking would make a GPU wait; there a ragged mask fails below on its shape.
        counts = hidden.sum(dim=1)
        if len(counts) and (counts.min() != counts.max() or int(counts[0]) == hidden.shape[1]):
            raise ConfigError(
                f"`hidden_patches` hides {int(counts.min())} to {int(counts.max())} of "
                f"{hidden.shape[1]} patches: every clip must hide equally many, and keep one"
            )
    places = (~hidden).nonzero()[:, 1]
    return places.view(len(hidden), -1)


def gather_tokens(tokens: Tensor, places: Tensor) -> Tensor:
    """Tokens at some places: `[B, N, D]` and `[B, V]` to `[B, V, D]`."""
    return tokens.gather(1, places.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))


def other_geometry(own: Tensor, theirs: Tensor) -> str:
    """Why weights do not fit a model's input, or nothing when they do.

    Args:
        own: The model's `geometry`, which begins with frames, mels and stride.
        theirs: That of the weights.
    """
    ours, found = own[:4].tolist(), theirs[:4].tolist()
    if ours == found:
        return ""
    return (
        f"the weights belong to (frames, mels, stride) {found}, the model to {ours}; "
        "build the model with the weights' frames, mels and stride"
    )
