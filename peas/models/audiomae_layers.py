"""AudioMAE's layers: fixed positions in two rasters, encoder of visible patches, decoder."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from peas.errors import ConfigError
from peas.models.local_attention import LocalBlocks
from peas.models.patches import Pair, gather_tokens, grid_shape
from peas.models.vit import PatchEmbedding, Size, size_of, transformer_blocks

Raster = Literal["stored", "geometric"]
"""`stored`: AudioMAE's released tables. Its tokens run over 64 x 8 patches (time x frequency), its
positions over 8 rows of 64, so token i has the position (i // 64, i % 64). `geometric`: the
position of a token is its own (time, frequency), as in its models with overlapping patches."""

STORED_COLUMNS = 64
"""Columns of the stored raster: the time patches of ten seconds."""


def official_raster(patch: Pair, stride: Pair) -> Raster:
    """Raster of the official constructor: `geometric` only for overlapping patches.

    Without overlap it takes the patches along frequency for the rows; with overlap it takes the
    convolution's own rows and columns, (time, frequency).

    Args:
        patch: Height and width of a patch, (mel bins, frames).
        stride: Step between patches.
    """
    return "stored" if tuple(stride) == tuple(patch) else "geometric"


def position_table(
    width: int, time_patches: int, freq_patches: int, raster: Raster = "stored"
) -> Tensor:
    """Table of a class token (zeros) and the patches, time-major.

    A vector's first half encodes the column and its second half the row, each as all sines, then
    all cosines, with base 10000. A token's position depends on its index only, so the
    table of a shorter clip is the beginning of a longer one's: this is how weights go from ten
    seconds to five.

    Args:
        width: Width D, a multiple of 4.
        time_patches: Patches along time.
        freq_patches: Patches along frequency.
        raster: `stored` is equal to the official constructor's at 64 x 8 patches; for other
            lengths it continues with rows of 64, as the official files must be cut.

    Returns:
        `[1, 1 + N, D]` float32.
    """
    index = torch.arange(time_patches * freq_patches, dtype=torch.float64)
    columns = STORED_COLUMNS if raster == "stored" else freq_patches
    row, column = index.div(columns, rounding_mode="floor"), index % columns
    table = torch.cat((_sines(width // 2, column), _sines(width // 2, row)), dim=1)
    return torch.cat((torch.zeros(1, width), table.float()))[None]


def _sines(width: int, position: Tensor) -> Tensor:
    rate = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle = position[:, None] * rate
    return torch.cat((angle.sin(), angle.cos()), dim=1)


def raster_of(table: Tensor, freq_patches: int) -> Raster | None:
    """Raster that a table was made with, or None when it is neither.

    Args:
        table: `[1, 1 + N, D]`.
        freq_patches: Patches along frequency.
    """
    count = table.shape[1] - 1
    if count % freq_patches or table.shape[2] % 4:
        return None
    rasters: tuple[Raster, Raster] = ("stored", "geometric")
    for raster in rasters:
        made = position_table(table.shape[2], count // freq_patches, freq_patches, raster)
        if torch.allclose(table.detach().cpu().float(), made, atol=1e-5, rtol=0):
            return raster
    return None


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
        positions = table[:, 1:]
        if visible is not None:
            patches = gather_tokens(patches, visible)
            positions = gather_tokens(positions.expand(patches.shape[0], -1, -1), visible)
        proj = self.patch_embed.proj
        tokens = functional.linear(patches, proj.weight.flatten(1), proj.bias) + positions
        first = (self.cls_token + table[:, :1]).expand(tokens.shape[0], -1, -1)
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
    """Adds a mask token at every masked patch and predicts every patch.

    The class token goes through the global blocks and is left out of the local ones, as official.

    Attributes:
        embed: Encoder width to decoder width.
        mask_token: `[1, 1, W]`, replaces a masked patch.
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
            full = self.mask_token.to(patches.dtype).expand(patches.shape[0], count, -1)
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
