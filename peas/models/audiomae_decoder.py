"""AudioMAE's decoders: from visible tokens to a prediction at every patch."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from peas.errors import ConfigError
from peas.models.audiomae_encoder import fitted, start_like_mae
from peas.models.local_attention import LocalBlocks
from peas.models.patches import Pair
from peas.models.positions import Raster, position_table
from peas.models.vit import Size, transformer_blocks

DecoderKind = Literal["local", "global"]


class DecoderShape(NamedTuple):
    """What a decoder is built of.

    Attributes:
        kind: `local` attention in windows (AudioMAE's choice), or `global`, plain blocks.
        width: Width of its tokens.
        depth: Number of blocks: 16 local or 8 global in AudioMAE, one local in MAM-CLAP.
        heads: Attention heads.
        window: Side of a window in patches, of the local kind.
        first_shift: 0: the first local block is not shifted; 1: it is.
    """

    kind: DecoderKind = "local"
    width: int = 512
    depth: int = 16
    heads: int = 16
    window: int = 4
    first_shift: int = 0


class Decoder(nn.Module):
    """Fills the masked places with a mask token and lets the blocks draw conclusions.

    The class token goes through the global blocks and is left out of the local ones, as official.

    Attributes:
        embed: Encoder width to decoder width.
        mask_token: `[1, 1, W]`, what stands for a masked patch.
        pos_embed: `[1, 1 + N, W]`, fixed.
        blocks: Local or global blocks.
        norm: LayerNorm after them.
        pred: W to P bins of a patch; identity when no pixels are predicted.
    """

    pos_embed: Tensor

    def __init__(
        self,
        shape: DecoderShape,
        *,
        encoder_width: int,
        grid: Pair,
        bins: int,
        positions: Raster = "stored",
        pixels: bool = True,
    ) -> None:
        """Build the decoder.

        Args:
            shape: Its sizes.
            encoder_width: Width D of the encoder's tokens.
            grid: Patches along (frequency, time).
            bins: Bins P of a patch.
            positions: Raster of the fixed table.
            pixels: Whether patches are predicted; without, `pred` has no weights.

        Raises:
            ConfigError: The heads do not divide the width, or a number is not positive.
        """
        super().__init__()
        if min(shape.width, shape.depth, shape.heads, shape.window) < 1:
            raise ConfigError(f"a decoder of {shape} is impossible: every number must be positive")
        if shape.width % shape.heads or shape.width % 4:
            raise ConfigError(
                f"decoder_width is {shape.width}: it must be a multiple of 4 and of "
                f"decoder_heads, {shape.heads}"
            )
        self.shape = shape
        self.rows = grid[0]
        self.embed = nn.Linear(encoder_width, shape.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, shape.width))
        self.register_buffer("pos_embed", position_table(shape.width, grid[1], grid[0], positions))
        self.blocks: LocalBlocks | nn.ModuleList
        if shape.kind == "local":
            self.blocks = LocalBlocks(
                shape.width, shape.depth, shape.heads, shape.window, shape.first_shift
            )
        else:
            self.blocks = transformer_blocks(Size(shape.width, shape.depth, shape.heads))
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.pred: nn.Module = nn.Linear(shape.width, bins) if pixels else nn.Identity()
        start_like_mae(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, visible: Tensor | None, count: int) -> Tensor:
        """Features of every patch.

        Args:
            tokens: `[B, 1 + V, D]` of the encoder, after its norm.
            visible: `[B, V]` indices of the visible patches; None = all are.
            count: Patches N.

        Returns:
            `[B, N, W]` after the norm; `pred` makes patches of it.
        """
        embedded = self.embed(tokens)
        first, patches = embedded[:, :1], embedded[:, 1:]
        if visible is not None:
            full = self.mask_token.to(patches.dtype).expand(len(patches), count, -1)
            patches = full.scatter(1, visible.unsqueeze(-1).expand_as(patches), patches)
        table = fitted(self.pos_embed, count, self.rows, "the decoder's")
        patches = patches + table[:, 1:]
        if isinstance(self.blocks, LocalBlocks):
            patches = self.blocks(patches, (count // self.rows, self.rows))
        else:
            tokens = torch.cat((first + table[:, :1], patches), dim=1)
            for block in self.blocks:
                tokens = block(tokens)
            patches = tokens[:, 1:]
        decoded: Tensor = self.norm(patches)
        return decoded
