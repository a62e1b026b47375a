"""Transformer blocks of all encoders, and the encoder of SSAST."""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple, cast

import torch
from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from peas.errors import ConfigError
from peas.models.patches import Pair, grid_shape


class Size(NamedTuple):
    """Width D, number of blocks and of attention heads of an encoder."""

    width: int
    depth: int
    heads: int


SIZES: dict[str, Size] = {
    # For experiments on a CPU; no paper has it.
    "mini": Size(128, 4, 4),
    "tiny": Size(192, 12, 3),
    "small": Size(384, 12, 6),
    "base": Size(768, 12, 12),
    "large": Size(1024, 24, 16),
}


def size_of(name: str) -> Size:
    """The numbers of a size.

    Raises:
        ConfigError: The size is unknown.
    """
    if name not in SIZES:
        raise ConfigError(f"unknown model size {name!r}; choose one of {', '.join(SIZES)}")
    return SIZES[name]


class PatchEmbedding(nn.Module):
    """A convolution that turns each patch into a vector.

    Attributes:
        proj: The convolution, named as in the official checkpoints.
    """

    def __init__(self, width: int, patch: Pair, stride: Pair) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, kernel_size=patch, stride=stride)

    def forward(self, log_mel: Tensor, stride: Pair | None = None) -> Tensor:
        """Embed every patch.

        Args:
            log_mel: `[B, T, F]`.
            stride: Step between patches; by default the one given at construction. The weights
                do not depend on it.

        Returns:
            `[B, N, D]` in frequency-major order.
        """
        image = log_mel.transpose(1, 2).unsqueeze(1)
        if stride is None:
            tokens: Tensor = self.proj(image).flatten(2).transpose(1, 2)
            return tokens
        rows = functional.conv2d(image, self.proj.weight, self.proj.bias, stride=stride)
        return rows.flatten(2).transpose(1, 2)


