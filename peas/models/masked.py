"""Arithmetic of masked patches that every encoder shares."""

from typing import Literal

from timm.models.vision_transformer import Block
from torch import Tensor, nn

from peas.errors import ConfigError
from peas.models.local_attention import LocalBlock

Grid = Literal["nonoverlap", "finetune"]
"""Patches of `reconstruct`: those of pretraining, or the model's own in fine-tuning."""


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
