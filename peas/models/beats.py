"""BEATs: a transformer over patches with convolutional and gated relative positions."""

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from peas.errors import ConfigError
from peas.models.encoder import Encoder, Need
from peas.models.patches import Pair, gather_tokens, visible_indices
from peas.models.vit import PostNormBlock, size_of

KERNEL, GROUPS = 128, 16
"""Patches that the position convolution sees, and its groups."""
GATE = 8
"""Outputs of a head's gate, two sums of four."""


class BEATs(Encoder):
    """BEATs (Chen et al., 2023), for classification and PEAS with a pixel probe.

    Tokens are time-major and there are no special ones. Positions follow from a token's index
    alone: a convolution over the sequence, and a bias of the attention by the distance of two
    tokens. So any number of frames may be encoded, and no table is cut or interpolated. The last
    block's output has no further norm.

    A classifier is one linear layer on the mean token. The official code takes the mean of
    the tokens' logits, which is the same.

    Patches that are dropped do not reach the blocks; the convolution sees zeros in their places,
    as the official code has them for padding. Visible patches keep the distances that they had.

    Attributes:
        encoder: `BEATsTransformer`.
        fc_norm: Identity.
        head: The classifier; identity without classes.
    """

    special = 0
    fixed = ("size", "patch", "patch_width", "buckets", "max_distance")

    def __init__(
        self,
        size: Literal["mini", "tiny", "small", "base", "large"] = "base",
        patch: tuple[int, int] = (16, 16),
        patch_width: int = 512,
        buckets: int = 320,
        max_distance: int = 800,
        drop_path: float = 0.0,
        gradient_decay: float = 1.0,
    ) -> None:
        """Note the settings; the defaults of all but the last two are those of the official files.

        Args:
            size: `mini` (128 wide, 4 blocks), `tiny` (192, 12), `small` (384, 12), `base` (768, 12)
                or `large` (1024, 24); the official files are `base`.
            patch: Patch shape (mel bins, frames).
            patch_width: Width of the patch embeddings before they are projected to the tokens'.
            buckets: Distances that the attention's bias discriminates, of both signs.
            max_distance: Distance in tokens from which all are alike to it.
            drop_path: Rate of stochastic depth of the last block; it rises linearly from 0.
            gradient_decay: Factor of the gradient from each block to the one before it, officially
                `layer_wise_gradient_decay_ratio`. Unlike a recipe's `layer_decay` it changes no
                learning rate; it changes Adam's steps only where gradients come near its epsilon.

        Raises:
            ConfigError: A value is impossible; the message names the key.
        """
        super().__init__()
        self.size, self.patch = size, (patch[0], patch[1])
        self.patch_width, self.drop_path = patch_width, drop_path
        where = "`model.init_args.encoder.init_args"
        # Half of the buckets are for each sign, and half of those for one distance each.
        if buckets < 4 or buckets % 4:
            raise ConfigError(f"{where}.buckets` is {buckets}: give a multiple of 4")
        if max_distance <= buckets // 4:
            raise ConfigError(
                f"{where}.max_distance` is {max_distance}: it must exceed a quarter of the "
                f"{buckets} buckets"
            )
        if not 0 < gradient_decay <= 1:
            raise ConfigError(
                f"{where}.gradient_decay` is {gradient_decay}: give a number above 0 and up to 1"
            )
        self.buckets, self.max_distance = buckets, max_distance
        self.gradient_decay = gradient_decay

    def make(self, needs: Collection[Need] | None) -> None:
        """Makes the modules, initialised as in the official code."""
        self.encoder = BEATsTransformer(
            self.size,
            patch=self.patch,
            patch_width=self.patch_width,
            buckets=self.buckets,
            max_distance=self.max_distance,
            drop_path=self.drop_path,
            gradient_decay=self.gradient_decay,
        )
        self.width = self.encoder.width
        self.make_classifier()

    def make_classifier(self) -> None:
        """Nothing is normalised before the linear layer."""
        super().make_classifier()
        self.fc_norm = nn.Identity()

    def layer_of(self, name: str) -> int:
        """As in `Encoder`; the table of relative positions is one of the embeddings."""
        return 0 if name.startswith("encoder.distances.") else super().layer_of(name)

    def tokens(self, log_mel: Tensor, masked: Tensor | None = None) -> Tensor:
        """Visible patches after the last block, `[B, V, D]`; T may differ from the model's."""
        tokens: Tensor = self.encoder(log_mel, masked)
        return tokens

    def import_weights(self, state: Mapping[str, Any], where: str) -> Any:
        """Fills the model from an official BEATs file, a hub folder or a checkpoint of ours."""
        from peas.models.weights import BEATS

        return BEATS.load(self, state, where)


