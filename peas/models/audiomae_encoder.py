"""AudioMAE's encoder: a vision transformer that sees the visible patches only."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from peas.errors import ConfigError
from peas.models.patches import Pair, gather_tokens, grid_shape
from peas.models.positions import Raster, official_raster, position_table, raster_of
from peas.models.vit import PatchEmbedding, size_of, transformer_blocks


class MaskedEncoder(nn.Module):
    """Class token and visible patches through pre-norm blocks (Huang et al., 2022).

    Tokens are time-major, `t * F' + f`, and a patch is flattened in (time, frequency) row-major
    order, as in the official checkpoints. The embedding is written as a matrix product, so masked
    patches are never embedded.

    Attributes:
        patch_embed: `PatchEmbedding` whose kernel is (frames, mel bins), as official.
        cls_token: `[1, 1, D]`.
        pos_embed: `[1, 1 + N, D]`, fixed; position 0 is the class token's.
        blocks: The transformer blocks.
        norm: The final LayerNorm.
        grid: Patches along (frequency, time).
    """

    pos_embed: Tensor

    def __init__(
        self,
        size: str = "base",
        *,
        frames: int = 1024,
        mels: int = 128,
        patch: Pair = (16, 16),
        stride: Pair | None = None,
        positions: Raster | None = None,
        drop_path: float = 0.0,
    ) -> None:
        """Build the encoder, with weights begun as the official code begins them.

        Args:
            size: Key of `peas.models.vit.SIZES`.
            frames: Number of frames T.
            mels: Number of mel bins F.
            patch: Height and width of a patch, (mel bins, frames).
            stride: Step between patches; by default the patch.
            positions: Raster of the fixed table; by default the official code's for this stride.
            drop_path: Rate of stochastic depth of the last block; it rises linearly from 0.

        Raises:
            ConfigError: The size is unknown, or the input smaller than a patch.
        """
        super().__init__()
        self.size = size
        self.width = size_of(size).width
        self.frames, self.mels = frames, mels
        self.patch: Pair = (patch[0], patch[1])
        self.stride: Pair = (stride[0], stride[1]) if stride is not None else self.patch
        self.grid = grid_shape(frames, mels, self.patch, self.stride)
        self.positions = positions or official_raster(self.patch, self.stride)
        self.patch_embed = PatchEmbedding(self.width, self.patch[::-1], self.stride[::-1])
        self.cls_token = nn.Parameter(torch.empty(1, 1, self.width))
        self.register_buffer(
            "pos_embed", position_table(self.width, self.grid[1], self.grid[0], self.positions)
        )
        self.blocks = transformer_blocks(size_of(size), drop_path)
        self.norm = nn.LayerNorm(self.width, eps=1e-6)
        start_like_mae(self)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.width, -1))
        nn.init.normal_(self.cls_token, std=0.02)

    def grid_of(self, frames: int) -> Pair:
        """Patches along (frequency, time) of T frames."""
        return grid_shape(frames, self.mels, self.patch, self.stride)

    def patches(self, log_mel: Tensor) -> Tensor:
        """Cut `[B, T, F]` into `[B, N, P]`, time-major; bins past the last patch are left out.

        Raises:
            ConfigError: Other mel bins than the model's, or fewer frames than a patch.
        """
        batch, frames, mels = log_mel.shape
        if mels != self.mels:
            raise ConfigError(
                f"the model was built for {self.mels} mel bins and got {mels}; set the model's "
                "mels to the front end's"
            )
        rows, columns = self.grid_of(frames)
        high, wide = self.patch
        if self.stride == self.patch:
            cut = log_mel[:, : columns * wide, : rows * high]
            bins = cut.reshape(batch, columns, wide, rows, high).transpose(2, 3)
        else:
            bins = log_mel.unfold(1, wide, self.stride[1]).unfold(2, high, self.stride[0])
        return bins.reshape(batch, rows * columns, wide * high)

    def table(self, count: int) -> Tensor:
        """Positions of the class token and `count` patches, `[1, 1 + count, D]`.

        Raises:
            ConfigError: The table is of neither raster, so it cannot be made longer or shorter.
        """
        return fitted(self.pos_embed, count, self.grid[0], "the encoder's")

    def forward(self, patches: Tensor, visible: Tensor | None = None) -> Tensor:
        """Encode patches.

        Args:
            patches: `[B, N, P]` from `patches`.
            visible: `[B, V]` indices of those that are seen; None = all.

        Returns:
            `[B, 1 + V, D]` *before* the final norm.
        """
        table = self.table(patches.shape[1])
        places = table[:, 1:]
        if visible is not None:
            patches = gather_tokens(patches, visible)
            places = gather_tokens(places.expand(len(patches), -1, -1), visible)
        proj = self.patch_embed.proj
        tokens = functional.linear(patches, proj.weight.flatten(1), proj.bias) + places
        first = (self.cls_token + table[:, :1]).expand(len(tokens), -1, -1)
        tokens = torch.cat((first, tokens), dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


def fitted(table: Tensor, count: int, freq_patches: int, whose: str) -> Tensor:
    """A fixed table `[1, 1 + N, D]` for another number of patches.

    Args:
        table: Of either raster, or of neither.
        count: Patches that are wanted.
        freq_patches: Patches along frequency.
        whose: For the message.

    Raises:
        ConfigError: The length changes, and the table is of neither raster.
    """
    if table.shape[1] == 1 + count:
        return table
    raster = raster_of(table, freq_patches)
    if raster is None:
        raise ConfigError(
            f"{whose} table of {table.shape[1] - 1} positions is neither AudioMAE's stored raster "
            f"nor the geometric one, so it cannot be fitted to {count} patches: use the number of "
            "frames that it was trained with"
        )
    made = position_table(table.shape[2], count // freq_patches, freq_patches, raster)
    return made.to(table)


def start_like_mae(module: nn.Module) -> None:
    """AudioMAE's fresh weights: Xavier-uniform linear layers without bias, plain norms."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
