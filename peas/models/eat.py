"""EAT: a vision transformer with post-norm blocks, fixed positions and a class token."""

from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from peas.models.audiomae_layers import position_table
from peas.models.encoder import Encoder, Need, drop
from peas.models.patches import Pair, grid_shape
from peas.models.vit import PostNormBlock, SelfAttention, size_of


class EAT(Encoder):
    """EAT (Chen et al., 2024), for classification and PEAS with a pixel probe.

    The encoder is data2vec 2.0's for images: class token and patches are normalised before the
    first block, every block normalises its sums, and nothing follows the last one. Tokens are
    time-major. Positions are a fixed function of a patch's (time, frequency), so any number of
    frames may be encoded and no weights depend on it. The class token has none.

    Attributes:
        encoder: `EATTransformer`.
        fc_norm: LayerNorm before the classifier; identity without classes.
        head: The classifier; identity without classes.
    """

    special = 1
    fixed = ("size", "patch", "pooling")

    def __init__(
        self,
        size: Literal["mini", "tiny", "small", "base", "large"] = "base",
        patch: tuple[int, int] = (16, 16),
        pooling: Literal["mean", "cls"] = "cls",
        drop_path: float = 0.0,
    ) -> None:
        """Note the settings.

        Args:
            size: `mini` (128 wide, 4 blocks), `tiny` (192, 12), `small` (384, 12), `base` (768, 12)
                or `large` (1024, 24); EAT has the last two.
            patch: Patch shape (mel bins, frames).
            pooling: The class token (`cls`, EAT's), or `mean` of the patch tokens.
            drop_path: Rate of stochastic depth of the last block; it rises linearly from 0. EAT has
                0.1 in fine-tuning.
        """
        super().__init__()
        self.size, self.patch = size, (patch[0], patch[1])
        self.pooling, self.drop_path = pooling, drop_path

    def make(self, needs: Collection[Need] | None) -> None:
        """Makes the modules, initialised as in the official code."""
        self.encoder = EATTransformer(
            self.size,
            frames=self.frames,
            mels=self.mels,
            patch=self.patch,
            drop_path=self.drop_path,
        )
        self.width = self.encoder.width
        self.make_classifier()

    def make_classifier(self) -> None:
        """Initialised as in the official code."""
        super().make_classifier()
        if isinstance(self.head, nn.Linear):
            self.fc_norm = nn.LayerNorm(self.width, eps=1e-6)
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def layer_of(self, name: str) -> int:
        """As in `Encoder`; the norm before the first block is one of the embeddings."""
        return 0 if name.startswith("encoder.pre_norm.") else super().layer_of(name)

    def tokens(self, log_mel: Tensor, masked: Tensor | None = None) -> Tensor:
        """Class token and visible patches after the last block, `[B, 1 + V, D]`; T may differ."""
        tokens: Tensor = self.encoder(log_mel, masked)
        return tokens

    def import_weights(self, state: Mapping[str, Any], where: str) -> Any:
        """Fills the model from an official EAT file, a hub folder or a checkpoint of ours."""
        from peas.models.weights import EAT as files

        return files.load(self, state, where)


class EATTransformer(nn.Module):
    """Class token and patches through post-norm blocks.

    Attributes:
        patch_embed: Its `proj` is the convolution, whose kernel is (frames, mel bins).
        cls_token: `[1, 1, D]`.
        pre_norm: LayerNorm before the first block.
        blocks: The transformer blocks.
        positions: `[1, N, D]`, fixed, of the model's own input; not saved.
    """

    positions: Tensor

    def __init__(
        self, size: str, *, frames: int, mels: int, patch: Pair, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.size = size
        self.width, depth, heads = size_of(size)
        self.frames = frames
        self.patch = patch
        kernel = patch[::-1]
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, self.width, kernel, kernel)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, self.width))
        self.pre_norm = nn.LayerNorm(self.width, eps=1e-6)
        self.blocks = nn.ModuleList(
            PostNormBlock(
                self.width,
                SelfAttention(
                    nn.Linear(self.width, 3 * self.width),
                    nn.Linear(self.width, self.width),
                    heads,
                ),
                eps=1e-6,
                drop_path=drop_path * index / max(depth - 1, 1),
            )
            for index in range(depth)
        )
        self.register_buffer("positions", self._positions(frames, mels), persistent=False)
        kernel_weight = self.patch_embed["proj"].weight
        assert isinstance(kernel_weight, Tensor)
        nn.init.xavier_uniform_(kernel_weight.view(self.width, -1))
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def _positions(self, frames: int, mels: int) -> Tensor:
        rows, columns = grid_shape(frames, mels, self.patch, self.patch)
        return position_table(self.width, columns, rows, "geometric")[:, 1:]

    def forward(self, log_mel: Tensor, masked: Tensor | None = None) -> Tensor:
        """Encode `[B, T, F]` to `[B, 1 + V, D]`; `masked` `[B, N]` bool."""
        embedded = self.patch_embed["proj"](log_mel[:, None]).flatten(2).transpose(1, 2)
        positions = self.positions
        if embedded.shape[1] != positions.shape[1]:
            positions = self._positions(log_mel.shape[1], log_mel.shape[2]).to(positions)
        patches = drop(embedded + positions, masked)
        special = self.cls_token.expand(patches.shape[0], -1, -1)
        tokens: Tensor = self.pre_norm(torch.cat((special, patches), dim=1))
        for block in self.blocks:
            tokens = block(tokens)
        return tokens