class BEATsTransformer(nn.Module):
    """Patch embeddings with convolutional positions, through blocks with DeepNorm.

    Attributes:
        patch_embed: `PatchEmbedding`, all that precedes the blocks.
        distances: `Distances`, the attention's bias, shared by all blocks.
        blocks: The transformer blocks.
    """

    def __init__(
        self,
        size: str,
        *,
        patch: Pair,
        patch_width: int,
        buckets: int,
        max_distance: int,
        drop_path: float = 0.0,
        gradient_decay: float = 1.0,
    ) -> None:
        super().__init__()
        self.size, self.gradient_decay = size, gradient_decay
        self.width, depth, heads = size_of(size)
        self.patch_embed = PatchEmbedding(self.width, patch, patch_width)
        self.distances = Distances(heads, buckets, max_distance)
        self.blocks = nn.ModuleList(
            PostNormBlock(
                self.width,
                GatedAttention(self.width, heads),
                eps=1e-5,
                alpha=(2 * depth) ** 0.25,
                drop_path=drop_path * index / max(depth - 1, 1),
            )
            for index in range(depth)
        )
        self._start((8 * depth) ** -0.25)

    def _start(self, beta: float) -> None:
        """BERT's weights, and in the blocks DeepNorm's."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear) and not name.endswith("gate"):
                gain = 1.0 if name.endswith(("q_proj", "k_proj")) else beta
                nn.init.xavier_normal_(module.weight, gain=gain)

    def forward(self, log_mel: Tensor, masked: Tensor | None = None) -> Tensor:
        """Encode `[B, T, F]` to `[B, V, D]`; `masked` `[B, N]` bool."""
        tokens: Tensor = self.patch_embed(log_mel, masked)
        if masked is None:
            place = torch.arange(tokens.shape[1], device=tokens.device)[None]
        else:
            place = visible_indices(masked)
            tokens = gather_tokens(tokens, place)
        bias = self.distances(place)
        for block in self.blocks:
            if self.gradient_decay != 1 and tokens.requires_grad:
                tokens.register_hook(self._decayed)  # type: ignore[no-untyped-call]
            tokens = block(tokens, bias)
        return tokens

    def _decayed(self, gradient: Tensor) -> Tensor:
        return self.gradient_decay * gradient


class PatchEmbedding(nn.Module):
    """Patches to tokens with positions.

    Attributes:
        proj: Convolution without bias, whose kernel is (frames, mel bins).
        patch_norm: LayerNorm of the patch embeddings.
        project: Linear layer from their width to that of the tokens.
        position: Convolution along the sequence, whose output is added.
        norm: LayerNorm of the sum.
    """

    def __init__(self, width: int, patch: Pair, patch_width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, patch_width, patch[::-1], patch[::-1], bias=False)
        self.patch_norm = nn.LayerNorm(patch_width)
        self.project = nn.Linear(patch_width, width)
        position = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=GROUPS)
        nn.init.normal_(position.weight, std=math.sqrt(4 / (KERNEL * width)))
        nn.init.zeros_(position.bias)  # type: ignore[arg-type]
        self.position = weight_norm(position, dim=2)
        self.norm = nn.LayerNorm(width)

    def forward(self, log_mel: Tensor, masked: Tensor | None = None) -> Tensor:
        """`[B, T, F]` to `[B, N, D]`, time-major; masked ones are zeros to their neighbours."""
        embedded = self.proj(log_mel[:, None]).flatten(2).transpose(1, 2)
        tokens: Tensor = self.project(self.patch_norm(embedded))
        if masked is not None:
            tokens = tokens.masked_fill(masked[..., None], 0.0)
        # An even kernel leaves one too many.
        around = functional.gelu(self.position(tokens.transpose(1, 2))[..., :-1])
        out: Tensor = self.norm(tokens + around.transpose(1, 2))
        return out


class Distances(nn.Module):
    """Bias of the attention by the distance of two tokens, in buckets as T5's.

    Half of the buckets are for each sign. Half of those are for one distance each, and the rest
    grow logarithmically up to `max_distance`.

    Attributes:
        bias: `[buckets, heads]`.
    """

    def __init__(self, heads: int, buckets: int, max_distance: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(0.02 * torch.randn(buckets, heads))
        self.max_distance = max_distance

    def bucket(self, distance: Tensor) -> Tensor:
        """Bucket of each distance, key minus query."""
        half = len(self.bias) // 2
        exact = half // 2
        far = distance.abs()
        steps = (far.clamp(min=exact).float() / exact).log()
        steps = steps / math.log(self.max_distance / exact) * (half - exact)
        logarithmic = (exact + steps.long()).clamp(max=half - 1)
        return half * (distance > 0) + torch.where(far < exact, far, logarithmic)

    def forward(self, place: Tensor) -> Tensor:
        """`[B, V]` indices in the sequence to `[B, heads, V, V]`."""
        bucket = self.bucket(place[:, None, :] - place[:, :, None])
        return functional.embedding(bucket, self.bias).permute(0, 3, 1, 2)


class GatedAttention(nn.Module):
    """Multi-head self-attention whose bias is scaled by the query, head by head.

    Attributes:
        q_proj: D to D, queries.
        k_proj: D to D, keys.
        v_proj: D to D, values.
        out_proj: D to D.
        gate: A head's query to the eight terms of its two gates.
        gate_scale: `[1, heads, 1, 1]`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.gate = nn.Linear(width // heads, GATE)
        self.gate_scale = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(self, tokens: Tensor, bias: Tensor) -> Tensor:
        """`[B, N, D]` and the bias `[B or 1, heads, N, N]` to `[B, N, D]`."""
        q, k, v = (
            proj(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        gates = self.gate(q).unflatten(-1, (2, GATE // 2)).sum(-1).sigmoid()
        reset, update = gates.chunk(2, dim=-1)
        scale = reset * (update * self.gate_scale - 1.0) + 2.0
        mixed = functional.scaled_dot_product_attention(q, k, v, (scale * bias).to(q.dtype))
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out