class SelfAttention(nn.Module):
    """Multi-head self-attention of a `timm` block, laid out for PyTorch's fused kernels.

    It takes over the linear layers of `timm`'s attention, so names and fresh weights stay, and
    gives the same result to the last bit. On a CPU the fused kernel reads queries, keys and values
    faster, in both directions, when each lies in memory by itself than from rows that hold all
    three, by more than the copy costs; and the gradient is put back into such rows in one pass.

    Attributes:
        qkv: D to 3 D, queries, keys and values.
        proj: D to D.
    """

    def __init__(self, qkv: nn.Linear, proj: nn.Linear, heads: int) -> None:
        super().__init__()
        self.qkv, self.proj = qkv, proj
        self.heads = heads

    def forward(
        self, tokens: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attend: `[B, N, D]` to `[B, N, D]`; the options are those of `timm`'s block."""
        batch, count, width = tokens.shape
        parts: Iterable[Tensor] = self.qkv(tokens).chunk(3, dim=-1)
        if tokens.device.type == "cpu":
            parts = (part.contiguous() for part in parts)
        shape = (batch, count, self.heads, width // self.heads)
        q, k, v = (part.view(shape).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask, is_causal=is_causal)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


def transformer_blocks(size: Size, drop_path: float = 0.0) -> nn.ModuleList:
    """The blocks of a pre-norm vision transformer, `timm`'s with the attention above.

    LayerNorm has eps 1e-6, the queries, keys and values a bias, the MLP four times the width.

    Args:
        size: Width, number of blocks and heads.
        drop_path: Rate of stochastic depth of the last block; it rises linearly from 0.
    """
    blocks = nn.ModuleList(
        Block(
            size.width,
            size.heads,
            mlp_ratio=4.0,
            qkv_bias=True,
            drop_path=drop_path * index / max(size.depth - 1, 1),
            norm_layer=partial(nn.LayerNorm, eps=1e-6),  # type: ignore[arg-type]
        )
        for index in range(size.depth)
    )
    for block in blocks:
        timms = cast(Attention, block.attn)
        block.attn = SelfAttention(timms.qkv, timms.proj, size.heads)
    return blocks


class PostNormBlock(nn.Module):
    """A transformer block whose norms follow the sums, as those of BEATs and EAT.

    Attributes:
        attn: The attention.
        norm1: LayerNorm of the sum of the tokens and what the attention gave.
        mlp: Two linear layers with GELU, four times as wide inside.
        norm2: LayerNorm of the sum of the tokens and what the MLP gave.
        alpha: Factor of the tokens in both sums (DeepNorm; 1 otherwise).
    """

    def __init__(
        self,
        width: int,
        attention: nn.Module,
        *,
        eps: float,
        alpha: float = 1.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.attn = attention
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, 4 * width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.alpha = alpha

    def forward(self, tokens: Tensor, *context: Tensor) -> Tensor:
        """`[B, N, D]` to `[B, N, D]`; the attention gets `context` beside the tokens."""
        tokens = self.norm1(self.alpha * tokens + self.drop_path(self.attn(tokens, *context)))
        out: Tensor = self.norm2(self.alpha * tokens + self.drop_path(self.mlp(tokens)))
        return out


class SpectrogramTransformer(nn.Module):
    """Pre-norm vision transformer over the patches of a log-mel spectrogram.

    The architecture is DeiT's (Touvron et al., 2021) with one input channel: class and
    distillation token, learnt positions, `timm` blocks with LayerNorm eps 1e-6 and a final
    LayerNorm. Weights start as `timm` starts DeiT's; the convolution and nothing else keeps
    PyTorch's default, as in the official SSAST.

    Attributes:
        patch_embed: `PatchEmbedding`.
        cls_token: `[1, 1, D]`.
        dist_token: `[1, 1, D]`.
        pos_embed: `[1, 2 + N, D]`, special tokens first.
        blocks: The transformer blocks.
        norm: The final LayerNorm.
        grid: Patches along (frequency, time).
        special: Number of special tokens, 2.
    """

    special = 2

    def __init__(
        self,
        size: str = "base",
        *,
        frames: int = 1024,
        mels: int = 128,
        patch: Pair = (16, 16),
        stride: Pair | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        width = size_of(size).width
        self.size = size
        self.width = width
        self.frames, self.mels = frames, mels
        self.patch: Pair = (patch[0], patch[1])
        self.stride: Pair = (stride[0], stride[1]) if stride is not None else self.patch
        self.grid = grid_shape(frames, mels, self.patch, self.stride)
        self.patch_embed = PatchEmbedding(width, self.patch, self.stride)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.dist_token = nn.Parameter(torch.empty(1, 1, width))
        count = self.special + self.grid[0] * self.grid[1]
        self.pos_embed = nn.Parameter(torch.empty(1, count, width))
        self.blocks = transformer_blocks(SIZES[size], drop_path)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self._start()

    def _start(self) -> None:
        for table in (self.cls_token, self.dist_token, self.pos_embed):
            nn.init.trunc_normal_(table, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def embed(self, log_mel: Tensor, stride: Pair | None = None) -> Tensor:
        """Patch embeddings without positions: `[B, T, F]` to `[B, N, D]`."""
        tokens: Tensor = self.patch_embed(log_mel, stride)
        return tokens

    def encode(self, patches: Tensor, positions: Tensor | None = None) -> Tensor:
        """Run the blocks over embedded patches.

        Args:
            patches: `[B, N, D]` from `embed`, perhaps with some replaced.
            positions: `[1, 2 + N, D]`; by default the encoder's own table.

        Returns:
            `[B, 2 + N, D]` after the final norm: class token, distillation token, patches.
        """
        table = self.pos_embed if positions is None else positions
        return self.run(patches + table[:, self.special :], table[:, : self.special])

    def run(self, tokens: Tensor, special: Tensor | None = None) -> Tensor:
        """Run the blocks over tokens that have their positions, some of which may be left out.

        Args:
            tokens: `[B, V, D]`.
            special: `[1, 2, D]` positions of the special tokens; by default the encoder's own.

        Returns:
            `[B, 2 + V, D]` after the final norm.
        """
        heads = torch.cat((self.cls_token, self.dist_token), dim=1)
        heads = heads + (self.pos_embed[:, : self.special] if special is None else special)
        tokens = torch.cat((heads.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        encoded: Tensor = self.norm(tokens)
        return encoded

    def check(self, log_mel: Tensor) -> None:
        """Refuse an input of another shape than the table of positions was made for.

        Raises:
            ConfigError: If `log_mel` is not `[B, frames, mels]`.
        """
        if log_mel.ndim != 3 or log_mel.shape[1:] != (self.frames, self.mels):
            raise ConfigError(
                f"the model was built for spectrograms [B, {self.frames}, {self.mels}] (frames, "
                f"mel bins) and got {list(log_mel.shape)}; set the model's frames and mels to the "
                "front end's"
            )

    def forward(self, log_mel: Tensor) -> Tensor:
        """Encode `[B, T, F]` to `[B, 2 + N, D]`."""
        self.check(log_mel)
        return self.encode(self.embed(log_mel))
